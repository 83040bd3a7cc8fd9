"""The ActionCache service. That every blob of a result is there is the record store's doing (complete.py)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.message import DecodeError

from remote_apis import remote_execution_pb2 as re_pb2
from remote_apis import remote_execution_pb2_grpc as re_grpc
from tvix.cas.action_result import check_action_result
from tvix.cas.digest import Digest, digest_from_proto, function_to_wire
from tvix.cas.grpc_capabilities import MayUpdate
from tvix.cas.interfaces import ActionCache, ActionKey, BlobStore
from tvix.cas.resource_names import check_instance_name
from tvix.errors import InvalidInput, MissingBlobs, NotFound, PermissionDenied
from tvix.rpc import handled

MAX_INLINE_BYTES = 1024 * 1024
"""Contents put into one reply; with the result itself it must stay below gRPC's default 4 MiB."""

MAX_REPLY_BYTES = 3 * 1024 * 1024


class ActionCacheService(re_grpc.ActionCacheServicer):
    """Looks results up and records what clients made."""

    def __init__(
        self, actions: ActionCache, blobs: BlobStore, may_update: MayUpdate, *, require_action: bool = True
    ) -> None:
        self._actions = actions
        self._blobs = blobs
        self._may_update = may_update
        self._require_action = require_action

    @handled
    async def GetActionResult(self, request: re_pb2.GetActionResultRequest, context: Any) -> re_pb2.ActionResult:
        """Return the result of an action."""
        digest = digest_from_proto(request.action_digest, request.digest_function, field="action_digest")
        instance_name = check_instance_name(request.instance_name)
        result = await self._actions.get(ActionKey(instance_name, digest))
        if result is None:
            raise NotFound(f"there is no result of action {digest} under instance name {instance_name!r}")
        if request.inline_stdout or request.inline_stderr or request.inline_output_files:
            return await self._inline(result, request, digest)
        return result

    async def _inline(
        self, result: re_pb2.ActionResult, request: re_pb2.GetActionResultRequest, action_digest: Digest
    ) -> re_pb2.ActionResult:
        """Return a copy with the contents asked for, as far as they are small; the rest stays as it is."""
        room = min(MAX_INLINE_BYTES, MAX_REPLY_BYTES - result.ByteSize())
        copy = re_pb2.ActionResult()
        copy.CopyFrom(result)
        function_value = function_to_wire(action_digest.function)
        wanted: list[tuple[Any, str, Digest]] = []
        for message, field, name in _inlinable(copy, request):
            if name.size_bytes and name.size_bytes <= room and not getattr(message, field):
                wanted.append((message, field, digest_from_proto(name, function_value)))
                room -= name.size_bytes
        contents = await self._blobs.get_many([digest for _, _, digest in wanted])
        for (message, field, _), data in zip(wanted, contents, strict=True):
            if data is not None:
                setattr(message, field, data)
        return copy

    @handled
    async def UpdateActionResult(self, request: re_pb2.UpdateActionResultRequest, context: Any) -> re_pb2.ActionResult:
        """Record a result and return what was recorded."""
        instance_name = check_instance_name(request.instance_name)
        if not self._may_update(context):
            raise PermissionDenied(
                f"writing action results of instance {instance_name!r} is not allowed to this caller"
            )
        digest = digest_from_proto(request.action_digest, request.digest_function, field="action_digest")
        if not request.HasField("action_result"):
            raise InvalidInput("action_result: not set", field="action_result")
        command = await self._command(digest)
        check_action_result(request.action_result, digest, command.working_directory)
        result = request.action_result
        if not result.execution_metadata.worker:
            # An all-default result would be no bytes at all, which some stores and clients take for absence.
            result.execution_metadata.worker = "client"
        await self._actions.put(ActionKey(instance_name, digest), result)
        return result

    async def _command(self, action_digest: Digest) -> re_pb2.Command:
        """Return the action's Command; MissingBlobs unless both are in the store."""
        (action_bytes,) = await self._blobs.get_many([action_digest])
        if action_bytes is None:
            if not self._require_action:
                return re_pb2.Command()
            raise MissingBlobs([action_digest])
        try:
            action = re_pb2.Action.FromString(action_bytes)
        except DecodeError as error:
            raise InvalidInput(f"action_digest: {action_digest} is not an Action: {error}") from error
        command_digest = digest_from_proto(
            action.command_digest, function_to_wire(action_digest.function), field="action.command_digest"
        )
        (command_bytes,) = await self._blobs.get_many([command_digest])
        if command_bytes is None:
            if not self._require_action:
                return re_pb2.Command()
            raise MissingBlobs([command_digest])
        try:
            return re_pb2.Command.FromString(command_bytes)
        except DecodeError as error:
            raise InvalidInput(f"action.command_digest: {command_digest} is not a Command: {error}") from error


def _inlinable(
    result: re_pb2.ActionResult, request: re_pb2.GetActionResultRequest
) -> Iterator[tuple[Any, str, re_pb2.Digest]]:
    """Yield message, field to fill, digest of what belongs there."""
    if request.inline_stdout:
        yield result, "stdout_raw", result.stdout_digest
    if request.inline_stderr:
        yield result, "stderr_raw", result.stderr_digest
    paths = set(request.inline_output_files)
    if paths:
        for output in result.output_files:
            if output.path in paths:
                yield output, "contents", output.digest


def register_action_cache(server: Any, service: ActionCacheService) -> None:
    """Add the service to a server that was not started yet."""
    re_grpc.add_ActionCacheServicer_to_server(service, server)
