"""Cases on Execution and Operations: (h) missing blobs, (i) reconnecting, (j) caching and merging, (l) time."""

from __future__ import annotations

import threading
import time
from typing import Any

import grpc
from google.longrunning import operations_pb2
from google.protobuf import duration_pb2
from grpc import StatusCode

from conformance.reapi.cases import case
from conformance.reapi.client import (
    CALL_SECONDS,
    EMPTY,
    Endpoint,
    Executed,
    check,
    check_ran,
    code_of,
    command_of,
    details_of,
    digest_of,
    directory_of,
    finish,
    fresh,
    key,
    metadata_of,
    missing_subjects,
    refused,
    response_of,
    shell,
    status_name,
)
from remote_apis import remote_execution_pb2 as re_pb2

RANDOM = "head -c 16 /dev/urandom | od -An -tx1"
"""Prints something else each time it really runs."""


def _platform(**properties: str) -> re_pb2.Platform:
    return re_pb2.Platform(
        properties=[re_pb2.Platform.Property(name=name, value=value) for name, value in sorted(properties.items())]
    )


@case("x.runs", "Execute runs a command; its output comes back, exit code 0", "execution")
def runs(server: Endpoint) -> None:
    done = server.run("/bin/sh", "-c", "echo out; echo err >&2; echo made > f", output_paths=["f"])
    check(server.stdout(done.result) == b"out\n", f"stdout {server.stdout(done.result)!r}")
    check(server.stderr(done.result) == b"err\n", f"stderr {server.stderr(done.result)!r}")
    (output,) = done.result.output_files
    check(output.path == "f" and server.read_blob(output.digest) == b"made\n", "the output file differs")


@case("x.operations", "a name at once, stages in order, done with a response and never an error", "execution")
def operations(server: Endpoint) -> str:
    action = server.put_action(shell("sleep 0.3"))
    done = server.execute(action)
    names = {operation.name for operation in done.operations}
    check(len(names) == 1 and names != {""}, f"operation names {names}")
    stages = [metadata_of(operation).stage for operation in done.operations]
    check(stages == sorted(stages), f"stages {stages}")
    check(stages[-1] == re_pb2.ExecutionStage.COMPLETED, f"last stage {stages[-1]}")
    check([operation.done for operation in done.operations].count(True) == 1, "not exactly one message is done")
    for operation in done.operations:
        check(key(metadata_of(operation).action_digest) == key(action), "metadata name another action")
    return " ".join(re_pb2.ExecutionStage.Value.Name(stage) for stage in stages)


@case("x.first-message", "the first message comes before the action ends", "execution")
def first_message(server: Endpoint) -> str:
    stream = server.start(server.put_action(shell("sleep 1")))
    started = time.monotonic()
    first = next(stream)
    waited = time.monotonic() - started
    check(first.name and not first.done and waited < 0.8, f"first message after {waited:.2f} s, done: {first.done}")
    check_ran(finish(stream))
    return f"{waited * 1000:.0f} ms"


@case("x.metadata", "worker and all timestamps are set, in order", "execution")
def timestamps(server: Endpoint) -> None:
    meta = server.run("/bin/sh", "-c", "sleep 0.1").result.execution_metadata
    check(meta.worker, "worker is empty")
    names = (
        "queued",
        "worker_start",
        "input_fetch_start",
        "input_fetch_completed",
        "execution_start",
        "execution_completed",
        "output_upload_start",
        "output_upload_completed",
        "worker_completed",
    )
    times = []
    for name in names:
        check(meta.HasField(f"{name}_timestamp"), f"{name}_timestamp is unset")  # type: ignore[arg-type]
        times.append(getattr(meta, f"{name}_timestamp").ToNanoseconds())
    late = [name for name, before, after in zip(names[1:], times, times[1:], strict=False) if after < before]
    check(not late, f"earlier than the step before: {', '.join(late)}")
    check(abs(times[0] / 1e9 - time.time()) < 300, "queued_timestamp is not now")


@case("x.exit-code", "a command that fails is status OK with its exit code, output and outputs", "execution")
def exit_code(server: Endpoint) -> None:
    action = server.put_action(shell("echo why >&2; echo part > f; exit 7", output_paths=["f"]))
    done = server.execute(action)
    check(done.response.status.code == 0, f"status {status_name(done.response.status.code)}")
    check(done.result.exit_code == 7, f"exit code {done.result.exit_code}")
    check(server.stderr(done.result) == b"why\n", "stderr is lost")
    check([output.path for output in done.result.output_files] == ["f"], "the outputs of a failed command are lost")


