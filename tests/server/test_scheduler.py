"""What the scheduler process makes of the configuration. What it does is tested with the whole server."""

from pathlib import Path

from remote_apis import admin_pb2
from tvix.cas.disk.config import DiskConfig
from tvix.cas.disk.store import DiskBlobStore
from tvix.executor.platform_policy import Kind
from tvix.server.config import ExecutionSection, load_config
from tvix.server.scheduler import add_store_status, chores, platform_policy, scheduler_config
from tvix.server.stores import open_stores


def test_options_reach_the_scheduler() -> None:
    made = scheduler_config(
        ExecutionSection(default_timeout_seconds=1, max_timeout_seconds=2, max_attempts=4, result_retention_seconds=5)
    )
    assert (made.timeouts.default_seconds, made.timeouts.max_seconds) == (1, 2)
    assert (made.queue.max_attempts, made.retention_seconds) == (4, 5)


def test_configured_rules_stand_beside_the_built_in_ones() -> None:
    policy = platform_policy(ExecutionSection(platform={"gpu": "minimum", "OSFamily": "ignore"}))
    assert policy.rule("GPU").kind is Kind.MINIMUM
    assert policy.rule("osfamily").kind is Kind.IGNORE
    assert policy.rule("isa").kind is Kind.EXACT


async def test_every_table_and_the_logs_are_pruned(tmp_path: Path) -> None:
    async with open_stores(load_config(None, {"server": {"state_dir": str(tmp_path)}})) as stores:
        found = chores(stores)
        assert [name for name, _ in found] == ["logs", "actions", "chunk_lists", "assets"]
        assert [await prune() for _, prune in found] == [0, 0, 0, 0]


async def test_the_status_tells_of_the_store(tmp_path: Path) -> None:
    blobs = await DiskBlobStore.open(DiskConfig(tmp_path, max_size_bytes=2**30))
    status = admin_pb2.Status()
    await add_store_status(status, blobs)
    await blobs.close()
    (store,) = status.stores
    assert (store.name, store.blobs, store.max_bytes) == (str(tmp_path), 0, 2**30)
    assert store.free_disk_bytes > 0
