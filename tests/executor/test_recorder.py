"""What is done with results. What is cached: test_grpc_execution.py."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from remote_apis import remote_execution_pb2 as re_pb2
from tests.executor.world import World, last_of, running_world, succeeded
from tvix.cas.digest import digest_of, digest_to_proto


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running_world(tmp_path) as world:
        yield world


async def test_outputs_that_were_not_uploaded_are_the_workers_failure(world: World) -> None:
    worker = await world.worker()
    digest = world.action()
    stream = world.execute(digest)
    absent = digest_of(b"absent")
    response = succeeded()
    response.result.output_files.add(path="out", digest=digest_to_proto(absent))
    for _ in range(world.config.queue.max_attempts):
        assign = await worker.assigned.get()
        await worker.finish(assign, response)
    ended = await last_of(stream)
    assert ended.status.code == 13
    assert absent.hash in ended.status.message
    assert not world.cache.records


async def test_files_in_output_trees_count_as_outputs(world: World) -> None:
    worker = await world.worker()
    tree = re_pb2.Tree()
    tree.root.files.add(name="f", digest=digest_to_proto(digest_of(b"absent")))
    response = succeeded()
    tree_digest = world.put(tree.SerializeToString())
    response.result.output_directories.add(path="d", tree_digest=digest_to_proto(tree_digest))
    stream = world.execute(world.action())
    await worker.finish(await worker.assigned.get(), response)
    second = await worker.assigned.get()
    assert second.attempt == 2
    world.put(b"absent")
    await worker.finish(second, response)
    assert (await last_of(stream)).status.code == 0


async def test_a_malformed_result_is_the_workers_failure(world: World) -> None:
    worker = await world.worker()
    response = succeeded()
    response.result.output_files.add(path="out", digest=re_pb2.Digest(hash="XYZ", size_bytes=1))
    stream = world.execute(world.action())
    await worker.finish(await worker.assigned.get(), response)
    assert (await worker.run_one()).attempt == 2
    assert (await last_of(stream)).status.code == 0
