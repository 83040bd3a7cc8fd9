"""The sandbox made by an OCI runtime (crun or runc): the same view as bubblewrap's, from a bundle
written for each action.

Reference: OCI runtime specification, config.md. Cgroups are not left to the runtime, so that limits work
the same way in every sandbox. The runtime runs below a supervisor (supervise.py): it has no way of
dying with us, and a container does not die with it. Two things differ from the other sandboxes: the
command is process 1 (a signal that it has no handler for reaches it from outside only), and runtimes
set HOME when the command's environment does not.

    scratch/rootfs/       the folders and symlinks of the host-tools view; what is in them is mounted
    scratch/state/        the runtime's own
    scratch/N/config.json, log.json
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvix.errors import FailedPrecondition, Unavailable
from tvix.executor.cgroups import Cgroups
from tvix.executor.host_tools import BUILD_DIRECTORY, NETWORK_FILES, shown_paths
from tvix.executor.interfaces import Exit, Output, Process, Profile, Sandbox
from tvix.executor.mount_points import mount_points
from tvix.executor.sandbox import prepare_process, report_unstartable, why_true_fails
from tvix.executor.scratch import remove_tree
from tvix.executor.unconfined import supervised

_MASKED = ("kcore", "keys", "latency_stats", "timer_list", "timer_stats", "sched_debug", "scsi", "acpi")
_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")


@dataclass(frozen=True, slots=True)
class OciConfig:
    """How the sandbox is set up."""

    scratch: Path
    """A folder of ours; what is in it is removed."""
    programs: tuple[str, ...] = ("crun", "runc")
    """Runtimes, names or paths; the first that is installed is used."""
    extra_read_only: tuple[str, ...] = ()
    """More paths of the host that commands using its tools may read."""


class OciSandbox(Sandbox):
    """Runs each process in a container of its own. See the module."""

    name = "oci"

    def __init__(self, config: OciConfig, cgroups: Cgroups | None = None) -> None:
        self._cgroups = cgroups
        found = [path for path in map(shutil.which, config.programs) if path is not None]
        if not found:
            names = " or ".join(config.programs)
            raise FailedPrecondition(f"no OCI runtime is installed; install {names}, or choose another sandbox")
        self._program = os.path.realpath(found[0])
        self._scratch = config.scratch.absolute()
        self._rootfs = self._scratch / "rootfs"
        self._shown = list(shown_paths(config.extra_read_only))
        self._numbers = itertools.count(1)
        # crun 1.8 refuses hosts that have both versions, even when told to leave cgroups alone.
        self._hidden = ["/sys/fs/cgroup"] if os.path.isdir("/sys/fs/cgroup/unified") else []
        prepare_process()
        self._prepare_scratch()

    def __repr__(self) -> str:
        return f"<OciSandbox {self._program}>"

    def _prepare_scratch(self) -> None:
        remove_tree(self._scratch)
        self._rootfs.mkdir(parents=True)
        for path in ("/proc", "/dev", "/tmp", BUILD_DIRECTORY):
            (self._rootfs / path[1:]).mkdir()
        for path, link_target in self._shown:
            place = self._rootfs / path[1:]
            place.parent.mkdir(parents=True, exist_ok=True)
            if link_target is not None:
                place.symlink_to(link_target)
            elif os.path.isdir(path):
                place.mkdir(exist_ok=True)
            else:
                place.touch()
        for path in NETWORK_FILES:
            (self._rootfs / path[1:]).touch()

    async def why_not(self) -> str:
        return await why_true_fails(self)

    async def run(self, process: Process, stdout: Output, stderr: Output) -> Exit:
        name = f"tvix-{os.getpid()}-{next(self._numbers)}"
        place = self._scratch / name
        with contextlib.ExitStack() as cleanup:
            if process.profile is Profile.INPUT_ROOT:
                cleanup.enter_context(mount_points(process.root))
            place.mkdir()
            cleanup.callback(remove_tree, place)
            # A killed runtime leaves its notes.
            cleanup.callback(remove_tree, self._scratch / "state" / name)
            (place / "config.json").write_text(json.dumps(self._bundle(process)))
            ended = await self._supervise(process, place, name, stdout, stderr)
            if ended.exit_code == 0 or ended.timed_out:
                return ended
            error = await asyncio.to_thread(_error_in, place / "log.json")
        if not error:
            return ended
        if "executable file" not in error and "exec" not in error:
            raise Unavailable(f"{self._program} failed: {error}")
        return Exit(report_unstartable(process, error, stderr), False, False, ended.usage)

    async def _supervise(self, process: Process, place: Path, name: str, stdout: Output, stderr: Output) -> Exit:
        job: dict[str, Any] = {
            "arguments": self._arguments(place, name),
            "environment": {},
            "directory": str(place),
            "root": None,
            "hidden": self._hidden,
        }
        return await supervised(process, job, stdout, stderr, self._cgroups)

    def _arguments(self, place: Path, name: str) -> list[str]:
        arguments = [self._program, "--root", str(self._scratch / "state"), "--log", str(place / "log.json")]
        arguments += ["--log-format", "json"]
        if os.path.basename(self._program) == "crun":
            arguments += ["--cgroup-manager", "disabled"]
        return [*arguments, "run", "--bundle", str(place), name]

    def _bundle(self, process: Process) -> dict[str, Any]:
        own_root = process.profile is Profile.INPUT_ROOT
        base = "/" if own_root else BUILD_DIRECTORY
        uid = os.getuid() if process.uid is None else process.uid
        gid = os.getgid() if process.gid is None else process.gid
        namespaces = ["pid", "ipc", "uts", "mount", "user", *([] if process.network else ["network"])]
        return {
            "ociVersion": "1.0.0",
            "process": {
                "terminal": False,
                "user": {"uid": uid, "gid": gid},
                "args": list(process.arguments),
                "env": [f"{name}={value}" for name, value in process.environment.items()],
                "cwd": os.path.join(base, process.working_directory) if process.working_directory else base,
                "capabilities": {},
                "noNewPrivileges": True,
            },
            "root": {"path": str(process.root if own_root else self._rootfs), "readonly": not own_root},
            "hostname": "tvix",
            "mounts": [
                *([] if own_root else self._host_mounts(process)),
                *_KERNEL_MOUNTS,
                *([] if process.own_tmp else [_TMP]),
            ],
            "linux": {
                "namespaces": [{"type": kind} for kind in namespaces],
                "uidMappings": [{"containerID": uid, "hostID": os.getuid(), "size": 1}],
                "gidMappings": [{"containerID": gid, "hostID": os.getgid(), "size": 1}],
                "maskedPaths": [f"/proc/{name}" for name in _MASKED],
                "readonlyPaths": [f"/proc/{name}" for name in _READ_ONLY],
            },
        }

    def _host_mounts(self, process: Process) -> list[dict[str, Any]]:
        paths = [path for path, link_target in self._shown if link_target is None]
        paths += [path for path in NETWORK_FILES if process.network and os.path.exists(path)]
        mounts = [_bind(path, path, "ro") for path in paths]
        return [*mounts, _bind(str(process.root), BUILD_DIRECTORY, "rw")]


def _bind(source: str, destination: str, mode: str) -> dict[str, Any]:
    return {"destination": destination, "source": source, "type": "none", "options": ["rbind", mode, "nosuid"]}


def _mount(destination: str, kind: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": kind, "options": list(options)}


_KERNEL_MOUNTS = (
    _mount("/proc", "proc"),
    _mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
    _mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
    _mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777"),
)
_TMP = _mount("/tmp", "tmpfs", "nosuid", "nodev", "mode=1777")


def _error_in(log_file: Path) -> str:
    """Return the last error that the runtime logged, empty if there is none."""
    error = ""
    with contextlib.suppress(OSError):
        for line in log_file.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if entry.get("level") in ("error", "fatal"):
                    error = str(entry.get("msg", ""))
    return error
