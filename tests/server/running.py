"""A real server in processes of its own, for tests: started once per module, on ephemeral ports."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from remote_apis import remote_execution_pb2 as re_pb2
from remote_apis import remote_execution_pb2_grpc as re_grpc
from tvix.cas.digest import digest_of, digest_to_proto

ANNOUNCED = re.compile(r"serves gRPC on (\S+) and HTTP on (\S+);")
STARTING_SECONDS = 60
LOOPBACK = ("--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0")


def tvix(*arguments: str, state: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    command = [sys.executable, "-m", "tvix.cli", *arguments]
    if state:
        command += ["--state-dir", str(state)]
    return subprocess.run(command, capture_output=True, text=True, timeout=STARTING_SECONDS, check=False)


def wait_until(true: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Poll what another process does."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children_of(pid: int) -> dict[int, str]:
    """Return the command lines of a process's children by process id."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ").strip()
    return found


class RunningServer:
    """`tvix serve` and what it started."""

    def __init__(self, state: Path, *options: str) -> None:
        self.state = state
        self.log_path = state.parent / f"{state.name}.log"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tvix.cli", "serve", *LOOPBACK, "--state-dir", str(state), *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout
        announcement = self.process.stdout.readline()
        match = ANNOUNCED.search(announcement)
        assert match, f"{announcement}\n{self.log}"
        self.grpc_address, self.http_address = match[1], match[2]

    @property
    def log(self) -> str:
        """What all processes have logged."""
        return self.log_path.read_text()

    def children(self, role: str) -> list[int]:
        """Return the processes of a role: front, scheduler or worker."""
        return [pid for pid, command in children_of(self.process.pid).items() if f"tvix.server.{role}" in command]

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        """A connection of its own."""
        with grpc.insecure_channel(self.grpc_address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            yield channel

    def put(self, data: bytes) -> re_pb2.Digest:
        """Store a blob and return its digest."""
        message = digest_to_proto(digest_of(data))
        with self.channel() as channel:
            request = re_pb2.BatchUpdateBlobsRequest(
                requests=[re_pb2.BatchUpdateBlobsRequest.Request(digest=message, data=data)]
            )
            response = re_grpc.ContentAddressableStorageStub(channel).BatchUpdateBlobs(request, timeout=20)
        assert response.responses[0].status.code == 0
        return message

    def get(self, digest: re_pb2.Digest) -> bytes:
        """Return a blob, read over a connection of its own."""
        with self.channel() as channel:
            request = re_pb2.BatchReadBlobsRequest(digests=[digest])
            response = re_grpc.ContentAddressableStorageStub(channel).BatchReadBlobs(
                request, timeout=20, wait_for_ready=True
            )
        assert response.responses[0].status.code == 0, response
        return response.responses[0].data

    def put_action(self, script: str, *outputs: str, **options: Any) -> re_pb2.Digest:
        """Store an action that runs a shell script on an empty input root; return its digest."""
        command = re_pb2.Command(arguments=["sh", "-c", script], output_paths=sorted(outputs))
        action = re_pb2.Action(
            command_digest=self.put(command.SerializeToString()), input_root_digest=self.put(b""), **options
        )
        return self.put(action.SerializeToString())

    def execute(self, action: re_pb2.Digest, **options: Any) -> re_pb2.ExecuteResponse:
        """Run an action and return its response."""
        with self.channel() as channel:
            request = re_pb2.ExecuteRequest(action_digest=action, **options)
            *_, last = re_grpc.ExecutionStub(channel).Execute(request, timeout=90, wait_for_ready=True)
        assert last.done
        response = re_pb2.ExecuteResponse()
        assert last.response.Unpack(response)
        return response

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the server with a signal; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(60)
        assert self.process.stdout
        self.process.stdout.close()
        return code


@contextmanager
def running_server(folder: Path, *options: str) -> Iterator[RunningServer]:
    """A server for as long as the context lasts, killed at the end if it does not stop."""
    server = RunningServer(folder / "state", *options)
    try:
        yield server
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.stop()
        if server.process.poll() is None:
            os.kill(server.process.pid, signal.SIGKILL)
            server.process.wait()
