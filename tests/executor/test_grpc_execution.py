"""Execute and WaitExecution over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from remote_apis import remote_execution_pb2 as re_pb2
from tests.executor.world import World, last_of, response_of, running_world, stage_of, succeeded
from tvix.cas.digest import digest_of, digest_to_proto
from tvix.rpc import STATUS_DETAILS_KEY


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running_world(tmp_path) as world:
        yield world


async def test_an_action_runs_on_a_worker_and_its_result_is_cached(world: World) -> None:
    worker = await world.worker()
    digest = world.action("echo")
    stream = world.execute(digest)
    first = await stream.read()
    assert first.name
    assert stage_of(first) in ("QUEUED", "EXECUTING")
    assign = await worker.run_one()
    assert assign.attempt == 1
    assert assign.action_digest == digest
    response = await last_of(stream)
    assert response.result.stdout_raw == b"out"
    assert not response.cached_result
    assert response.result.execution_metadata.worker == "w1"
    assert response.result.execution_metadata.HasField("queued_timestamp")
    assert await world.cache.get(world.key(digest)) == response.result
    again = await last_of(world.execute(digest))
    assert again.cached_result
    assert again.result == response.result


async def test_stages_go_from_queued_to_completed(world: World) -> None:
    stream = world.execute(world.action())
    stages = [stage_of(await stream.read())]
    worker = await world.worker()
    stages.append(stage_of(await stream.read()))
    await worker.run_one()
    last = await stream.read()
    assert [*stages, stage_of(last)] == ["QUEUED", "EXECUTING", "COMPLETED"]
    assert last.done
    assert response_of(last).status.code == 0
    assert await stream.read() is aio.EOF


async def failure_of(stream: Any) -> aio.AioRpcError:
    with pytest.raises(aio.AioRpcError) as caught:
        await stream.read()
    return caught.value


def violations_of(error: aio.AioRpcError) -> list[tuple[str, str]]:
    details = dict(error.trailing_metadata() or ())[STATUS_DETAILS_KEY]
    assert isinstance(details, bytes)
    return missing_in(status_pb2.Status.FromString(details))


def missing_in(status: status_pb2.Status) -> list[tuple[str, str]]:
    assert len(status.details) == 1, "Pants takes one detail exactly"
    failure = error_details_pb2.PreconditionFailure()
    assert status.details[0].Unpack(failure)
    return [(violation.type, violation.subject) for violation in failure.violations]


async def test_without_a_digest_the_call_is_invalid(world: World) -> None:
    error = await failure_of(world.execution.Execute(re_pb2.ExecuteRequest()))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "action_digest" in (error.details() or "")


def negative_timeout(action: re_pb2.Action, command: re_pb2.Command) -> None:
    action.timeout.seconds = -1


def long_timeout(action: re_pb2.Action, command: re_pb2.Command) -> None:
    action.timeout.seconds = 86_401


def no_arguments(action: re_pb2.Action, command: re_pb2.Command) -> None:
    del command.arguments[:]


def absolute_output(action: re_pb2.Action, command: re_pb2.Command) -> None:
    command.output_paths.append("/etc/passwd")


def escaping_output(action: re_pb2.Action, command: re_pb2.Command) -> None:
    command.output_paths.append("../out")


def absolute_directory(action: re_pb2.Action, command: re_pb2.Command) -> None:
    command.working_directory = "/w"


def no_root(action: re_pb2.Action, command: re_pb2.Command) -> None:
    action.ClearField("input_root_digest")


def bad_number(action: re_pb2.Action, command: re_pb2.Command) -> None:
    action.platform.properties.add(name="min-cores", value="many")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (negative_timeout, "action.timeout: -1 s"),
        (long_timeout, "action.timeout: 86401 s"),
        (no_arguments, "command.arguments"),
        (absolute_output, "/etc/passwd"),
        (escaping_output, "../out"),
        (absolute_directory, "working_directory"),
        (no_root, "action.input_root_digest"),
        (bad_number, "min-cores='many'"),
    ],
)
async def test_malformed_actions_are_invalid_arguments_that_name_the_field(
    world: World, change: Any, named: str
) -> None:
    error = await failure_of(world.execute(world.action(change=change)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert named in (error.details() or "")


async def test_blobs_that_are_no_messages_are_invalid(world: World) -> None:
    error = await failure_of(world.execute(digest_to_proto(world.put(b"\xff\xff"))))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT

    def no_command(action: re_pb2.Action, command: re_pb2.Command) -> None:
        action.command_digest.CopyFrom(digest_to_proto(world.put(b"\xff\xff")))

    error = await failure_of(world.execute(world.action(change=no_command)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "action.command_digest" in (error.details() or "")


@pytest.mark.parametrize("instance_name", ["/a", "a/", "a//b", "a/blobs/b", "operations"])
async def test_bad_instance_names_are_invalid(world: World, instance_name: str) -> None:
    error = await failure_of(world.execute(world.action(), instance_name=instance_name))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_missing_action_is_a_failed_precondition_naming_it(world: World) -> None:
    digest = digest_of(b"nowhere")
    error = await failure_of(world.execute(digest_to_proto(digest)))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert violations_of(error) == [("MISSING", f"blobs/{digest.hash}/{digest.size_bytes}")]


async def test_all_missing_inputs_are_named_at_once(world: World) -> None:
    absent = [digest_of(f"file {i}".encode()) for i in range(5)]
    root = re_pb2.Directory()
    for i, digest in enumerate(absent):
        root.files.add(name=f"f{i}", digest=digest_to_proto(digest))
    lost = digest_of(b"lost directory")
    root.directories.add(name="lost", digest=digest_to_proto(lost))

    def change(action: re_pb2.Action, command: re_pb2.Command) -> None:
        action.input_root_digest.CopyFrom(digest_to_proto(world.put(root.SerializeToString())))

    await world.worker()
    error = await failure_of(world.execute(world.action(change=change)))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert sorted(violations_of(error)) == sorted(("MISSING", f"blobs/{digest}") for digest in [*absent, lost])


async def test_a_missing_command_is_named_together_with_a_missing_root(world: World) -> None:
    command, root = digest_of(b"no command"), digest_of(b"no root")

    def change(action: re_pb2.Action, _: re_pb2.Command) -> None:
        action.command_digest.CopyFrom(digest_to_proto(command))
        action.input_root_digest.CopyFrom(digest_to_proto(root))

    error = await failure_of(world.execute(world.action(change=change)))
    assert sorted(violations_of(error)) == sorted(("MISSING", f"blobs/{digest}") for digest in (command, root))


async def test_a_workers_missing_blob_becomes_the_full_list(world: World) -> None:
    worker = await world.worker()
    file = world.put(b"a file")
    root = re_pb2.Directory()
    root.files.add(name="f", digest=digest_to_proto(file))

    def change(action: re_pb2.Action, command: re_pb2.Command) -> None:
        action.input_root_digest.CopyFrom(digest_to_proto(world.put(root.SerializeToString())))

    stream = world.execute(world.action(change=change))
    assign = await worker.assigned.get()
    del world.blobs.blobs[file]
    other = digest_of(b"seen missing by the worker")
    status = status_pb2.Status(code=9, message="missing")
    failure = error_details_pb2.PreconditionFailure()
    failure.violations.add(type="MISSING", subject=f"blobs/{other}")
    status.details.add().Pack(failure)
    await worker.finish(assign, re_pb2.ExecuteResponse(status=status))
    response = await last_of(stream)
    assert response.status.code == 9
    assert sorted(missing_in(response.status)) == sorted(("MISSING", f"blobs/{digest}") for digest in (file, other))


@pytest.mark.parametrize(
    ("reason", "response", "do_not_cache"),
    [
        ("non-zero exit", succeeded(1), False),
        ("status not OK", re_pb2.ExecuteResponse(status=status_pb2.Status(code=4), result=succeeded().result), False),
        ("do_not_cache", succeeded(), True),
    ],
)
async def test_some_results_are_not_cached(
    world: World, reason: str, response: re_pb2.ExecuteResponse, do_not_cache: bool
) -> None:
    worker = await world.worker()

    def change(action: re_pb2.Action, command: re_pb2.Command) -> None:
        action.do_not_cache = do_not_cache

    digest = world.action(change=change)
    stream = world.execute(digest)
    await worker.run_one(response)
    assert (await last_of(stream)).result.exit_code == response.result.exit_code
    assert not world.cache.records, reason


async def test_a_timeout_has_the_text_that_siso_knows_and_the_partial_output(world: World) -> None:
    worker = await world.worker()
    stream = world.execute(world.action())
    timed_out = re_pb2.ExecuteResponse(status=status_pb2.Status(code=4, message="killed"), result=succeeded().result)
    await worker.run_one(timed_out)
    response = await last_of(stream)
    assert (response.status.code, response.status.message) == (4, "execution timeout exceeded")
    assert response.result.stdout_raw == b"out"


async def test_do_not_cache_neither_reads_the_cache_nor_merges(world: World) -> None:
    worker = await world.worker(slots=2)

    def change(action: re_pb2.Action, command: re_pb2.Command) -> None:
        action.do_not_cache = True

    digest = world.action(change=change)
    await world.cache.put(world.key(digest), re_pb2.ActionResult(exit_code=7))
    streams = [world.execute(digest), world.execute(digest)]
    await worker.run_one()
    await worker.run_one()
    assert [(await last_of(stream)).result.exit_code for stream in streams] == [0, 0]


async def test_skip_cache_lookup_runs_again_and_overwrites(world: World) -> None:
    worker = await world.worker()
    digest = world.action()
    await world.cache.put(world.key(digest), re_pb2.ActionResult(stdout_raw=b"old"))
    stream = world.execute(digest, skip_cache_lookup=True)
    await worker.run_one()
    assert not (await last_of(stream)).cached_result
    found = await world.cache.get(world.key(digest))
    assert found is not None
    assert found.stdout_raw == b"out"


async def test_equal_calls_share_one_run_under_names_of_their_own(world: World) -> None:
    digest = world.action()
    streams = [world.execute(digest) for _ in range(5)]
    names = {(await stream.read()).name for stream in streams}
    assert len(names) == 5
    worker = await world.worker(slots=5)
    await worker.run_one()
    assert [(await last_of(stream)).result.stdout_raw for stream in streams] == [b"out"] * 5
    assert worker.assigned.empty()


async def test_instances_do_not_share_runs_or_results(world: World) -> None:
    worker = await world.worker(slots=2)
    digest = world.action()
    one, two = world.execute(digest, instance_name="one"), world.execute(digest, instance_name="two/deep")
    first = await one.read()
    assert first.name.startswith("one/operations/")
    assert {(await worker.run_one()).instance_name, (await worker.run_one()).instance_name} == {"one", "two/deep"}
    await last_of(two)
    assert set(world.cache.records) == {world.key(digest, "one"), world.key(digest, "two/deep")}


async def test_what_no_worker_can_run_fails_and_names_the_properties(world: World) -> None:
    await world.worker()
    response = await last_of(world.execute(world.action(OSFamily="Windows", Gpu="a100", Pool="default")))
    assert response.status.code == 9
    assert "OSFamily=Windows" in response.status.message
    assert "Gpu=a100" in response.status.message
    assert "Pool" not in response.status.message
    assert "linux" not in response.status.message, "the fleet is not told"


async def test_without_workers_the_operation_waits_then_fails(world: World) -> None:
    stream = world.execute(world.action())
    assert stage_of(await stream.read()) == "QUEUED"
    await world.advance(world.config.queue.startup_grace_seconds + 1)
    response = await last_of(stream)
    assert response.status.code == 9
    assert "no worker" in response.status.message


async def test_a_client_that_leaves_can_come_back(world: World) -> None:
    stream = world.execute(world.action())
    name = (await stream.read()).name
    stream.cancel()
    worker = await world.worker()
    again: Any = world.execution.WaitExecution(re_pb2.WaitExecutionRequest(name=name))
    assert (await again.read()).name == name
    await worker.run_one()
    assert (await last_of(again)).result.stdout_raw == b"out"
    late = world.execution.WaitExecution(re_pb2.WaitExecutionRequest(name=name))
    assert (await last_of(late)).result.stdout_raw == b"out"


async def test_waiting_for_an_unknown_operation_is_not_found(world: World) -> None:
    for name, code in (("operations/none", grpc.StatusCode.NOT_FOUND), ("", grpc.StatusCode.INVALID_ARGUMENT)):
        error = await failure_of(world.execution.WaitExecution(re_pb2.WaitExecutionRequest(name=name)))
        assert error.code() is code


async def test_the_run_of_a_client_that_stays_away_is_stopped(world: World) -> None:
    worker = await world.worker()
    stream = world.execute(world.action())
    name = (await stream.read()).name
    assign = await worker.assigned.get()
    stream.cancel()
    operation = world.scheduler.dispatcher.operations[name]
    while world.scheduler.dispatcher.queue.is_watched(name):
        await world.settled()
    for _ in range(7):
        await world.advance(10)
        await worker.say(heartbeat={"lease_ids": [assign.lease_id]})
        await world.settled()
    assert await worker.cancelled.get() == assign.lease_id
    assert operation.response is not None
    assert operation.response.status.code == 1


async def test_header_overrides_set_platform_properties(world: World) -> None:
    worker = await world.worker(Pool="special")
    digest = world.action(Pool="nowhere")
    stream = world.execute(digest, metadata=(("x-buildbuddy-platform.pool", "special"),))
    assign = await worker.run_one()
    platform = re_pb2.Action.FromString(assign.action).platform
    assert [(item.name, item.value) for item in platform.properties] == [("pool", "special")]
    assert (await last_of(stream)).status.code == 0


async def test_streams_repeat_themselves_while_nothing_happens(tmp_path: Path) -> None:
    async with running_world(tmp_path, update_seconds=0.01) as world:
        stream = world.execute(world.action())
        first = await stream.read()
        assert [await stream.read() for _ in range(3)] == [first] * 3


async def test_the_default_timeout_and_the_actions_own_reach_the_worker(world: World) -> None:
    worker = await world.worker()

    def change(action: re_pb2.Action, command: re_pb2.Command) -> None:
        action.timeout.FromMilliseconds(1500)

    digests = [world.action(), world.action(change=change)]
    streams = [world.execute(digest) for digest in digests]
    seconds = {(await worker.run_one()).timeout_seconds, (await worker.run_one()).timeout_seconds}
    assert seconds == {3600.0, 1.5}
    for stream in streams:
        await last_of(stream)


async def test_priorities_outside_the_announced_range_are_invalid(tmp_path: Path) -> None:
    async with running_world(tmp_path, min_priority=-10, max_priority=10) as world:
        policy = re_pb2.ExecutionPolicy(priority=11)
        error = await failure_of(world.execute(world.action(), execution_policy=policy))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "11" in (error.details() or "")
