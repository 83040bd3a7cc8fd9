"""The Remote Asset services, Fetch and Push.

A fetch looks for what was pushed, or fetched before; else it goes to the origin. Retrievals of the same
thing are one, and go on when their callers have left: what they bring is found by the next call.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf import timestamp_pb2
from google.rpc import status_pb2

from remote_apis import remote_asset_pb2 as ra_pb2
from remote_apis import remote_asset_pb2_grpc as ra_grpc
from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.asset import Asset, AssetKey, AssetKind, Assets, check_qualifiers, check_uris
from tvix.cas.asset_fetch import Fetcher, FetchPlan, plan_fetch
from tvix.cas.digest import Digest, digest_from_proto, digest_to_proto, function_from_wire, function_to_wire
from tvix.cas.resource_names import check_instance_name
from tvix.errors import Aborted, DeadlineExceeded, InvalidInput, NotFound, PermissionDenied, ResourceExhausted
from tvix.rpc import handled, status_from_error

DEFAULT_TIMEOUT_SECONDS = 600.0
MAX_TIMEOUT_SECONDS = 24 * 3600.0

_OF_THE_ORIGIN = (Aborted, DeadlineExceeded, NotFound, PermissionDenied, ResourceExhausted)
"""Errors that are told in the response's status; others are the call's own."""

FetchRequest = ra_pb2.FetchBlobRequest | ra_pb2.FetchDirectoryRequest
PushRequest = ra_pb2.PushBlobRequest | ra_pb2.PushDirectoryRequest


class FetchService(ra_grpc.FetchServicer):
    """Tells what URIs stand for. Close it."""

    def __init__(self, assets: Assets, fetcher: Fetcher, *, now: Callable[[], float] = time.time) -> None:
        self._assets = assets
        self._fetcher = fetcher
        self._now = now
        self._running: dict[tuple[AssetKey, ...], asyncio.Task[tuple[str, Asset]]] = {}

    async def close(self) -> None:
        """Stop retrievals and close connections."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._fetcher.close()

    @handled
    async def FetchBlob(self, request: ra_pb2.FetchBlobRequest, context: Any) -> ra_pb2.FetchBlobResponse:
        """Return the digest of what a URI stands for, fetched if need be."""
        response = ra_pb2.FetchBlobResponse()
        digest = await self._fetch(request, "blob", response)
        if digest is not None:
            response.blob_digest.CopyFrom(digest_to_proto(digest))
        return response

    @handled
    async def FetchDirectory(
        self, request: ra_pb2.FetchDirectoryRequest, context: Any
    ) -> ra_pb2.FetchDirectoryResponse:
        """Return the root of what a URI stands for; only what was pushed, nothing is unpacked or checked out."""
        response = ra_pb2.FetchDirectoryResponse()
        digest = await self._fetch(request, "directory", response)
        if digest is not None:
            response.root_directory_digest.CopyFrom(digest_to_proto(digest))
        return response

    async def _fetch(
        self,
        request: FetchRequest,
        kind: AssetKind,
        response: ra_pb2.FetchBlobResponse | ra_pb2.FetchDirectoryResponse,
    ) -> Digest | None:
        """Fill what both kinds of response have in common; return the digest unless the status says why not."""
        keys = _keys(request, kind, request.digest_function or re_pb2.DigestFunction.SHA256)
        timeout_seconds = _timeout(request)
        response.qualifiers.extend(request.qualifiers)
        response.digest_function = function_to_wire(keys[0].function)
        try:
            uri, asset = await self._find(keys, request) or await self._retrieve(keys, kind, timeout_seconds)
        except _OF_THE_ORIGIN as error:
            response.status.CopyFrom(status_from_error(error))
            response.uri = next(iter(getattr(error, "__notes__", [])), request.uris[0])
            return None
        response.status.CopyFrom(status_pb2.Status())
        response.uri = uri
        if asset.expires_at:
            response.expires_at.CopyFrom(_timestamp(asset.expires_at))
        return asset.digest

    async def _find(self, keys: Sequence[AssetKey], request: FetchRequest) -> tuple[str, Asset] | None:
        oldest_accepted = _seconds(request.oldest_content_accepted)
        for key in keys:
            asset = await self._assets.find(key, oldest_accepted=oldest_accepted)
            if asset is not None:
                return key.uri, asset
        return None

    async def _retrieve(self, keys: tuple[AssetKey, ...], kind: AssetKind, timeout_seconds: float) -> tuple[str, Asset]:
        if not any(self._fetcher.can_fetch(key.uri) for key in keys):
            raise NotFound(f"nothing was pushed for {keys[0].uri!r} with these qualifiers")
        plan = plan_fetch(keys[0].qualifiers)
        if kind == "directory":
            raise NotFound(
                f"no directory was pushed for {keys[0].uri!r}; this server neither unpacks archives nor checks out "
                "repositories"
            )
        task = self._running.get(keys)
        if task is None:
            task = self._running[keys] = asyncio.create_task(self._fetch_and_record(keys, plan, timeout_seconds))
            task.add_done_callback(lambda done: self._forget(keys, done))
        # The task is not the caller's: it goes on when the caller has left.
        return await asyncio.shield(task)

    def _forget(self, keys: tuple[AssetKey, ...], task: asyncio.Task[tuple[str, Asset]]) -> None:
        if self._running.get(keys) is task:
            del self._running[keys]
        if not task.cancelled():
            task.exception()  # Seen, should the caller have left.

    async def _fetch_and_record(
        self, keys: tuple[AssetKey, ...], plan: FetchPlan, timeout_seconds: float
    ) -> tuple[str, Asset]:
        begun_at = self._now()
        uris = [key.uri for key in keys]
        uri, digest = await self._fetcher.fetch(uris, plan, keys[0].function, timeout_seconds)
        asset = Asset(digest, begun_at)
        await self._assets.push([key for key in keys if key.uri == uri], asset)
        return uri, asset


