"""The program as a whole: help, errors, exit codes."""

import subprocess
import sys

import pytest

from tests.server.running import tvix
from tvix import __version__
from tvix.cli.main import VERBS

HEAVY = ("grpc", "aiohttp", "pydantic", "sqlalchemy", "rich", "google.protobuf")


def test_help_names_every_verb() -> None:
    text = tvix("--help").stdout
    assert all(f"  {verb} " in text for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    done = tvix(verb, "--help")
    assert done.returncode == 0
    assert "tvix " in done.stdout.partition("Options:")[0].partition("\n")[2]


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['tvix', '--help']\n"
        "from tvix.cli.main import main\n"
        "try: main()\n"
        f"finally: print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


def test_the_version_is_told() -> None:
    assert tvix("--version").stdout == f"tvix {__version__}\n"


def test_an_error_is_one_line_and_an_exit_code() -> None:
    done = tvix("cas", "cat", "nonsense")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "tvix: error: 'nonsense' is not a digest; write HASH/SIZE, or FUNCTION/HASH/SIZE for blake3 and sha256tree"
    ]


def test_a_traceback_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVIX_DEBUG", "1")
    assert "Traceback" in tvix("cas", "cat", "nonsense").stderr


def test_a_server_that_is_not_there_is_named() -> None:
    done = tvix("status", "--server", "grpc://127.0.0.1:1")
    assert done.returncode == 75
    assert done.stderr.startswith("tvix: error: grpc://127.0.0.1:1 does not answer")
    assert len(done.stderr.splitlines()) == 1


def test_an_unknown_verb_is_a_usage_error() -> None:
    done = tvix("frobnicate")
    assert (done.returncode, "No such command" in done.stderr) == (2, True)
