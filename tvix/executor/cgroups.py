"""Control groups: limits on memory, processes and CPU of a whole process tree, and what it used. Linux.

Each run gets a group of its own below a parent that the operator names; nobody else's group is touched,
and without a parent there are no groups: limits other than time are not enforced then, since the
alternatives are wrong (RLIMIT_AS counts address space that is never used, RLIMIT_NPROC counts all of a
user's processes), and usage comes from wait4.

Both versions: in v2 one folder holds all controllers (the parent must have no processes of its own; for
a systemd unit that is a group below it, with Delegate=yes), in v1 each has a hierarchy. Below the parent:

    tvix-PID-N/     the Nth run of the worker process PID; those of dead workers are removed at start

A process enters before it executes the sandbox (a shell writes its own id), so none of its children can
be outside.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from tvix.errors import FailedPrecondition, Unavailable
from tvix.executor.interfaces import Exit, Limits

log = logging.getLogger(__name__)

MOUNT = Path("/sys/fs/cgroup")
_PERIOD_MICROS = 100_000
_REMOVE_SECONDS = 1.0
_JOIN = 'while [ "$1" != -- ]; do echo $$ > "$1" || exit 99; shift; done; shift; exec "$@"'


class Group:
    """One run's group; without any folder it does nothing."""

    def __init__(self, folders: Mapping[str, Path], *, unified: bool) -> None:
        self._folders = folders
        """By controller; in v2 all are the same."""
        self._unified = unified

    @property
    def joining(self) -> list[str]:
        """What to put before a program's arguments so that it enters the group first."""
        if not self._folders:
            return []
        places = [str(folder / "cgroup.procs") for folder in dict.fromkeys(self._folders.values())]
        return ["/bin/sh", "-c", _JOIN, "sh", *places, "--"]

    def limit(self, limits: Limits) -> None:
        """Set the limits as far as there are controllers; raises OSError."""
        if limits.memory_bytes is not None:
            if self._unified:
                self._write("memory", "memory.max", limits.memory_bytes)
                self._write("memory", "memory.swap.max", 0, needed=False)
                self._write("memory", "memory.oom.group", 1, needed=False)
            else:
                self._write("memory", "memory.limit_in_bytes", limits.memory_bytes)
                self._write("memory", "memory.memsw.limit_in_bytes", limits.memory_bytes, needed=False)
        if limits.processes is not None:
            self._write("pids", "pids.max", limits.processes)
        if limits.cpu_millis is not None:
            quota = max(1000, limits.cpu_millis * _PERIOD_MICROS // 1000)
            if self._unified:
                self._write("cpu", "cpu.max", f"{quota} {_PERIOD_MICROS}")
            else:
                self._write("cpu", "cpu.cfs_period_us", _PERIOD_MICROS)
                self._write("cpu", "cpu.cfs_quota_us", quota)

    def _write(self, controller: str, name: str, value: object, *, needed: bool = True) -> None:
        folder = self._folders.get(controller)
        if folder is not None:
            try:
                (folder / name).write_text(str(value))
            except OSError:
                if needed:
                    raise

    def _read(self, controller: str, name: str) -> str:
        folder = self._folders.get(controller)
        if folder is not None:
            with contextlib.suppress(OSError):
                return (folder / name).read_text()
        return ""

    def _number(self, controller: str, name: str) -> int:
        text = self._read(controller, name).strip()
        return int(text) if text.isdigit() else 0

    def _entries(self, controller: str, name: str) -> dict[str, int]:
        """Return a file of `key value` lines."""
        pairs = (line.split() for line in self._read(controller, name).splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}

    def completed(self, ended: Exit) -> Exit:
        """Return `ended` with what the group knows better: usage, and whether memory ran out."""
        if not self._folders:
            return ended
        usage = ended.usage
        memory = self._number("memory", "memory.peak" if self._unified else "memory.max_usage_in_bytes")
        events = self._entries("memory", "memory.events" if self._unified else "memory.oom_control")
        usage = replace(
            usage,
            peak_memory_bytes=memory or usage.peak_memory_bytes,
            peak_processes=self._number("pids", "pids.peak"),
        )
        if self._unified and (cpu := self._entries("cpu", "cpu.stat")):
            usage = replace(usage, user_seconds=cpu["user_usec"] / 1e6, system_seconds=cpu["system_usec"] / 1e6)
        return replace(ended, usage=usage, out_of_memory=events.get("oom_kill", 0) > 0)

    def remove(self) -> None:
        """Kill what is in the group and remove it; what cannot be removed now is at the next start."""
        deadline = time.monotonic() + _REMOVE_SECONDS
        for folder in dict.fromkeys(self._folders.values()):
            while True:
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    pass
                except OSError as error:
                    _kill_all(folder)
                    if time.monotonic() < deadline:
                        continue
                    log.warning("cgroup=%s cannot be removed: %s", folder, error.strerror)
                break


def _kill_all(folder: Path) -> None:
    try:
        (folder / "cgroup.kill").write_text("1")
    except OSError:
        with contextlib.suppress(OSError):
            for line in (folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(line), signal.SIGKILL)


class Cgroups:
    """Makes groups below a parent."""

    def __init__(self, parent: str, mount: Path = MOUNT, *, only_limited: bool = False) -> None:
        """`parent` is relative to the mount point, and made if it is not there. FailedPrecondition when
        it cannot be, or has no controller that would help. `only_limited`: runs without a limit get no group,
        which saves them a few milliseconds and costs them their peak figures."""
        self.only_limited = only_limited
        self._unified = (mount / "cgroup.controllers").exists()
        self._parents = _unified_parent(mount, parent) if self._unified else _parents_by_controller(mount, parent)
        self._numbers = itertools.count(1)
        for folder in dict.fromkeys(self._parents.values()):
            _remove_leftovers(folder)

    def __repr__(self) -> str:
        return f"<Cgroups v{2 if self._unified else 1} {' '.join(sorted(self._parents))}>"

    @property
    def controllers(self) -> frozenset[str]:
        """Which of memory, pids and cpu can be limited."""
        return frozenset(self._parents)

    @contextlib.contextmanager
    def group(self, limits: Limits) -> Iterator[Group]:
        """Make a group for one run; afterwards whatever is in it is killed, and it is gone."""
        name = f"tvix-{os.getpid()}-{next(self._numbers)}"
        group = Group({key: folder / name for key, folder in self._parents.items()}, unified=self._unified)
        try:
            for folder in self._parents.values():
                (folder / name).mkdir(exist_ok=True)
            group.limit(limits)
        except OSError as error:
            group.remove()
            raise Unavailable(f"cgroup {name} cannot be set up: {error}") from error
        try:
            yield group
        finally:
            group.remove()


@contextlib.contextmanager
def group_for(cgroups: Cgroups | None, limits: Limits) -> Iterator[Group]:
    """Make a group for one run, or none when there are no cgroups."""
    if cgroups is None or (cgroups.only_limited and not limits.need_group):
        yield Group({}, unified=True)
    else:
        with cgroups.group(limits) as group:
            yield group


def _unified_parent(mount: Path, parent: str) -> dict[str, Path]:
    folder = mount / parent.strip("/")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        offered = set((folder / "cgroup.controllers").read_text().split()) & {"memory", "pids", "cpu"}
        (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in sorted(offered)))
    except OSError as error:
        raise FailedPrecondition(f"cgroup parent {folder} cannot be used: {error.strerror}") from error
    if not offered:
        raise FailedPrecondition(f"cgroup parent {folder} has none of the controllers memory, pids and cpu")
    return dict.fromkeys(sorted(offered), folder)


def _parents_by_controller(mount: Path, parent: str) -> dict[str, Path]:
    parents: dict[str, Path] = {}
    reason = "no such hierarchy"
    for name in ("memory", "pids", "cpu"):
        folder = mount / name / parent.strip("/")
        if (mount / name).is_dir():
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                reason = error.strerror or str(error)
            else:
                parents[name] = folder
    if not parents:
        raise FailedPrecondition(f"cgroup parent {parent!r} cannot be made below {mount}: {reason}")
    return parents


def _remove_leftovers(parent: Path) -> None:
    for folder in parent.glob("tvix-*-*"):
        owner = folder.name.split("-")[1]
        if owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
            Group({"": folder}, unified=True).remove()
