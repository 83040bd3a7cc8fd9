"""The bases hand on everything, and know all methods there are."""

import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.contracts.blob_store import BlobStoreContract
from tests.contracts.record_store import check_record_store, closing
from tvix.cas.forwarding import ForwardingBlobStore, ForwardingRecordStore
from tvix.cas.interfaces import BlobStore, RecordStore
from tvix.cas.memory import MemoryBlobStore, MemoryRecordStore


def test_no_method_is_forgotten() -> None:
    for interface, base in ((BlobStore, ForwardingBlobStore), (RecordStore, ForwardingRecordStore)):
        methods = [name for name, _ in inspect.getmembers(interface, inspect.isfunction) if not name.startswith("_")]
        assert methods
        assert [name for name in methods if name not in vars(base)] == []


async def test_records_keep_the_contract() -> None:
    await check_record_store(closing(lambda: ForwardingRecordStore(MemoryRecordStore())))


def test_the_repr_shows_the_stack() -> None:
    assert repr(ForwardingBlobStore(MemoryBlobStore())) == "<ForwardingBlobStore <MemoryBlobStore 0 blobs>>"


class TestForwarding(BlobStoreContract):
    @asynccontextmanager
    async def make(self, tmp_path: Path) -> AsyncIterator[BlobStore]:
        yield ForwardingBlobStore(MemoryBlobStore())