class PushService(ra_grpc.PushServicer):
    """Records what URIs stand for."""

    def __init__(
        self, assets: Assets, may_push: Callable[[Any], bool], *, now: Callable[[], float] = time.time
    ) -> None:
        self._assets = assets
        self._may_push = may_push
        self._now = now

    @handled
    async def PushBlob(self, request: ra_pb2.PushBlobRequest, context: Any) -> ra_pb2.PushBlobResponse:
        """Record a blob."""
        await self._push(request, "blob", request.blob_digest, context)
        return ra_pb2.PushBlobResponse()

    @handled
    async def PushDirectory(self, request: ra_pb2.PushDirectoryRequest, context: Any) -> ra_pb2.PushDirectoryResponse:
        """Record a directory."""
        await self._push(request, "directory", request.root_directory_digest, context)
        return ra_pb2.PushDirectoryResponse()

    async def _push(self, request: PushRequest, kind: AssetKind, content: re_pb2.Digest, context: Any) -> None:
        check_uris(request.uris)
        field = "blob_digest" if kind == "blob" else "root_directory_digest"
        digest = digest_from_proto(content, request.digest_function, field=field)
        keys = _keys(request, kind, function_to_wire(digest.function))
        if not self._may_push(context):
            raise PermissionDenied(
                f"pushing assets to instance {request.instance_name!r} is not allowed to this caller"
            )
        asset = Asset(
            digest,
            self._now(),
            _seconds(request.expire_at),
            _references(request.references_blobs, digest, "references_blobs"),
            _references(request.references_directories, digest, "references_directories"),
        )
        await self._assets.push(keys, asset)


def _references(messages: Sequence[re_pb2.Digest], asset: Digest, field: str) -> tuple[Digest, ...]:
    function = function_to_wire(asset.function)
    return tuple(
        digest_from_proto(message, function, field=f"{field}[{index}]") for index, message in enumerate(messages)
    )


def _keys(request: FetchRequest | PushRequest, kind: AssetKind, function_value: int) -> tuple[AssetKey, ...]:
    """Return the names of the records that a request is about, one for each URI."""
    instance_name = check_instance_name(request.instance_name)
    check_uris(request.uris)
    qualifiers = check_qualifiers([(qualifier.name, qualifier.value) for qualifier in request.qualifiers])
    function = function_from_wire(function_value, "")
    return tuple(AssetKey(kind, instance_name, function, uri, qualifiers) for uri in request.uris)


def _timeout(request: FetchRequest) -> float:
    if not request.HasField("timeout"):
        return DEFAULT_TIMEOUT_SECONDS
    seconds = request.timeout.seconds + request.timeout.nanos / 1e9
    if seconds < 0:
        raise InvalidInput(f"timeout: {seconds:g} s is negative", field="timeout")
    return min(seconds, MAX_TIMEOUT_SECONDS) or DEFAULT_TIMEOUT_SECONDS


def _seconds(timestamp: timestamp_pb2.Timestamp) -> float:
    return timestamp.seconds + timestamp.nanos / 1e9


def _timestamp(seconds: float) -> timestamp_pb2.Timestamp:
    whole = math.floor(seconds)
    return timestamp_pb2.Timestamp(seconds=whole, nanos=int((seconds - whole) * 1e9))


def register_asset(server: Any, fetch: FetchService, push: PushService) -> None:
    """Add both services to a server that was not started yet."""
    ra_grpc.add_FetchServicer_to_server(fetch, server)
    ra_grpc.add_PushServicer_to_server(push, server)
