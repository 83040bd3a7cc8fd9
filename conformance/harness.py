"""Starting and ending the programs that suites drive: ours and foreign ones, on ephemeral ports.

Every program runs in a session of its own, so that its whole tree can be ended by process group. The
harness declares itself a child subreaper: what a program leaves behind when it dies comes to us, is
reported as an orphan and killed, so a suite can check that nothing outlives a server.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

REPOSITORY = Path(__file__).resolve().parent.parent
STARTING_SECONDS = 60.0
STOPPING_SECONDS = 30.0
_PR_SET_CHILD_SUBREAPER = 36


class NotStarted(RuntimeError):
    """A program did not come up; carries the end of its log."""


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder, removed at the end whatever modes its contents have by then."""
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}-"))
    try:
        yield folder
    finally:
        remove_tree(folder)


def remove_tree(folder: Path) -> None:
    """Remove a folder tree, read-only parts too."""
    subprocess.run(["chmod", "-R", "u+rwX", str(folder)], check=False, capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)


def wait_until(ready: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll until `ready` is true; TimeoutError naming `what` when it never is."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.05)


def clean_up_when_terminated() -> None:
    """Let SIGTERM unwind like an exit, so that programs are ended and folders removed. For main functions."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def adopt_orphans() -> None:
    """Make this process the parent of whatever its descendants leave behind."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@contextmanager
def leaving_orphans_alone() -> Iterator[None]:
    """Start a daemon in the body that is not ours to look after: it goes to init, which also buries it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    try:
        yield
    finally:
        adopt_orphans()


def children_of(pid: int) -> list[int]:
    """Return the direct children of a process, empty when it is gone."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The command's name, in parentheses, may hold spaces: the parent follows the last ")".
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == pid:
                    found.append(int(entry.name))
    return sorted(found)


def descendants_of(pid: int) -> list[int]:
    """Return all living processes below `pid`, parents first."""
    found: list[int] = []
    queue = children_of(pid)
    while queue:
        child = queue.pop(0)
        found.append(child)
        queue += children_of(child)
    return found


def command_line(pid: int) -> str:
    """Return the command line of a process, arguments joined by spaces; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process that is its own (not file-backed), 0 when it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


@dataclass(slots=True)
class Program:
    """A running program and everything below it."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    _seen: set[int] = field(default_factory=set)

    @classmethod
    def start(
        cls,
        name: str,
        command: Sequence[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Program:
        """Start the command, its output going to `log`."""
        adopt_orphans()
        with log.open("ab") as out:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        return cls(name, process, log)

    @property
    def pid(self) -> int:
        """Process id of the program itself."""
        return self.process.pid

    def tree(self) -> list[int]:
        """Return the program's living processes, itself first."""
        tree = [self.pid, *descendants_of(self.pid)]
        self._seen.update(tree)
        return tree

    def strays(self, grace_seconds: float = 10.0) -> list[str]:
        """Return the command lines of processes that once were of the tree, and live on outside it."""

        def outside() -> set[int]:
            return {pid for pid in self._seen - {self.pid, *descendants_of(self.pid)} if alive(pid)}

        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not outside(), grace_seconds, "end of strays")
        return [command_line(pid) for pid in outside()]

    def find(self, *words: str) -> list[int]:
        """Return those processes of the tree whose command line holds all of `words`."""
        return [pid for pid in self.tree() if all(word in command_line(pid) for word in words)]

    def tail(self, lines: int = 20) -> str:
        """Return the end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def wait_ready(self, ready: Callable[[], bool], seconds: float = STARTING_SECONDS) -> None:
        """Wait until `ready`; NotStarted with the log's end when it dies or takes too long."""
        deadline = time.monotonic() + seconds
        while not ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise NotStarted(f"{self.name} did not come up (exit code {self.process.poll()}):\n{self.tail()}")
            time.sleep(0.05)

    def stop(self) -> list[str]:
        """End the program politely, then by force; return the command lines of what outlived it."""
        self.tree()
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOPPING_SECONDS)
        return self.kill()

    def kill(self, grace_seconds: float = 5.0) -> list[str]:
        """Kill the program at once (SIGKILL); return the command lines of what outlived it by that time."""
        self.tree()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        return self._reap_leftovers(grace_seconds)

    def _reap_leftovers(self, grace_seconds: float) -> list[str]:
        others = self._seen - {self.pid}
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not any(alive(pid) for pid in others), grace_seconds, "end of children")
        left = [pid for pid in others if alive(pid)]
        names = [command_line(pid) for pid in left]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not any(alive(pid) for pid in left), 5.0, "end of the killed")
        return names


def alive(pid: int) -> bool:
    """Whether a process lives; takes the exit status of one that was left to us."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def answers_grpc(address: str) -> bool:
    """Whether a gRPC server takes connections at HOST:PORT now."""
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=1.0)
        except grpc.FutureTimeoutError:
            return False
    return True


@dataclass(slots=True)
class Server:
    """A server under test."""

    name: str
    grpc_address: str
    http_address: str
    state: Path
    command: list[str]
    program: Program | None = None

    @property
    def url(self) -> str:
        """The gRPC address as Bazel and others write it."""
        return f"grpc://{self.grpc_address}"

    def start(self) -> None:
        """Start, or start again on the same state and ports; returns when it answers."""
        log = self.state.parent / f"{self.name}.log"
        program = Program.start(self.name, self.command, log, env={"PYTHONPATH": str(REPOSITORY)})
        self.program = program
        try:
            program.wait_ready(lambda: answers_grpc(self.grpc_address))
        except NotStarted:
            program.kill()
            raise

    def running(self) -> Program:
        """Return the running program."""
        if self.program is None:
            raise RuntimeError(f"{self.name} is not running")
        return self.program

    def stop(self) -> list[str]:
        """Stop; return what was left running."""
        program, self.program = self.program, None
        return program.stop() if program else []

    def kill(self) -> list[str]:
        """Kill with SIGKILL; return what was left running."""
        program, self.program = self.program, None
        return program.kill() if program else []


@contextmanager
def running(make: Callable[[Path], Server]) -> Iterator[Server]:
    """Run the server made by `make(state_folder)` in a scratch folder, and end it."""
    with scratch_folder("conformance") as folder:
        state = folder / "state"
        state.mkdir()
        server = make(state)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def tvix(state: Path, *options: str) -> Server:
    """Our own server, from this checkout, with `tvix serve`'s defaults but for ports and state."""
    grpc_address, http_address = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-c", "from tvix.cli.main import main; main()", "serve"]
    command += ["--grpc", grpc_address, "--http", http_address, "--state-dir", str(state), *options]
    return Server("tvix", grpc_address, http_address, state, command)
