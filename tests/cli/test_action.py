"""`tvix action show` against a running server."""

from tests.server.running import RunningServer, tvix


def show(server: RunningServer, script: str, *options: str) -> str:
    """Run a script as an action and return what is shown of it."""
    action = server.put_action(script, "out")
    server.execute(action)
    done = tvix("action", "show", f"{action.hash}/{action.size_bytes}", *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_action_that_succeeded(server: RunningServer) -> None:
    text = show(server, "echo told; echo warned >&2; mkdir out; echo 1 > out/file")
    assert "env -i sh -c 'echo told; echo warned >&2; mkdir out; echo 1 > out/file'" in text
    assert "exit code 0" in text
    assert "(from the action cache)" in text
    assert "out/" in text
    assert "told" in text.partition("stdout")[2]
    assert "warned" in text.partition("stderr")[2]
    assert "run " in text
    assert "memory" in text


def test_an_action_that_failed_is_found_among_the_operations(server: RunningServer) -> None:
    text = show(server, "echo because >&2; exit 7")
    assert "exit code 7" in text
    assert "(from the operation " in text
    assert "because" in text


def test_only_the_end_of_long_logs_is_shown(server: RunningServer) -> None:
    text = show(server, "seq 1 100", "--log-lines", "5")
    assert "… 95 lines before these, see --log-lines …\n96\n97\n98\n99\n100\n" in text


def test_an_action_that_never_ran(server: RunningServer) -> None:
    action = server.put_action("echo never")
    text = tvix("action", "show", f"{action.hash}/{action.size_bytes}").stdout
    assert "none: neither cached nor remembered" in text


def test_what_is_no_action_is_refused(server: RunningServer) -> None:
    blob = server.put(b"\xff not an action")
    done = tvix("action", "show", f"{blob.hash}/{blob.size_bytes}")
    assert (done.returncode, "is not an Action" in done.stderr) == (2, True)
    assert tvix("action", "show", f"{'0' * 64}/5").returncode == 4
