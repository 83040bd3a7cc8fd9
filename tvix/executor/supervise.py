"""A process between the worker and a program that makes no namespace of its own: `python supervise.py FD`.

Run as a script, with the standard library only, by its path. What to run is JSON in the file that the
descriptor FD refers to; how it ended is written over it. Everything that the program starts, however
it detaches itself, is a descendant of this process, which adopts orphans, and is killed when the
program ends, when SIGTERM comes, and when the worker dies.

Input: arguments, environment, directory, root (a folder to make `/`, or null), own_tmp (whether its /tmp
is left as it is), hidden (folders to show empty), parent (the worker's process id). Output: exit_code,
error (why the program could not be started, else empty), user_seconds, system_seconds,
peak_memory_bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
_libc = ctypes.CDLL(None, use_errno=True)


class _Stopped(BaseException):
    """SIGTERM came."""


def main(descriptor: int) -> None:
    """Run what the descriptor says and write there how it ended."""
    job = json.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, _stop)
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    ended: dict[str, Any] = {"exit_code": 137, "error": ""}
    try:
        if os.getppid() == job["parent"]:
            ended["exit_code"], ended["error"] = _run(job, descriptor)
    except _Stopped:
        pass
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _kill_descendants()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended |= {
        "user_seconds": used.ru_utime,
        "system_seconds": used.ru_stime,
        "peak_memory_bytes": used.ru_maxrss * 1024,
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(ended).encode(), 0)


def _stop(signal_number: int, frame: object) -> NoReturn:
    raise _Stopped


def _run(job: dict[str, Any], descriptor: int) -> tuple[int, str]:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(descriptor)
        _become(job, write)
    os.close(write)
    with os.fdopen(read) as failure:
        error = failure.read()
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return (code if code >= 0 else 128 - code), error


def _become(job: dict[str, Any], failure: int) -> NoReturn:
    """Turn into the program; on failure write why and exit."""
    try:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.setsid()
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with contextlib.suppress(OSError):
                signal.signal(number, signal.SIG_DFL)
        _hide(job.get("hidden", ()))
        if job["root"] is not None:
            _change_root(job["root"], own_tmp=job["own_tmp"])
        os.chdir(job["directory"])
        _execute(job["arguments"], job["environment"])
    except OSError as error:
        os.write(failure, (error.strerror or str(error)).encode())
    except BaseException as error:
        os.write(failure, repr(error).encode())
    finally:
        os._exit(126)


def _execute(arguments: list[str], environment: dict[str, str]) -> None:
    try:
        os.execvpe(arguments[0], arguments, environment)
    except OSError as error:
        if error.errno == errno.ENOEXEC:  # a script without #!, which execvp(3) gives to the shell
            os.execve("/bin/sh", ["sh", *arguments], environment)
        if error.errno == errno.ENOTDIR:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
        raise


def _change_root(root: str, *, own_tmp: bool) -> None:
    """Make a folder `/`, with the host's /dev, a /proc and an empty /tmp that only the program sees."""
    _unshare_mounts()
    _mount("/dev", f"{root}/dev", None, MS_BIND | MS_REC)
    _mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV)
    if not own_tmp:
        _mount("tmpfs", f"{root}/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    os.chroot(root)


def _hide(folders: Sequence[str]) -> None:
    if folders:
        _unshare_mounts()
    for folder in folders:
        _mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV)


def _unshare_mounts() -> None:
    """Enter a mount namespace of our own; unprivileged, in a user namespace in which we stay who we are."""
    uid, gid = os.geteuid(), os.getegid()
    _check(_libc.unshare(CLONE_NEWNS if uid == 0 else CLONE_NEWNS | CLONE_NEWUSER), "unshare")
    if uid != 0:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    _mount(None, "/", None, MS_REC | MS_PRIVATE)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [text.encode() if text is not None else None for text in (source, target, kind)]
    data = options.encode() if options is not None else None
    _check(_libc.mount(*encoded, ctypes.c_ulong(flags), data), f"mount {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _kill_descendants() -> None:
    """Kill and reap until there are none: the children of a killed one become ours."""
    while True:
        for child in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


def _children() -> list[int]:
    own, found = os.getpid(), []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                if int(file.read().rpartition(b")")[2].split()[1]) == own:
                    found.append(int(name))
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]))