@case("j.failed", "what exited with another code than 0 is not cached", "execution")
def failed_not_cached(server: Endpoint) -> None:
    action = server.put_action(shell("exit 7"))
    server.execute(action)
    check(server.cached(action) is None, "a failed result is cached")


@case("x.signal", "a command killed by a signal has an exit code that is not 0", "execution")
def killed(server: Endpoint) -> str:
    done = server.execute(server.put_action(shell("kill -9 $$")))
    check(done.response.status.code == 0, f"status {status_name(done.response.status.code)}")
    check(done.result.exit_code != 0, "exit code 0")
    return f"exit code {done.result.exit_code}"


@case("x.not-found-command", "a command that does not exist fails, with a message", "execution")
def no_such_command(server: Endpoint) -> str:
    done = server.execute(server.put_action(command_of("/no/such/program", "x")))
    status, code = done.response.status, done.result.exit_code
    check(status.code or code, "it succeeds")
    text = f"{status.message} {done.response.message} {server.stderr(done.result).decode(errors='replace')}"
    check("/no/such/program" in text or "no such" in text.lower(), f"nothing says what is wrong: {text!r}")
    return f"{status_name(status.code)}, exit code {code}"


@case("h.no-action", "an absent Action is FAILED_PRECONDITION with one MISSING violation", "execution")
def missing_action(server: Endpoint) -> None:
    digest = digest_of(fresh())
    check(_missing_of(server, digest) == {f"blobs/{key(digest)}"}, "the subjects are not just the action")


def _missing_of(server: Endpoint, action: re_pb2.Digest) -> set[str]:
    """Return the subjects that an Execute names as missing, in its own status or in the response's."""
    try:
        done = server.execute(action)
    except grpc.RpcError as error:
        code = error.code()
        check(code == StatusCode.FAILED_PRECONDITION, f"{code.name}, not FAILED_PRECONDITION")
        return missing_subjects(details_of(error))  # type: ignore[arg-type]
    status = done.response.status
    check(status.code == 9, f"{status_name(status.code)}, not FAILED_PRECONDITION: {status.message}")
    return missing_subjects(list(status.details))


@case("h.no-command", "an absent Command and input root are both named", "execution")
def missing_command(server: Endpoint) -> None:
    action = re_pb2.Action(command_digest=digest_of(fresh()), input_root_digest=digest_of(fresh()), salt=fresh())
    found = _missing_of(server, server.put(action.SerializeToString()))
    wanted = {f"blobs/{key(action.command_digest)}", f"blobs/{key(action.input_root_digest)}"}
    check(found == wanted, f"{len(found)} subjects named, of 2: {found}")


@case("h.no-inputs", "absent input files and directories are named, all of them", "execution")
def missing_inputs(server: Endpoint) -> None:
    gone = [digest_of(fresh()) for _ in range(2)]
    files = directory_of({"a": gone[0], "b": gone[1], "c": server.put(fresh())})
    found = _missing_of(server, server.put_action(shell("cat a b c"), files))
    check(found == {f"blobs/{key(digest)}" for digest in gone}, f"files: {sorted(found)}")
    below = [directory_of({"x": digest_of(fresh())}), directory_of({"y": digest_of(fresh())})]
    names = [digest_of(directory.SerializeToString()) for directory in below]
    root = directory_of(directories={"a": names[0], "b": names[1]})
    found = _missing_of(server, server.put_action(shell("find a b"), root))
    check(found == {f"blobs/{key(digest)}" for digest in names}, f"directories: {sorted(found)}")


@case("h.then-uploaded", "after the missing blobs are uploaded the same action runs", "execution")
def then_uploaded(server: Endpoint) -> None:
    data = fresh()
    action = server.put_action(shell("cat a"), directory_of({"a": digest_of(data)}))
    check(_missing_of(server, action) == {f"blobs/{key(digest_of(data))}"}, "wrong subjects")
    server.put(data)
    done = server.execute(action)
    check_ran(done)
    check(server.stdout(done.result) == data, "stdout differs")


@case("x.malformed", "an Action, Command or Directory that does not parse is INVALID_ARGUMENT", "execution")
def malformed(server: Endpoint) -> None:
    junk = server.put(b"\xff\xff\xff junk " + fresh())
    command = server.put(shell("true", working_directory="").SerializeToString())
    root = server.put(directory_of({"f": server.put(fresh())}).SerializeToString())
    good = re_pb2.Action(command_digest=command, input_root_digest=root)
    for reason, action in (
        ("the Action", junk),
        ("the Command", server.put(re_pb2.Action(command_digest=junk, input_root_digest=root).SerializeToString())),
        ("the root", server.put(re_pb2.Action(command_digest=command, input_root_digest=junk).SerializeToString())),
        ("no command digest", server.put(re_pb2.Action(input_root_digest=root).SerializeToString())),
    ):
        check(refusal(server, action) == 3, f"{reason}: {status_name(refusal(server, action))}")
    check_ran(server.execute(server.put(good.SerializeToString())))


