"""google.longrunning.Operations over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.longrunning import operations_pb2 as ops
from google.protobuf import duration_pb2
from grpc import aio

from tests.executor.world import World, last_of, response_of, running_world, stage_of


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running_world(tmp_path) as world:
        yield world


async def begin(world: World, *arguments: str, instance_name: str = "") -> str:
    stream = world.execute(world.action(*arguments), instance_name=instance_name)
    name: str = (await stream.read()).name
    return name


async def names_of(world: World, name: str = "", **fields: object) -> list[str]:
    """List page by page."""
    names: list[str] = []
    token = ""
    while True:
        request = ops.ListOperationsRequest(name=name, page_token=token, **fields)
        page = await world.operations.ListOperations(request)
        names += [operation.name for operation in page.operations]
        token = page.next_page_token
        if not token:
            return names
        assert page.operations


async def test_get_gives_the_operation_in_flight_and_after(world: World) -> None:
    name = await begin(world)
    operation = await world.operations.GetOperation(ops.GetOperationRequest(name=name))
    assert (operation.name, stage_of(operation), operation.done) == (name, "QUEUED", False)
    worker = await world.worker()
    await worker.run_one()
    operation = await world.operations.GetOperation(ops.GetOperationRequest(name=name))
    assert response_of(operation).result.stdout_raw == b"out"


async def test_list_pages_over_operations_in_flight_and_done(world: World) -> None:
    worker = await world.worker()
    expected = []
    for i in range(5):
        expected.append(await begin(world, f"done {i}"))
        await worker.run_one()
    expected += [await begin(world, f"waiting {i}") for i in range(5)]
    for page_size in (1, 3, 10, 0):
        assert await names_of(world, page_size=page_size) == sorted(expected)
    assert await names_of(world, filter="done=true", page_size=2) == sorted(expected[:5])
    assert await names_of(world, filter="done=false") == sorted(expected[5:])
    assert await names_of(world, filter="stage=EXECUTING") == [expected[5]]
    assert await names_of(world, filter=f"done=true AND name={expected[2]}") == [expected[2]]


async def test_list_keeps_instances_apart(world: World) -> None:
    one = await begin(world, instance_name="one")
    two = await begin(world, instance_name="two")
    none = await begin(world)
    assert await names_of(world, "one") == [one]
    assert await names_of(world, "two/operations") == [two]
    assert await names_of(world, "operations") == [none]
    assert await names_of(world) == sorted([one, two, none])


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"filter": "colour=red"}, "colour=red"),
        ({"filter": "done"}, "KEY=VALUE"),
        ({"page_size": -1}, "page_size: -1"),
        ({"page_token": "é"}, "page_token"),
    ],
)
async def test_bad_lists_are_invalid(world: World, fields: dict[str, object], named: str) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await world.operations.ListOperations(ops.ListOperationsRequest(**fields))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert named in (caught.value.details() or "")


async def test_cancel_ends_the_operation_as_cancelled_and_stops_the_worker(world: World) -> None:
    worker = await world.worker()
    stream = world.execute(world.action())
    name = (await stream.read()).name
    assign = await worker.assigned.get()
    await world.operations.CancelOperation(ops.CancelOperationRequest(name=name))
    response = await last_of(stream)
    assert response.status.code == 1
    assert await worker.cancelled.get() == assign.lease_id
    await world.operations.CancelOperation(ops.CancelOperationRequest(name=name))
    operation = await world.operations.GetOperation(ops.GetOperationRequest(name=name))
    assert response_of(operation) == response


async def test_cancelling_one_of_two_operations_leaves_the_other_its_run(world: World) -> None:
    worker = await world.worker()
    digest = world.action()
    one, two = world.execute(digest), world.execute(digest)
    name = (await one.read()).name
    await two.read()
    await world.operations.CancelOperation(ops.CancelOperationRequest(name=name))
    await worker.run_one()
    assert (await last_of(one)).status.code == 1
    assert (await last_of(two)).status.code == 0


async def test_a_cancelled_action_can_be_executed_again(world: World) -> None:
    worker = await world.worker(slots=2)
    digest = world.action()
    name = (await world.execute(digest).read()).name
    await world.operations.CancelOperation(ops.CancelOperationRequest(name=name))
    stream = world.execute(digest)
    await worker.assigned.get()
    await worker.run_one()
    assert (await last_of(stream)).status.code == 0


async def test_delete_forgets(world: World) -> None:
    name = await begin(world)
    await world.operations.DeleteOperation(ops.DeleteOperationRequest(name=name))
    assert await names_of(world) == []
    for method, request in (
        (world.operations.GetOperation, ops.GetOperationRequest(name=name)),
        (world.operations.CancelOperation, ops.CancelOperationRequest(name=name)),
        (world.operations.DeleteOperation, ops.DeleteOperationRequest(name=name)),
        (world.operations.WaitOperation, ops.WaitOperationRequest(name=name)),
    ):
        with pytest.raises(aio.AioRpcError) as caught:
            await method(request)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert name in (caught.value.details() or "")


async def test_wait_returns_at_the_timeout_or_the_end(world: World) -> None:
    name = await begin(world)
    soon = duration_pb2.Duration(nanos=1_000_000)
    operation = await world.operations.WaitOperation(ops.WaitOperationRequest(name=name, timeout=soon))
    assert not operation.done
    waiting = world.operations.WaitOperation(ops.WaitOperationRequest(name=name))
    worker = await world.worker()
    await worker.run_one()
    assert response_of(await waiting).status.code == 0
