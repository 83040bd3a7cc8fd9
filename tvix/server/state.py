"""The state folder of a server: what lies where, and that only one server uses it.

lock                 held by the supervisor; holds its process id
cas/                 the disk store
records.sqlite       action cache, operations, assets
generations          change tokens of cached records
logs/                log streams
worker/              scratch space of the worker of this server
run/                 of this run only: emptied at each start
run/metrics/         counters shared by the processes
scheduler.sock       gRPC of the scheduler process, for the processes of this server
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tvix.errors import FailedPrecondition

MAX_SOCKET_PATH_BYTES = 100
"""The kernel takes 107; gRPC adds a little."""


@dataclass(frozen=True, slots=True)
class StateDir:
    """The paths of one state folder."""

    root: Path

    @property
    def cas(self) -> Path:
        """The disk store's folder."""
        return self.root / "cas"

    @property
    def records(self) -> Path:
        """The database of records."""
        return self.root / "records.sqlite"

    @property
    def generations(self) -> Path:
        """The file of change tokens."""
        return self.root / "generations"

    @property
    def logs(self) -> Path:
        """The log streams' folder."""
        return self.root / "logs"

    @property
    def worker(self) -> Path:
        """The worker's scratch folder."""
        return self.root / "worker"

    def worker_id(self) -> str:
        """Return what the worker of this folder is called, made up at the first call.

        It stays the same when the worker's process is replaced, so that the scheduler learns at once, from the
        new one's Hello, that what the old one was doing is lost.
        """
        path = self.root / "worker-id"
        with contextlib.suppress(FileNotFoundError):
            if known := path.read_text().strip():
                return known
        name = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        path.write_text(name)
        return name

    @property
    def run(self) -> Path:
        """The folder of what belongs to the present run only."""
        return self.root / "run"

    @property
    def metrics(self) -> Path:
        """The folder in which processes share their counters."""
        return self.run / "metrics"

    @property
    def fetch(self) -> Path:
        """The folder of files that are being fetched from elsewhere."""
        return self.run / "fetch"

    @property
    def scheduler_socket(self) -> Path:
        """The scheduler's socket; elsewhere when the state folder's path is too long for a socket's name."""
        path = self.root / "scheduler.sock"
        if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
            return path
        name = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"tvix-{os.getuid()}-{name}" / "scheduler.sock"

    @property
    def scheduler_target(self) -> str:
        """The scheduler's socket as gRPC writes it."""
        return f"unix:{self.scheduler_socket}"


def default_state_dir() -> Path:
    """Return TVIX_STATE_DIR, or `tvix` below the user's state folder."""
    if explicit := os.environ.get("TVIX_STATE_DIR"):
        return Path(explicit).expanduser().absolute()
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser().absolute() / "tvix"


@contextmanager
def locked(state: StateDir) -> Iterator[None]:
    """Make the folders, empty `run`, and hold the folder for this process.

    Raises FailedPrecondition naming the process that has it, or why it can't be written.
    """
    try:
        for folder in (state.root, state.cas, state.logs, state.worker):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state.scheduler_socket.parent.mkdir(mode=0o700, exist_ok=True)
        if state.scheduler_socket.parent.stat().st_uid != os.getuid():
            raise PermissionError(1, "belongs to another user", str(state.scheduler_socket.parent))
        descriptor = os.open(state.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FailedPrecondition(f"--state-dir {state.root}: {error.strerror}: {error.filename}") from error
    try:
        _take(state, descriptor)
        shutil.rmtree(state.run, ignore_errors=True)
        for folder in (state.metrics, state.fetch):
            folder.mkdir(mode=0o700, parents=True)
        yield
    finally:
        os.close(descriptor)


def _take(state: StateDir, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        raise FailedPrecondition(
            f"--state-dir {state.root} is in use by the server with process id {holder}; stop that one, or give this "
            "one another folder"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
