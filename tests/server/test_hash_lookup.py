"""Finding blobs by hash alone."""

from pathlib import Path

from tvix.cas.digest import EMPTY, digest_of
from tvix.cas.disk.config import DiskConfig
from tvix.cas.disk.store import DiskBlobStore
from tvix.server.hash_lookup import HashLookup


async def test_blobs_stored_before_and_after_and_by_others_are_found(tmp_path: Path) -> None:
    here, there = await DiskBlobStore.open(DiskConfig(tmp_path)), await DiskBlobStore.open(DiskConfig(tmp_path))
    try:
        lookup = HashLookup(here)
        for store, data in ((here, b"before"), (here, b"after"), (there, b"by another process")):
            digest = digest_of(data)
            assert lookup.find("sha256", digest.hash) is None
            await store.put_many([(digest, data)])
            assert lookup.find("sha256", digest.hash) == digest
            assert lookup.find("blake3", digest.hash) is None
    finally:
        await here.close()
        await there.close()


async def test_the_empty_blob_is_known(tmp_path: Path) -> None:
    store = await DiskBlobStore.open(DiskConfig(tmp_path))
    assert HashLookup(store).find("blake3", EMPTY["blake3"].hash) == EMPTY["blake3"]
    await store.close()