def refusal(server: Endpoint, action: re_pb2.Digest) -> int:
    """Return the code with which an Execute fails, wherever it stands; 0 when it does not."""
    try:
        return int(server.execute(action).response.status.code)
    except grpc.RpcError as error:
        return code_of(error)


@case("x.not-canonical", "input directories that are not canonical are INVALID_ARGUMENT", "execution")
def not_canonical(server: Endpoint) -> None:
    blob = server.put(fresh())
    file_node, symlink = re_pb2.FileNode, re_pb2.SymlinkNode
    accepted = []
    for reason, root in (
        ("a name with a slash", re_pb2.Directory(files=[file_node(name="a/b", digest=blob)])),
        ("..", re_pb2.Directory(files=[file_node(name="..", digest=blob)])),
        (".", re_pb2.Directory(directories=[re_pb2.DirectoryNode(name=".", digest=EMPTY)])),
        ("an empty name", re_pb2.Directory(files=[file_node(name="", digest=blob)])),
        (
            "one name twice",
            re_pb2.Directory(files=[file_node(name="a", digest=blob)], symlinks=[symlink(name="a", target="b")]),
        ),
        (
            "names out of order",
            re_pb2.Directory(files=[file_node(name="b", digest=blob), file_node(name="a", digest=blob)]),
        ),
        ("an empty symlink target", re_pb2.Directory(symlinks=[symlink(name="a", target="")])),
        ("a file without digest", re_pb2.Directory(files=[file_node(name="a")])),
    ):
        code = refusal(server, server.put_action(shell("ls -la"), root))
        if code != 3:
            accepted.append(f"{reason}: {status_name(code)}")
    check(not accepted, "; ".join(accepted))


@case("j.cached", "the second Execute is answered from the cache; skip_cache_lookup runs it again", "execution")
def cached(server: Endpoint) -> None:
    action = server.put_action(shell(RANDOM))
    first = server.execute(action)
    check(not first.response.cached_result, "cached_result on the first run")
    second = server.execute(action)
    check(second.response.cached_result, "cached_result is not set on the second run")
    check(_said(server, first) == _said(server, second), "the cached result differs")
    third = server.execute(action, skip_cache=True)
    check(not third.response.cached_result, "skip_cache_lookup was answered from the cache")
    check(_said(server, third) != _said(server, first), "skip_cache_lookup did not run")
    found = server.cached(action)
    check(found is not None and server.stdout(found) == _said(server, third), "the new result is not in the cache")


def _said(server: Endpoint, done: Executed) -> bytes:
    check_ran(done)
    return server.stdout(done.result)


@case("j.do-not-cache", "do_not_cache: neither written to the cache nor merged", "execution")
def do_not_cache(server: Endpoint) -> None:
    action = server.put_action(shell(f"sleep 0.3; {RANDOM}"), do_not_cache=True)
    one, two = _at_once(server, action, 2)
    check(_said(server, one) != _said(server, two), "two runs of a do_not_cache action were merged")
    check(server.cached(action) is None, "the result is cached")
    check(not server.execute(action).response.cached_result, "answered from the cache")


