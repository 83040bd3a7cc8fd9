"""Starting: making the folder, cleaning up after processes that died, loading the index.

Locks, in the order in which they are taken:
    lock            shared by every process that has the store open; exclusive while one starts alone
    temp/<x>.lock   exclusive, one per process: the temporary files temp/<x>-* belong to it
    journal.lock    around each append, see journal.py

What a start alone does: removes temporary files; compacts the journal if most of it is history; and
if the last process did not close the store in good order, removes files that no record names (their
writers died in between). If the kernel has been restarted since, written pages may be lost: then each
blob recorded since the last good close has its length checked, and the last ones their hash too;
those that fail are dropped.
"""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from tvix.cas.digest import Digest, digest_of_chunks
from tvix.cas.disk import journal, large_files
from tvix.cas.disk.config import MIB, DiskConfig
from tvix.cas.disk.index import Index, PackUse
from tvix.cas.disk.journal import RECORD_BYTES, Journal, decode, encode, encode_note
from tvix.cas.disk.location import OWN_FILE, unpack_location
from tvix.cas.disk.packs import OpenFile, lock_pack
from tvix.errors import TvixError

log = logging.getLogger(__name__)

_FOLDERS = ("blobs", "packs", "pins", "temp")
_UNSURE_SECONDS = 120.0
"""What was recorded in this time before a power loss is hashed anew, whatever was flushed."""
_MIN_HISTORY_BYTES = 4 * MIB


@dataclass(slots=True)
class Opened:
    """A store that has been opened, and the locks that say so."""

    journal: Journal
    index: Index
    lock: OpenFile
    temp_lock: OpenFile
    temp_prefix: str


def boot_number() -> int:
    """Return what identifies this run of the kernel: while it lasts, written pages cannot be lost."""
    try:
        return UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip()).int
    except (OSError, ValueError):
        return 0


