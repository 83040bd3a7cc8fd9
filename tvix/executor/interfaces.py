"""What the parts of remote execution are to each other.

`Executor` is the one verb: the scheduler, the runner on this machine and a client of another cluster
all are executors. `BuildRoot` makes an input tree visible to a process, `Sandbox` runs a process in it.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import Digest


class Stage(enum.IntEnum):
    """Where an execution is; the numbers are ExecutionStage.Value's."""

    UNKNOWN = 0
    CACHE_CHECK = 1
    QUEUED = 2
    EXECUTING = 3
    COMPLETED = 4


@dataclass(frozen=True, slots=True)
class Execution:
    """A request to run one action."""

    action_digest: Digest
    instance_name: str = ""
    skip_cache_lookup: bool = False
    priority: int = 0
    """Lower runs sooner."""
    request_metadata: re_pb2.RequestMetadata = field(default_factory=re_pb2.RequestMetadata)


class Executor(ABC):
    """Runs actions."""

    @abstractmethod
    async def execute(self, execution: Execution, report: Callable[[Stage], None]) -> re_pb2.ExecuteResponse:
        """Run the action and return its response; stop it by cancelling the call.

        A command that fails is a response like any other (status OK, exit code not 0); a timeout is a
        response with status DEADLINE_EXCEEDED and the partial output. Raises InvalidInput for a
        malformed action, MissingBlobs naming every absent blob, FailedPrecondition when nobody can run
        it, Unavailable for passing faults.
        """


class Output(Protocol):
    """Where a process's standard output or error goes while it runs."""

    def write(self, chunk: bytes) -> None:
        """Take some bytes; called on the event loop, must not block."""


class OpenRoot(ABC):
    """An input tree made visible, with room for outputs; valid while its context is open."""

    path: Path
    """The directory that holds the input root's contents, writable, private to one action."""

    def missing(self) -> frozenset[Digest]:
        """Return the inputs that were asked for so far and that the store did not have.

        The process that asked saw an I/O error, so nothing that it made can be trusted.
        """
        return frozenset()

    def check(self) -> None:
        """Raise Unavailable when the root stopped working while it was in use."""
        return None


class BuildRoot(ABC):
    """Makes input trees visible as directories. One instance serves all actions of a worker."""

    async def start(self) -> None:
        """Get ready, so that the first action need not wait. Optional; Unavailable if it cannot be now."""
        return None

    @abstractmethod
    def open(self, input_root: Digest) -> AbstractAsyncContextManager[OpenRoot]:
        """Show the tree below a fresh directory; nothing of it is left when the context ends.

        Raises MissingBlobs when a needed Directory is absent, InvalidDirectory when one is malformed.
        Files may be fetched only when they are first read.
        """

    async def close(self) -> None:
        """Unmount and remove everything."""
        return None


class Profile(enum.Enum):
    """What the process sees as its file system."""

    HOST_TOOLS = "host-tools"
    """The host's system folders read-only; the input root is a working directory elsewhere."""
    INPUT_ROOT = "input-root"
    """The input root is `/`; nothing of the host."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Resource limits of one process tree; None means no limit."""

    wall_seconds: float | None = None
    memory_bytes: int | None = None
    processes: int | None = None
    cpu_millis: int | None = None
    """CPU share in thousandths of a core."""

    @property
    def need_group(self) -> bool:
        """Whether there is a limit that only a control group enforces."""
        return not (self.memory_bytes is None and self.processes is None and self.cpu_millis is None)


@dataclass(frozen=True, slots=True)
class Process:
    """A command ready to be run in a sandbox."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    root: Path
    """The open build root on the host."""
    working_directory: str
    """Relative to the root, clean (no `.` or `..`), empty for the root itself."""
    profile: Profile
    network: bool = False
    limits: Limits = field(default_factory=Limits)
    uid: int | None = None
    gid: int | None = None
    own_tmp: bool = False
    """Whether /tmp is the input root's own, because outputs or inputs are in it, and not a private empty one.
    Only with the input root as `/`."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process tree used, as far as the sandbox could tell; 0 where it could not."""

    wall_seconds: float = 0.0
    user_seconds: float = 0.0
    system_seconds: float = 0.0
    peak_memory_bytes: int = 0
    peak_processes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process tree ended; all of it is gone by then."""

    exit_code: int
    """The shell's convention: 128 + N when killed by signal N."""
    timed_out: bool
    out_of_memory: bool
    usage: Usage


class Sandbox(ABC):
    """Runs processes with some degree of isolation."""

    name: str
    """`bubblewrap`, `oci` or `none`."""

    async def why_not(self) -> str:
        """Try whether this works on this machine; return why it does not, empty if it does."""
        return ""

    @abstractmethod
    async def run(self, process: Process, stdout: Output, stderr: Output) -> Exit:
        """Run to the end, or until `limits.wall_seconds`, then kill the whole tree. When cancelled,
        kill the whole tree before passing the cancellation on.

        A command that is not found or not executable ends like in a shell: exit code 127 or 126 and a line
        on `stderr`. Raises Unavailable when the sandbox itself fails, FailedPrecondition when it cannot do
        what `process` asks for.
        """
