"""Whether an action may be run: reads and checks the Action and its Command before a worker is bothered.

All that is wrong is found here: malformed messages, paths, timeouts and platforms raise InvalidInput; an
absent Command or input blob raises MissingBlobs, which names all of them at once, so that the client uploads
once and not blob by blob.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import Digest, digest_from_proto, function_to_wire
from tvix.cas.interfaces import BlobStore
from tvix.errors import InvalidInput, MissingBlobs
from tvix.executor.command import plan_command
from tvix.executor.platform_policy import Property, properties_of


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits of a command's run time, in seconds."""

    default_seconds: float = 3600.0
    """For actions that set none."""
    max_seconds: float = 86_400.0
    """Actions that ask for more are refused."""


@dataclass(frozen=True, slots=True)
class CheckedAction:
    """An action that may be run."""

    action: re_pb2.Action
    action_bytes: bytes
    command_bytes: bytes
    command_digest: Digest
    input_root: Digest
    properties: tuple[Property, ...]
    timeout_seconds: float


def parse_action(data: bytes, digest: Digest) -> re_pb2.Action:
    """Return the Action; InvalidInput when the blob is none."""
    try:
        return re_pb2.Action.FromString(data)
    except DecodeError as error:
        raise InvalidInput(
            f"action_digest {digest}: the blob is not an Action: {error}", field="action_digest"
        ) from error


async def check_action(
    blobs: BlobStore, digest: Digest, data: bytes, timeouts: Timeouts, overrides: Sequence[Property] = ()
) -> CheckedAction:
    """Return the checked action of blob `data`; reads the Command. The input tree is not looked at."""
    action = parse_action(data, digest)
    function = function_to_wire(digest.function)
    command_digest = digest_from_proto(action.command_digest, function, field="action.command_digest")
    input_root = digest_from_proto(action.input_root_digest, function, field="action.input_root_digest")
    timeout_seconds = _timeout(action, timeouts)
    command_bytes = (await blobs.get_many([command_digest]))[0]
    if command_bytes is None:
        raise MissingBlobs([command_digest, *await _absent(blobs, input_root)])
    return build_checked(action, data, command_bytes, command_digest, input_root, timeout_seconds, overrides)


async def _absent(blobs: BlobStore, digest: Digest) -> set[Digest]:
    return await blobs.find_missing([digest])


def build_checked(
    action: re_pb2.Action,
    action_bytes: bytes,
    command_bytes: bytes,
    command_digest: Digest,
    input_root: Digest,
    timeout_seconds: float,
    overrides: Sequence[Property],
) -> CheckedAction:
    """Return the checked action of parts already read. Overrides change the Action that the worker gets."""
    try:
        command = re_pb2.Command.FromString(command_bytes)
    except DecodeError as error:
        message = f"action.command_digest {command_digest}: the blob is not a Command: {error}"
        raise InvalidInput(message, field="action.command_digest") from error
    properties = properties_of(action, command, overrides)
    if overrides:
        changed = re_pb2.Action()
        changed.CopyFrom(action)
        del changed.platform.properties[:]
        for name, value in properties:
            changed.platform.properties.add(name=name, value=value)
        action_bytes = changed.SerializeToString()
        plan_command(changed, command)
    else:
        plan_command(action, command)
    return CheckedAction(
        action, action_bytes, command_bytes, command_digest, input_root, tuple(properties), timeout_seconds
    )


def restore_checked(digest: Digest, action_bytes: bytes, command_bytes: bytes, timeouts: Timeouts) -> CheckedAction:
    """Return a checked action from what was saved of it."""
    action = parse_action(action_bytes, digest)
    function = function_to_wire(digest.function)
    command_digest = digest_from_proto(action.command_digest, function, field="action.command_digest")
    input_root = digest_from_proto(action.input_root_digest, function, field="action.input_root_digest")
    timeout_seconds = _timeout(action, timeouts)
    return build_checked(action, action_bytes, command_bytes, command_digest, input_root, timeout_seconds, ())


def _timeout(action: re_pb2.Action, timeouts: Timeouts) -> float:
    """Return the limit that holds. A zero counts as unset: some clients send an empty message for "none"."""
    nanos = action.timeout.nanos
    if abs(nanos) >= 1_000_000_000 or action.timeout.seconds * nanos < 0:
        raise InvalidInput(f"action.timeout.nanos: {nanos} is no part of a duration", field="action.timeout.nanos")
    seconds = action.timeout.seconds + nanos / 1e9
    if seconds < 0:
        raise InvalidInput(f"action.timeout: {seconds:g} s is negative", field="action.timeout")
    if seconds > timeouts.max_seconds:
        message = f"action.timeout: {seconds:g} s is more than the {timeouts.max_seconds:g} s allowed here"
        raise InvalidInput(message, field="action.timeout")
    return seconds or min(timeouts.default_seconds, timeouts.max_seconds)
