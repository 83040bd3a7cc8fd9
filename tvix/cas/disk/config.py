"""What an operator can say about a disk store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tvix.errors import InvalidInput

FsyncPolicy = Literal["never", "interval", "always"]
Compression = Literal["none", "zstd"]

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class DiskConfig:
    """Settings of one disk store; every process that opens the same `path` should use the same ones.

    fsync: under any policy the death of a process, even by kill -9, loses nothing acknowledged: the
    bytes are the kernel's by then. Power loss is another matter: "always" flushes before a write is
    acknowledged; "interval" flushes in the background, so that at most the last
    `fsync_interval_seconds` are lost; "never" leaves it to the kernel (some 30 s). What was lost is
    found and dropped at the next start, see recovery.py.
    """

    path: Path
    max_size_bytes: int | None = None
    """Hard limit of the space used on disk, block-rounded; None: as much as the disk has."""
    high_watermark: float = 0.95
    """Fraction of max_size_bytes above which the evictor starts."""
    low_watermark: float = 0.85
    """Fraction of max_size_bytes down to which it then evicts."""
    min_free_bytes: int = 256 * MIB
    """Free space of the file system that is left to others; below it we evict, then refuse."""
    fsync: FsyncPolicy = "interval"
    fsync_interval_seconds: float = 3.0
    compression: Compression = "none"
    compression_level: int = 3
    small_blob_bytes: int = 128 * 1024
    """Blobs up to this size share pack files; larger ones get a file each."""
    max_pack_bytes: int = 256 * MIB
    """A pack that has grown to this size is sealed; never more than 1/32 of max_size_bytes."""
    touch_seconds: float = 60.0
    """A use of a blob is noted for LRU at most once in this time."""
    room_wait_seconds: float = 5.0
    """How long a write that meets the hard limit waits for the evictor before it is refused."""

    def __post_init__(self) -> None:
        if not 0 < self.low_watermark <= self.high_watermark <= 1:
            raise InvalidInput(
                f"low_watermark {self.low_watermark} and high_watermark {self.high_watermark}: "
                "must be 0 < low <= high <= 1",
                field="low_watermark",
            )
        if self.max_size_bytes is not None and self.max_size_bytes < MIB:
            raise InvalidInput(f"max_size_bytes: {self.max_size_bytes} is less than 1 MiB", field="max_size_bytes")

    @property
    def pack_bytes(self) -> int:
        """Size at which a pack is sealed: small enough that eviction can free space pack by pack."""
        if self.max_size_bytes is None:
            return self.max_pack_bytes
        return max(MIB // 16, min(self.max_pack_bytes, self.max_size_bytes // 32))
