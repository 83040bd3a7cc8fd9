"""The store of a remote worker: what it keeps near, and what it asks afar."""

from pathlib import Path

import pytest

from tvix.cas.digest import digest_of
from tvix.cas.disk.config import DiskConfig
from tvix.cas.disk.store import DiskBlobStore
from tvix.cas.interfaces import read_whole
from tvix.cas.memory import MemoryBlobStore
from tvix.errors import InvalidInput
from tvix.server.worker_store import WorkerBlobStore, open_worker_store, worker_store_url

DATA = b"an input"
DIGEST = digest_of(DATA)


async def test_what_was_read_once_is_read_from_near(tmp_path: Path) -> None:
    near, far = await DiskBlobStore.open(DiskConfig(tmp_path)), MemoryBlobStore()
    store = WorkerBlobStore(near, far)
    await far.put_many([(DIGEST, DATA)])
    assert await read_whole(store, DIGEST) == DATA
    far.blobs.clear()
    assert await read_whole(store, DIGEST) == DATA
    assert await store.get_many([DIGEST]) == [DATA]
    await store.close()


async def test_what_is_near_is_still_missing_when_the_server_lacks_it(tmp_path: Path) -> None:
    near, far = await DiskBlobStore.open(DiskConfig(tmp_path)), MemoryBlobStore()
    store = WorkerBlobStore(near, far)
    await near.put_many([(DIGEST, DATA)])
    assert await store.find_missing([DIGEST]) == {DIGEST}
    await store.put_many([(DIGEST, DATA)])
    assert far.blobs == {DIGEST: DATA}
    await store.close()


async def test_the_url_says_it_all(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    store = await open_worker_store(worker_store_url(folder, "grpc://127.0.0.1:1/in/stance", 10 * 2**20))
    assert (store.near.config.path, store.near.config.max_size_bytes) == (folder, 10 * 2**20)
    assert "127.0.0.1:1" in repr(store)
    await store.close()


@pytest.mark.parametrize("url", ["grpc://x:1", "cached:///folder", "cached://?server=grpc://x:1", ""])
async def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="cached:///FOLDER"):
        await open_worker_store(url)
