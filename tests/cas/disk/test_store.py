"""DiskBlobStore: the contract, in both forms at rest."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.contracts.blob_store import BlobStoreContract
from tvix.cas.disk import DiskBlobStore, DiskConfig


class TestPlain(BlobStoreContract):
    @asynccontextmanager
    async def make(self, tmp_path: Path) -> AsyncGenerator[DiskBlobStore, None]:
        store = await DiskBlobStore.open(DiskConfig(path=tmp_path / "cas"))
        yield store
        await store.close()
        assert list((tmp_path / "cas" / "temp").iterdir()) == []


class TestCompressed(BlobStoreContract):
    @asynccontextmanager
    async def make(self, tmp_path: Path) -> AsyncGenerator[DiskBlobStore, None]:
        store = await DiskBlobStore.open(DiskConfig(path=tmp_path / "cas", compression="zstd"))
        yield store
        await store.close()
        assert list((tmp_path / "cas" / "temp").iterdir()) == []
