"""The disk store: crash-safe, shared by many processes, small blobs in packs. See store.py."""

from tvix.cas.disk.config import DiskConfig, FsyncPolicy
from tvix.cas.disk.store import DiskBlobStore, DiskStatistics, ZstdSource

__all__ = ["DiskBlobStore", "DiskConfig", "DiskStatistics", "FsyncPolicy", "ZstdSource"]