def _at_once(server: Endpoint, action: re_pb2.Digest, count: int) -> list[Executed]:
    streams = [server.start(action) for _ in range(count)]
    results: list[Executed | None] = [None] * count

    def follow(index: int) -> None:
        results[index] = finish(streams[index])

    threads = [threading.Thread(target=follow, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [done for done in results if done is not None]
    check(len(found) == count, f"only {len(found)} of {count} calls ended well")
    return found


@case("j.merge", "the same action asked for at the same time runs once", "execution")
def merge(server: Endpoint) -> None:
    action = server.put_action(shell(f"sleep 0.5; {RANDOM}"))
    said = {_said(server, done) for done in _at_once(server, action, 4)}
    check(len(said) == 1, f"ran {len(said)} times")


@case("j.merge-leaver", "one of two waiters leaving does not end the other's action", "execution")
def merge_leaver(server: Endpoint) -> None:
    action = server.put_action(shell("sleep 1; echo whole"))
    leaver, stayer = server.start(action), server.start(action)
    next(leaver)
    next(stayer)
    leaver.cancel()
    check(_said(server, finish(stayer)) == b"whole\n", "stdout differs")


@case("i.wait", "after the stream breaks, WaitExecution takes up: at once the state, then the end", "execution")
def wait(server: Endpoint) -> None:
    stream = server.start(server.put_action(shell("sleep 2; echo end")), seconds=1.0)
    name = ""
    with refused(StatusCode.DEADLINE_EXCEEDED, why="a stream with a deadline of 1 s"):
        for operation in stream:
            name = operation.name
    check(name, "no operation before the deadline")
    waiting = server.execution.WaitExecution(re_pb2.WaitExecutionRequest(name=name), timeout=CALL_SECONDS)
    started = time.monotonic()
    first = next(iter(waiting))
    check(time.monotonic() - started < 0.7 or first.done, "the first message of WaitExecution is late")
    check(_said(server, finish(waiting) if not first.done else finish([first])) == b"end\n", "stdout differs")


@case("i.wait-done", "WaitExecution of a finished operation returns its response, again and again", "execution")
def wait_done(server: Endpoint) -> None:
    done = server.run("/bin/sh", "-c", "echo late", do_not_cache=True)
    request = re_pb2.WaitExecutionRequest(name=done.operations[-1].name)
    for _ in range(2):
        again = finish(server.execution.WaitExecution(request, timeout=CALL_SECONDS))
        check(again.response.result == done.result, "the result differs")


@case("i.wait-unknown", "WaitExecution of an unknown name is NOT_FOUND", "execution")
def wait_unknown(server: Endpoint) -> None:
    for name in ("nobody-knows-this", "", "operations/x/y"):
        request = re_pb2.WaitExecutionRequest(name=name)
        with refused(StatusCode.NOT_FOUND, StatusCode.INVALID_ARGUMENT, why=f"name {name!r}"):
            list(server.execution.WaitExecution(request, timeout=CALL_SECONDS))


@case("l.timeout", "a timeout ends the action: DEADLINE_EXCEEDED with what it printed until then", "execution")
def timeout(server: Endpoint) -> None:
    action = server.put_action(shell("echo begun; sleep 20 & sleep 20; wait"), timeout_seconds=1)
    started = time.monotonic()
    done = server.execute(action)
    check(time.monotonic() - started < 8, "the timeout of 1 s was not kept")
    check(done.response.status.code == 4, f"status {status_name(done.response.status.code)}")
    check(server.stdout(done.result) == b"begun\n", "the partial stdout is lost")
    check(server.cached(action) is None, "a timed-out result is cached")


@case("l.timeout-message", "siso knows a timeout by its message: exactly `execution timeout exceeded`", "execution")
def timeout_message(server: Endpoint) -> None:
    done = server.execute(server.put_action(shell("sleep 20"), timeout_seconds=0.3))
    check(done.response.status.message == "execution timeout exceeded", repr(done.response.status.message))


@case("l.bad-timeouts", "a negative timeout or one above the server's maximum is INVALID_ARGUMENT", "execution")
def bad_timeouts(server: Endpoint) -> None:
    for reason, duration in (
        ("-1 s", duration_pb2.Duration(seconds=-1)),
        ("10,000 years", duration_pb2.Duration(seconds=315_000_000_000)),
        ("nanos out of range", duration_pb2.Duration(seconds=1, nanos=2_000_000_000)),
    ):
        action = re_pb2.Action(
            command_digest=server.put(shell("true").SerializeToString()),
            input_root_digest=EMPTY,
            timeout=duration,
            salt=fresh(),
        )
        code = refusal(server, server.put(action.SerializeToString()))
        check(code == 3, f"{reason}: {status_name(code)}")


@case("x.cancel", "CancelOperation ends a running action: CANCELLED, soon", "execution")
def cancel(server: Endpoint) -> str:
    stream = server.start(server.put_action(shell("sleep 30")))
    name = ""
    for operation in stream:
        name = operation.name
        if metadata_of(operation).stage >= re_pb2.ExecutionStage.EXECUTING:
            break
    started = time.monotonic()
    server.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=name), timeout=CALL_SECONDS)
    done = finish(stream)
    waited = time.monotonic() - started
    check(done.response.status.code == 1, f"status {status_name(done.response.status.code)}")
    check(waited < 10, f"{waited:.1f} s after the cancel")
    return f"{waited:.2f} s"


