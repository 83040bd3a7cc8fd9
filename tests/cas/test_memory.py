"""The stores in memory keep to the contracts."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.contracts.blob_store import BlobStoreContract
from tvix.cas.memory import MemoryBlobStore


class TestMemoryBlobStore(BlobStoreContract):
    @asynccontextmanager
    async def make(self, tmp_path: Path) -> AsyncGenerator[MemoryBlobStore, None]:
        yield MemoryBlobStore()
