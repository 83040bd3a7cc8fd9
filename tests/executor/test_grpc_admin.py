"""The admin service over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc import aio

from remote_apis import admin_pb2, admin_pb2_grpc
from remote_apis import remote_execution_pb2 as re_pb2
from tests.executor.world import World, last_of, running_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running_world(tmp_path) as world:
        yield world


async def test_the_status_tells_queue_actions_workers_and_counts(world: World) -> None:
    worker = await world.worker("w1")
    header = re_pb2.RequestMetadata(tool_invocation_id="build-1", action_mnemonic="CppCompile", target_id="//a")
    metadata = (("build.bazel.remote.execution.v2.requestmetadata-bin", header.SerializeToString()),)
    running = world.execute(world.action("a"), metadata=metadata)
    await running.read()
    assign = await worker.assigned.get()
    waiting = [world.execute(world.action(f"{i}", OSFamily="Linux"), metadata=metadata) for i in range(3)]
    for stream in waiting:
        await stream.read()
    await world.advance(7)
    admin = admin_pb2_grpc.AdminStub(world.channel)
    status = await admin.GetStatus(admin_pb2.GetStatusRequest())
    assert (status.queued, status.running, status.operations) == (3, 1, 4)
    (group,) = status.queue
    assert (group.requirements, group.invocation, group.count) == ("osfamily=linux", "build-1", 3)
    assert (group.waiting_seconds, group.eligible_workers) == (7, 1)
    (action,) = status.actions
    assert (action.worker_id, action.mnemonic, action.target, action.running_seconds) == ("w1", "CppCompile", "//a", 7)
    assert action.action == f"{assign.action_digest.hash}/{assign.action_digest.size_bytes}"
    (shown,) = status.workers
    assert (shown.id, shown.connected, shown.slots, shown.busy) == ("w1", True, 1, 1)
    assert shown.platform == "OSFamily=linux ISA=x86-64"
    assert (status.counters.submitted, status.counters.cache_misses) == (4, 4)


async def test_lists_are_cut_and_counts_are_whole(world: World) -> None:
    for name in ("w1", "w2", "w3"):
        await world.worker(name)
    admin = admin_pb2_grpc.AdminStub(world.channel)
    status = await admin.GetStatus(admin_pb2.GetStatusRequest(max_entries=2))
    assert [worker.id for worker in status.workers] == ["w1", "w2"]
    with pytest.raises(aio.AioRpcError) as caught:
        await admin.GetStatus(admin_pb2.GetStatusRequest(max_entries=-1))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_worker_can_be_drained_from_outside(world: World) -> None:
    await world.worker("w1")
    admin = admin_pb2_grpc.AdminStub(world.channel)
    await admin.DrainWorker(admin_pb2.DrainWorkerRequest(worker_id="w1"))
    stream = world.execute(world.action())
    await stream.read()
    other = await world.worker("w2")
    await other.run_one()
    assert (await last_of(stream)).status.code == 0
    with pytest.raises(aio.AioRpcError) as caught:
        await admin.DrainWorker(admin_pb2.DrainWorkerRequest(worker_id="w9"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
