"""The stores that the processes of a server share."""

from pathlib import Path

import pytest

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import digest_of, digest_to_proto
from tvix.cas.interfaces import ActionKey
from tvix.errors import Unavailable
from tvix.server.config import Config, load_config
from tvix.server.stores import cas_services, disk_config, open_stores


def config(folder: Path, **store: object) -> Config:
    return load_config(None, {"server": {"state_dir": str(folder)}, "store": store, "assets": {"fetch_hosts": ["a.b"]}})


async def test_what_one_process_records_another_sees_and_a_result_lives_no_longer_than_its_blobs(
    tmp_path: Path,
) -> None:
    key, output = ActionKey("", digest_of(b"action")), digest_of(b"output")
    result = re_pb2.ActionResult(output_files=[re_pb2.OutputFile(path="o", digest=digest_to_proto(output))])
    async with open_stores(config(tmp_path)) as one, open_stores(config(tmp_path)) as other:
        assert await other.actions.get(key) is None
        await one.actions.put(key, result)
        assert await other.actions.get(key) is None
        await one.blobs.put_many([(output, b"output")])
        assert await other.actions.get(key) == result
        await other.blobs.delete([output])
        assert await one.actions.get(key) is None


async def test_records_survive(tmp_path: Path) -> None:
    key, list_of = ActionKey("i", digest_of(b"action")), digest_of(b"blob")
    async with open_stores(config(tmp_path)) as stores:
        await stores.actions.put(key, re_pb2.ActionResult(exit_code=1))
        await stores.chunk_lists.put(
            list_of, re_pb2.SplitBlobResponse(chunking_function=re_pb2.ChunkingFunction.FAST_CDC_2020)
        )
    async with open_stores(config(tmp_path)) as stores:
        assert await stores.actions.get(key) == re_pb2.ActionResult(exit_code=1)
        assert await stores.chunk_lists.get(list_of) == re_pb2.SplitBlobResponse(
            chunking_function=re_pb2.ChunkingFunction.FAST_CDC_2020
        )


def test_options_reach_the_disk_store_and_the_services(tmp_path: Path) -> None:
    made = config(tmp_path, max_size="1 GiB", min_free=5, compress=True, fsync="always")
    disk = disk_config(made.state, made.store)
    assert (disk.path, disk.max_size_bytes, disk.min_free_bytes) == (tmp_path / "cas", 2**30, 5)
    assert (disk.compression, disk.fsync) == ("zstd", "always")


async def test_services_are_made_of_the_stores(tmp_path: Path) -> None:
    async with open_stores(config(tmp_path)) as stores:
        services = cas_services(config(tmp_path), stores)
        assert (services.blobs, services.actions) == (stores.blobs, stores.actions)
        assert services.fetch.allowed_hosts == ("a.b",)


async def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "cas").write_text("in the way")
    with pytest.raises(Unavailable, match=str(tmp_path)):
        async with open_stores(config(tmp_path)):
            pytest.fail("opened")
