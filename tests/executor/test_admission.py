"""What is refused before a worker sees it. More, over a socket, in test_grpc_execution.py."""

from __future__ import annotations

import pytest

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import Digest, digest_of, digest_to_proto
from tvix.cas.memory import MemoryBlobStore
from tvix.errors import InvalidDigest, InvalidInput, MissingBlobs
from tvix.executor.admission import Timeouts, check_action, parse_action, restore_checked
from tvix.executor.platform_policy import Property

TIMEOUTS = Timeouts(default_seconds=60, max_seconds=600)


def make_action(blobs: MemoryBlobStore, seconds: float | None = None) -> tuple[Digest, bytes]:
    command = re_pb2.Command(arguments=["true"]).SerializeToString()
    blobs.blobs[digest_of(command)] = command
    action = re_pb2.Action(
        command_digest=digest_to_proto(digest_of(command)), input_root_digest=digest_to_proto(digest_of(b""))
    )
    if seconds is not None:
        action.timeout.FromMilliseconds(int(seconds * 1000))
    data = action.SerializeToString()
    return digest_of(data), data


@pytest.mark.parametrize(("asked", "holds"), [(None, 60), (0, 60), (0.25, 0.25), (600, 600)])
async def test_timeouts_that_hold(asked: float | None, holds: float) -> None:
    blobs = MemoryBlobStore()
    digest, data = make_action(blobs, asked)
    assert (await check_action(blobs, digest, data, TIMEOUTS)).timeout_seconds == holds


@pytest.mark.parametrize("asked", [-0.001, 600.001])
async def test_timeouts_that_do_not(asked: float) -> None:
    blobs = MemoryBlobStore()
    digest, data = make_action(blobs, asked)
    with pytest.raises(InvalidInput, match=r"action\.timeout"):
        await check_action(blobs, digest, data, TIMEOUTS)


async def test_an_action_without_digests_is_invalid() -> None:
    with pytest.raises(InvalidDigest, match=r"action\.command_digest"):
        await check_action(MemoryBlobStore(), digest_of(b""), b"", TIMEOUTS)


async def test_a_missing_command_is_named() -> None:
    blobs = MemoryBlobStore()
    digest, data = make_action(blobs)
    (command,) = blobs.blobs
    blobs.blobs.clear()
    with pytest.raises(MissingBlobs) as caught:
        await check_action(blobs, digest, data, TIMEOUTS)
    assert caught.value.digests == (command,)


async def test_overrides_are_in_the_action_that_the_worker_gets_and_survive_saving() -> None:
    blobs = MemoryBlobStore()
    digest, data = make_action(blobs)
    checked = await check_action(blobs, digest, data, TIMEOUTS, [Property("Pool", "big")])
    restored = restore_checked(digest, checked.action_bytes, checked.command_bytes, TIMEOUTS)
    for found in (checked, restored):
        assert parse_action(found.action_bytes, digest).platform.properties[0].value == "big"
        assert found.properties == (Property("Pool", "big"),)


@pytest.mark.parametrize(("seconds", "nanos"), [(1, 2_000_000_000), (1, -5), (0, -1_000_000_000)])
async def test_nanoseconds_that_are_no_part_of_a_duration(seconds: int, nanos: int) -> None:
    blobs = MemoryBlobStore()
    action = re_pb2.Action.FromString(make_action(blobs)[1])
    action.timeout.seconds, action.timeout.nanos = seconds, nanos
    data = action.SerializeToString()
    digest = digest_of(data)
    with pytest.raises(InvalidInput, match=r"action\.timeout"):
        await check_action(blobs, digest, data, TIMEOUTS)