@case("x.operations-api", "GetOperation, ListOperations, WaitOperation, DeleteOperation know an execution", "execution")
def operations_api(server: Endpoint) -> None:
    stream = server.start(server.put_action(shell("sleep 1; echo x")))
    name = next(stream).name
    got = server.operations.GetOperation(operations_pb2.GetOperationRequest(name=name), timeout=CALL_SECONDS)
    check(got.name == name, f"GetOperation names {got.name!r}, not {name!r}")
    listed = _list_operations(server)
    check(name in listed, f"ListOperations does not list it among {len(listed)}")
    wait_request = operations_pb2.WaitOperationRequest(name=name, timeout=duration_pb2.Duration(seconds=10))
    try:
        waited = server.operations.WaitOperation(wait_request, timeout=CALL_SECONDS)
        check(waited.done, "WaitOperation returned before the end")
    except grpc.RpcError as error:
        check(error.code() == StatusCode.UNIMPLEMENTED, f"WaitOperation: {error}")
    done = finish(stream)
    got = server.operations.GetOperation(operations_pb2.GetOperationRequest(name=name), timeout=CALL_SECONDS)
    check(response_of(got).result == done.result, "GetOperation's response differs from the stream's")
    server.operations.DeleteOperation(operations_pb2.DeleteOperationRequest(name=name), timeout=CALL_SECONDS)
    with refused(StatusCode.NOT_FOUND, why="GetOperation after DeleteOperation"):
        server.operations.GetOperation(operations_pb2.GetOperationRequest(name=name), timeout=CALL_SECONDS)


def _list_operations(server: Endpoint) -> list[str]:
    names: list[str] = []
    token = ""
    while True:
        request = operations_pb2.ListOperationsRequest(name=server.instance, page_size=50, page_token=token)
        reply: Any = server.operations.ListOperations(request, timeout=CALL_SECONDS)
        names += [operation.name for operation in reply.operations]
        token = reply.next_page_token
        if not token:
            return names


@case("x.operations-unknown", "Operations on a name nobody knows: NOT_FOUND", "execution")
def operations_unknown(server: Endpoint) -> None:
    name = server.resource("nobody-knows-this")
    with refused(StatusCode.NOT_FOUND, StatusCode.INVALID_ARGUMENT, why="GetOperation"):
        server.operations.GetOperation(operations_pb2.GetOperationRequest(name=name), timeout=CALL_SECONDS)
    with refused(StatusCode.NOT_FOUND, StatusCode.INVALID_ARGUMENT, why="CancelOperation"):
        server.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=name), timeout=CALL_SECONDS)


@case("x.platform", "a platform nobody offers is FAILED_PRECONDITION naming the key, not an endless wait", "execution")
def unmatched_platform(server: Endpoint) -> str:
    action = server.put_action(shell("true"), platform=_platform(OSFamily="plan9"))
    try:
        status = server.execute(action, seconds=40.0).response.status
        code, message = status.code, status.message
    except grpc.RpcError as error:
        code, message = code_of(error), str(error.details())
    check(code in (9, 3), f"{status_name(code)}: {message}")
    check("OSFamily" in message, f"the message does not name the key: {message}")
    return str(message)[:120]


@case("x.platform-linux", "OSFamily and ISA of this machine are matched, in Action or only in Command", "execution")
def matched_platform(server: Endpoint) -> None:
    server.run("/bin/true", platform=_platform(OSFamily="linux", ISA="x86-64"))
    command = command_of("/bin/true")
    command.platform.CopyFrom(_platform(OSFamily="linux"))
    check_ran(server.execute(server.put_action(command)))


@case("x.priority", "any priority within int32 is taken", "execution")
def priority(server: Endpoint) -> None:
    for value in (-5, 0, 100):
        policy = re_pb2.ExecutionPolicy(priority=value)
        check_ran(server.execute(server.put_action(shell("true")), execution_policy=policy))


@case("x.many", "40 different actions at once all end well", "execution")
def many(server: Endpoint) -> str:
    started = time.monotonic()
    streams = [server.start(server.put_action(shell(f"echo {index}"))) for index in range(40)]
    for index, stream in enumerate(streams):
        check(_said(server, finish(stream)) == b"%d\n" % index, f"action {index} printed something else")
    return f"{40 / (time.monotonic() - started):.0f} actions/s"


@case("x.large-output", "30 MB of stdout and a 30 MB file come back whole", "execution")
def large_output(server: Endpoint) -> None:
    script = "head -c 30000000 /dev/zero | tr '\\0' x | tee f"
    done = server.run("/bin/sh", "-c", script, output_paths=["f"])
    check(server.stdout(done.result) == b"x" * 30_000_000, "stdout differs")
    (output,) = done.result.output_files
    check(output.digest.size_bytes == 30_000_000, f"the file has {output.digest.size_bytes} bytes")
