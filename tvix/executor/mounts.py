"""mount(2), umount2(2) and namespaces, through the C library. Blocking calls; Linux only.

A worker calls `enter_private_namespace` first thing: what it mounts afterwards is seen by its children alone
and is gone when the last of them is, however they died. Unprivileged, the namespace comes with a user
namespace in which the worker is root; file systems that may be mounted there are FUSE, overlay, tmpfs and bind
mounts.
"""

from __future__ import annotations

import ctypes
import os
import re
import stat
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from tvix.errors import FailedPrecondition, Unavailable

MS_RDONLY, MS_NOSUID, MS_NODEV = 0x1, 0x2, 0x4
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x20, 0x1000, 0x4000, 0x40000
_MNT_DETACH = 2
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: Path, fstype: str, flags: int = 0, options: str = "") -> None:
    """Mount a file system; OSError says what was to be mounted where, and with which options."""
    result = _libc.mount(source.encode(), os.fsencode(target), fstype.encode(), flags, options.encode() or None)
    _check(result, f"mount {fstype} on {target} with options {options!r}")


def mount_bind(source: Path, target: Path, *, read_only: bool = False) -> None:
    """Show `source` at `target` as well. Flags of bind mounts take effect in a second step only."""
    result = _libc.mount(os.fsencode(source), os.fsencode(target), None, _MS_BIND, None)
    _check(result, f"bind {source} on {target}")
    if read_only:
        flags = _MS_REMOUNT | _MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV
        _check(_libc.mount(None, os.fsencode(target), None, flags, None), f"remount {target} read-only")


def mount_overlay(lower: Path, upper: Path, work: Path, target: Path) -> None:
    """Mount `lower`, which stays as it is, at `target` with changes going to `upper`.

    `upper` and `work` are empty folders of one file system. Nothing is synced to disk (`volatile`): a build
    root does not outlive its worker. Folders of `lower` can be renamed where redirects are allowed, which they
    are not in a user namespace; there rename(2) says EXDEV and programs copy instead.
    """
    special = "userxattr" if in_user_namespace() else "redirect_dir=on"
    layers = f"lowerdir={_escape(lower)},upperdir={_escape(upper)},workdir={_escape(work)}"
    options = f"{layers},index=off,metacopy=off,volatile,{special}"
    mount("overlay", target, "overlay", MS_NOSUID | MS_NODEV, options)


def _escape(path: Path) -> str:
    return re.sub(r"([\\,:])", r"\\\1", str(path))


def detach(target: Path) -> None:
    """Unmount lazily: gone from the tree at once, destroyed when its last user is. Fine if nothing is there."""
    if _libc.umount2(os.fsencode(target), _MNT_DETACH) != 0 and ctypes.get_errno() not in (2, 22):
        number = ctypes.get_errno()
        raise OSError(number, f"unmount {target}: {os.strerror(number)}")


def mounts_below(folder: Path) -> list[Path]:
    """Return the mount points at and below `folder` (absolute, resolved), the last mounted first."""
    return [path for path, _ in reversed(_mount_table()) if path == folder or folder in path.parents]


def device_of_mount(target: Path) -> str:
    """Return `major:minor` of what is mounted at `target`, without touching it."""
    return dict(_mount_table())[target]


def _mount_table() -> list[tuple[Path, str]]:
    # mountinfo: id, parent, major:minor, root, mount point, … with blanks and the like as \ooo
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    return [(Path(_unescape(fields[4])), fields[2]) for fields in map(str.split, lines)]


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def in_user_namespace() -> bool:
    """Whether this process is in a user namespace other than the first."""
    try:
        ranges = Path("/proc/self/uid_map").read_text().split()
    except OSError:
        return False
    return ranges != ["0", "0", "4294967295"]


def unshare(flags: int) -> None:
    """Move the calling thread to new namespaces; a user namespace asks for a single-threaded process."""
    _check(_libc.unshare(flags), f"unshare({flags:#x})")


def setns(namespace_file: Path, flags: int) -> None:
    """Move the calling thread to the namespace that a file of /proc/PID/ns stands for."""
    fd = os.open(namespace_file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(fd, flags), f"setns({namespace_file})")
    finally:
        os.close(fd)


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send this process a signal when its parent (the thread that made it) is gone."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def enter_private_namespace() -> None:
    """Give this process mounts of its own, invisible outside; unprivileged, as root of a user namespace.

    Call before any thread is started. Raises FailedPrecondition, saying why, where the kernel or its settings
    forbid it; the process is unchanged then.
    """
    uid, gid = os.geteuid(), os.getegid()
    privileged = uid == 0
    if not privileged and threading.active_count() > 1:
        raise AssertionError("a user namespace can be entered by a single-threaded process only")
    try:
        unshare(CLONE_NEWNS if privileged else CLONE_NEWUSER | CLONE_NEWNS)
    except OSError as error:
        raise FailedPrecondition(f"no private mount namespace: {error.strerror}") from error
    if not privileged:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    _check(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "make mounts private")


@dataclass(frozen=True, slots=True)
class Features:
    """What this process may do; each reason is empty when the feature is there."""

    fuse_reason: str
    overlay_reason: str
    user_namespace_reason: str

    @property
    def fuse(self) -> bool:
        """Whether FUSE file systems can be mounted."""
        return not self.fuse_reason

    @property
    def overlay(self) -> bool:
        """Whether an overlay can be mounted with its upper layer in the probed folder."""
        return not self.overlay_reason

    @property
    def user_namespace(self) -> bool:
        """Whether a new process could have a user namespace of its own."""
        return not self.user_namespace_reason


def probe(scratch: Path) -> Features:
    """Find out what works, by trying; `scratch` is an existing folder where upper layers would lie."""
    return Features(_why_no_fuse(), _why_no_overlay(scratch), _why_no_user_namespace())


def _why_no_fuse() -> str:
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    try:
        if not stat.S_ISCHR(os.fstat(fd).st_mode):
            return "/dev/fuse is not a device"
        with tempfile.TemporaryDirectory() as folder:
            options = f"fd={fd},rootmode=40000,user_id=0,group_id=0"
            mount("tvix-probe", Path(folder), "fuse", MS_NOSUID | MS_NODEV, options)
            detach(Path(folder))
    except OSError as error:
        return f"mount: {os.strerror(error.errno or 0)}"
    finally:
        os.close(fd)
    return ""


def _why_no_overlay(scratch: Path) -> str:
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folders = [Path(name, part) for part in ("lower", "upper", "work", "merged")]
        for folder in folders:
            folder.mkdir()
        lower, upper, work, merged = folders
        try:
            mount_overlay(lower, upper, work, merged)
        except OSError as error:
            return f"mount: {os.strerror(error.errno or 0)}"
        detach(merged)
    return ""


def _why_no_user_namespace() -> str:
    # In a child, since the namespace cannot be left again.
    program = f"import ctypes; c = ctypes.CDLL(None, use_errno=True); r = c.unshare({CLONE_NEWUSER | CLONE_NEWNS})"
    program += "; raise SystemExit(ctypes.get_errno() if r else 0)"
    try:
        number = subprocess.run([sys.executable, "-I", "-S", "-c", program], check=False).returncode
    except OSError as error:
        return str(error)
    return "" if number == 0 else os.strerror(number)


def unavailable_from(error: OSError, what: str) -> Unavailable:
    """Return the error of ours for a system call that failed in the middle of `what`."""
    return Unavailable(f"{what}: {error.strerror or error}")