def open_folder(config: DiskConfig, now: Callable[[], float], boot: int) -> Opened:
    """Open the store. Blocks; reads the whole journal."""
    for name in _FOLDERS:
        (config.path / name).mkdir(parents=True, exist_ok=True)
    lock = OpenFile(config.path / "lock", os.O_RDWR | os.O_CREAT)
    alone = _try_lock(lock, fcntl.LOCK_EX)
    if not alone:
        fcntl.flock(lock.fd, fcntl.LOCK_SH)
    _remove_temp_files(config)
    file, index = Journal(config.path / "journal"), Index()
    load(file, index)
    if alone:
        _start_alone(config, file, index, now(), boot)
        fcntl.flock(lock.fd, fcntl.LOCK_SH)
    index.evictions = index.evicted_bytes = 0
    prefix = f"{config.path}/temp/{secrets.token_hex(8)}"
    temp_lock = OpenFile(f"{prefix}.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(temp_lock.fd, fcntl.LOCK_EX)
    return Opened(file, index, lock, temp_lock, f"{prefix}-")


def close_folder(opened: Opened, config: DiskConfig, flush: Callable[[], None], now: float) -> None:
    """Close the store; the last one to do so leaves the mark of a good close. Blocks."""
    flushed = config.fsync != "never"
    if flushed:
        flush()
    if _try_lock(opened.lock, fcntl.LOCK_EX):
        _remove_temp_files(config)
        number = 0 if flushed else boot_number()
        opened.journal.append(encode_note(journal.CLEAN, number, now), flush=flushed)
    Path(opened.temp_prefix[:-1] + ".lock").unlink(missing_ok=True)
    opened.journal.close()
    opened.temp_lock.close()
    opened.lock.close()


def _try_lock(file: OpenFile, kind: int) -> bool:
    try:
        fcntl.flock(file.fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def load(file: Journal, index: Index) -> None:
    """Read the journal to its end."""
    collecting = gc.isenabled()
    gc.disable()  # a million new tuples would be walked again and again
    try:
        while data := file.read_new(bulk=True):
            if taken := index.apply(decode(data)):
                file.unread(len(data) // RECORD_BYTES - taken)
                if not file.follow():
                    index.clear()
    finally:
        if collecting:
            gc.enable()


def _remove_temp_files(config: DiskConfig) -> None:
    """Remove the temporary files of processes that died; flush in their stead what they wrote."""
    folder = config.path / "temp"
    died = False
    for path in folder.glob("*.lock"):
        if lock_pack(path):
            for temp_path in folder.glob(f"{path.stem}-*"):
                temp_path.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            died = True
    if died and config.fsync != "never":
        os.sync()


def _start_alone(config: DiskConfig, file: Journal, index: Index, now: float, boot: int) -> None:
    last = file.last_record()
    if last.op != journal.HEADER and not (last.op == journal.CLEAN and last.location in (0, boot)):
        recent = _since_close(config.path / "journal")
        if recent.boot != boot:
            _drop_damaged(config, file, index, recent, now)
        _remove_strays(config.path, index)
    live_bytes = RECORD_BYTES * len(index.blobs)
    if file.size_bytes > 2 * live_bytes + _MIN_HISTORY_BYTES:
        path = config.path / "journal.new"
        write_snapshot(path, index.blobs.items(), index.packs, flush=config.fsync != "never")
        file.replace(path, file.position, now)
        load(file, index)
    file.append(encode_note(journal.START, boot, now))
    load(file, index)


class _SinceClose(NamedTuple):
    """What the journal says since the last good close."""

    boot: int
    times: dict[Digest, float]
    """When each blob was put where it is."""


def _since_close(path: Path) -> _SinceClose:
    boot = 0
    times: dict[Digest, float] = {}
    with path.open("rb") as file:
        while data := file.read(RECORD_BYTES * 65536):
            for op, digest, location, time in decode(data[: len(data) // RECORD_BYTES * RECORD_BYTES]):
                if op == journal.START:
                    boot = location
                elif op == journal.CLEAN and location == 0:
                    times.clear()
                elif digest is not None and op in (journal.PUT, journal.RELOCATE):
                    times[digest] = time
    return _SinceClose(boot, times)


def _drop_damaged(config: DiskConfig, file: Journal, index: Index, recent: _SinceClose, now: float) -> None:
    unsure_from = max(recent.times.values(), default=0.0) - max(_UNSURE_SECONDS, 2 * config.fsync_interval_seconds)
    damaged = [
        (digest, index.blobs[digest])
        for digest, time in recent.times.items()
        if digest in index.blobs and not _is_sound(config.path, digest, index.blobs[digest], hashed=time >= unsure_from)
    ]
    log.warning("store=%s was not closed before a restart of the machine; dropped=%d blobs", config.path, len(damaged))
    for digest, location in damaged:
        if unpack_location(location).pack == OWN_FILE:
            Path(large_files.path_of(config.path / "blobs", digest, location)).unlink(missing_ok=True)
    if damaged:
        file.append(b"".join([encode(journal.EVICT, *blob, now) for blob in damaged]), flush=True)
        load(file, index)


def _is_sound(path: Path, digest: Digest, location: int, *, hashed: bool) -> bool:
    pack, offset, stored_bytes, _ = unpack_location(location)
    try:
        file = OpenFile(path / "packs" / str(pack) if pack else large_files.path_of(path / "blobs", digest, location))
        size = os.fstat(file.fd).st_size
        if size < offset + stored_bytes if pack else size != stored_bytes:
            return False
        return not hashed or digest_of_chunks(large_files.read_blob(file, digest, location), digest.function) == digest
    except (OSError, TvixError):
        return False


def _remove_strays(path: Path, index: Index) -> None:
    """Remove blob files and packs that no record names."""
    blobs = path / "blobs"
    named = {
        large_files.path_of(blobs, digest, location)
        for digest, location in index.blobs.items()
        if unpack_location(location).pack == OWN_FILE
    }
    for file in blobs.glob("*/*/*"):
        if str(file) not in named:
            file.unlink(missing_ok=True)
    for file in (path / "packs").iterdir():
        if not (file.name.isdecimal() and int(file.name) in index.packs):
            with suppress(OSError):
                file.unlink()


def write_snapshot(
    path: Path, blobs: Iterable[tuple[Digest, int]], packs: Mapping[int, PackUse], *, flush: bool
) -> None:
    """Write a journal without history, its first record left blank. Blocks."""
    if flush:
        os.sync()  # a snapshot tells no more which blobs are recent, so all of them are to be safe
    with path.open("wb") as file:
        file.write(bytes(RECORD_BYTES))
        for pack, use in packs.items():
            file.write(encode_note(journal.PACK_END, use.end << 32 | pack, 0.0))
        for digest, location in blobs:
            file.write(encode(journal.PUT, digest, location, 0.0))
        file.flush()
        if flush:
            os.fdatasync(file.fileno())
