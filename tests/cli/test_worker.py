"""`tvix worker`: a worker apart from the server, with a store of its own."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.server.running import RunningServer, running_server, tvix, wait_until

pytestmark = pytest.mark.timeout(180)


@contextmanager
def running_worker(server: RunningServer, store: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process that is connected to the server."""
    command = [sys.executable, "-m", "tvix.cli", "worker", "--server", f"grpc://{server.grpc_address}"]
    command += ["--store", str(store), "--slots", "1", *options]
    connected = server.log.count(" connected slots=")
    log = store.parent / f"{store.name}.log"
    with log.open("ab") as output, subprocess.Popen(command, stderr=output) as process:
        try:
            wait_until(lambda: server.log.count(" connected slots=") > connected, log.read_text())
            yield process
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture(scope="module")
def bare_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("server"), "--fronts", "1", "--workers", "0") as running:
        yield running


@pytest.mark.parametrize("build_root", ["auto", "copy"])
def test_a_remote_worker_runs_actions(bare_server: RunningServer, tmp_path: Path, build_root: str) -> None:
    with running_worker(bare_server, tmp_path / "store", "--build-root", build_root):
        response = bare_server.execute(bare_server.put_action(f"echo {build_root} > out", "out"))
        assert response.result.exit_code == 0, response
        assert bare_server.get(response.result.output_files[0].digest) == f"{build_root}\n".encode()


def test_properties_are_offered(bare_server: RunningServer, tmp_path: Path) -> None:
    with running_worker(bare_server, tmp_path / "store", "--platform", "pool=large"):
        assert "pool=large" in tvix("status", "--server", f"grpc://{bare_server.grpc_address}").stdout


def test_a_second_worker_on_the_same_store_is_refused(bare_server: RunningServer, tmp_path: Path) -> None:
    with running_worker(bare_server, tmp_path / "store") as first:
        refused = tvix("worker", "--server", bare_server.grpc_address, "--store", str(tmp_path / "store"))
        assert refused.returncode == 1
        assert f"process id {first.pid}" in refused.stderr


def test_a_worker_ends_when_asked(bare_server: RunningServer, tmp_path: Path) -> None:
    with running_worker(bare_server, tmp_path / "store") as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--platform", "pool"), "'pool' is not NAME=VALUE"),
        (("--store-size", "big"), "write a size"),
        (("--slots", "-3"), "worker.slots = -3"),
        (("--server", "http://x:1"), "the scheme 'http' is none of grpc, grpcs, unix"),
    ],
)
def test_bad_flags(tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    done = tvix("worker", "--store", str(tmp_path / "store"), *flags)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
