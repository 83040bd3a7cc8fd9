"""Bazel's HTTP cache protocol on our stores: GET, HEAD and PUT of `/{instance/}ac/{hash}` and `…/cas/{hash}`.

The protocol names blobs by hash alone, so reading asks the store which blob has it; writing takes the size
from Content-Length. The function follows from the hash's length; BLAKE3 and SHA256TREE, as long as SHA-256,
are said: `…/cas/blake3/{hash}`, or `/blake3/cas/{hash}`. Absent is 404, a wrong body 400, overload 503
(older Bazels do not retry 429), a full disk 507. Bodies stream both ways.

Action results are keyed by the action's hash with size 0, as its size is unknown here, and besides, when
the Action itself is in the store, by its whole digest, so that gRPC clients share them.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import NamedTuple, cast

from aiohttp import web
from google.protobuf.message import DecodeError

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.action_result import check_action_result
from tvix.cas.digest import FUNCTIONS, Digest, DigestFunction, function_from_wire, make_digest
from tvix.cas.interfaces import CHUNK_BYTES, ActionCache, ActionKey, BlobStore
from tvix.cas.resource_names import check_instance_name
from tvix.errors import BlobNotFound, InvalidInput, NotFound, OutOfRange, TvixError, codes_of

log = logging.getLogger(__name__)

SMALL_BYTES = 256 * 1024
"""Bodies up to this size are handled whole."""
MAX_RESULT_BYTES = 64 * 1024 * 1024
"""No ActionResult is larger."""

_NAMED = {name for name, info in FUNCTIONS.items() if info.named_in_resources}

FindDigest = Callable[[DigestFunction, str], Digest | None]
"""Tells which blob of the store has a hash, None when none has."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Name(NamedTuple):
    """What a path names."""

    kind: str
    """`ac` or `cas`."""
    instance_name: str
    function: DigestFunction
    hash: str


def parse_path(path: str) -> Name | None:
    """Return what a path names, None when it is none of this protocol; InvalidInput when it is malformed."""
    *parts, hash_hex = path.strip("/").split("/")
    function: DigestFunction | None = None
    if len(parts) >= 2 and parts[-1] in FUNCTIONS and parts[-2] in ("ac", "cas"):
        function = cast("DigestFunction", parts.pop())
    if not parts or parts[-1] not in ("ac", "cas"):
        return None
    kind = parts.pop()
    if function is None and parts and parts[-1] in _NAMED:
        function = cast("DigestFunction", parts.pop())
    known = function or function_from_wire(0, hash_hex, field="path")
    make_digest(known, hash_hex, 0, field="path")
    return Name(kind, check_instance_name("/".join(parts), field="path"), known, hash_hex)


def parse_range(header: str | None, size_bytes: int) -> tuple[int, int] | None:
    """Return offset and length that a Range header asks for, None for the whole; OutOfRange if beyond the end.

    Several ranges at once are answered with the whole, as RFC 9110 allows.
    """
    if not header or not header.startswith("bytes=") or "," in header:
        return None
    first, dash, last = header.removeprefix("bytes=").strip().partition("-")
    if not dash or not (first or last) or not all(part.isdigit() or not part for part in (first, last)):
        return None
    if not first:
        start = max(0, size_bytes - int(last))
        return (start, size_bytes - start) if int(last) and size_bytes else None
    start, end = int(first), min(int(last), size_bytes - 1) if last else size_bytes - 1
    if start >= size_bytes:
        raise OutOfRange(f"range {header}: the blob has {size_bytes} bytes")
    return (start, end - start + 1) if end >= start else None


class HttpCache:
    """The handlers."""

    def __init__(self, blobs: BlobStore, actions: ActionCache, find_digest: FindDigest) -> None:
        self._blobs = blobs
        self._actions = actions
        self._find_digest = find_digest

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer any request below `/`; paths of other kinds are 404."""
        try:
            name = parse_path(request.path)
            if name is None:
                raise NotFound(f"{request.path}: nothing is here; see / for what there is")
            if request.method not in ("GET", "HEAD", "PUT"):
                raise web.HTTPMethodNotAllowed(request.method, ["GET", "HEAD", "PUT"])
            if name.kind == "cas":
                return await (self._put_blob if request.method == "PUT" else self._get_blob)(request, name)
            return await (self._put_result if request.method == "PUT" else self._get_result)(request, name)
        except TvixError as error:
            return web.Response(status=codes_of(error).http, text=f"{error}\n")

    def _digest(self, name: Name) -> Digest:
        digest = self._find_digest(name.function, name.hash)
        if digest is None:
            raise NotFound(f"no blob with the {name.function} hash {name.hash} is in the store")
        return digest

    async def _get_blob(self, request: web.Request, name: Name) -> web.StreamResponse:
        digest = self._digest(name)
        wanted = parse_range(request.headers.get("Range"), digest.size_bytes)
        offset, length = wanted or (0, digest.size_bytes)
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        if wanted:
            headers["Content-Range"] = f"bytes {offset}-{offset + length - 1}/{digest.size_bytes}"
        status = 206 if wanted else 200
        if request.method == "HEAD":
            if await self._blobs.find_missing([digest]):
                raise BlobNotFound(digest)
            return web.Response(status=status, headers={**headers, "Content-Length": str(length)})
        if digest.size_bytes <= SMALL_BYTES:
            (data,) = await self._blobs.get_many([digest])
            if data is None:
                raise BlobNotFound(digest)
            return web.Response(status=status, headers=headers, body=data[offset : offset + length])
        async with aclosing(self._blobs.read(digest, offset=offset, limit=length)) as chunks:
            return await _stream(request, web.StreamResponse(status=status, headers=headers), chunks, length)

    async def _put_blob(self, request: web.Request, name: Name) -> web.StreamResponse:
        size_bytes = request.content_length
        if size_bytes is None:
            return web.Response(status=411, text="Content-Length is missing: it is part of a blob's name\n")
        digest = make_digest(name.function, name.hash, size_bytes)
        if size_bytes <= SMALL_BYTES:
            (refusal,) = await self._blobs.put_many([(digest, await request.read())])
            if refusal:
                raise refusal
        else:
            async with aclosing(_body(request)) as chunks:
                await self._blobs.write(digest, chunks)
                # A blob that is there already needs no reading, but the connection is to be used again.
                async for _ in chunks:
                    pass
        return web.Response(status=200)

    def _keys(self, name: Name) -> list[ActionKey]:
        keys = [ActionKey(name.instance_name, Digest(name.function, name.hash, 0))]
        if action := self._find_digest(name.function, name.hash):
            keys.append(ActionKey(name.instance_name, action))
        return keys

    async def _get_result(self, request: web.Request, name: Name) -> web.StreamResponse:
        for key in self._keys(name):
            result = await self._actions.get(key)
            if result is not None:
                return web.Response(body=result.SerializeToString(), content_type="application/octet-stream")
        raise NotFound(f"no result of action {name.hash} is cached")

    async def _put_result(self, request: web.Request, name: Name) -> web.StreamResponse:
        if (request.content_length or 0) > MAX_RESULT_BYTES:
            raise InvalidInput(
                f"the body has {request.content_length} bytes, an ActionResult at most {MAX_RESULT_BYTES}"
            )
        try:
            result = re_pb2.ActionResult.FromString(await request.read())
        except DecodeError as error:
            raise InvalidInput(f"the body is not an ActionResult: {error}") from error
        check_action_result(result, Digest(name.function, name.hash, 0), "")
        for key in self._keys(name):
            await self._actions.put(key, result)
        return web.Response(status=200)


async def _body(request: web.Request) -> AsyncGenerator[bytes, None]:
    async for chunk in request.content.iter_chunked(CHUNK_BYTES):
        yield chunk


async def _stream(
    request: web.Request, response: web.StreamResponse, chunks: AsyncGenerator[bytes, None], length: int
) -> web.StreamResponse:
    """Send the chunks. A fault after the first byte can only be told by cutting the connection."""
    response.content_length = length
    first = await anext(chunks, b"")  # absent blobs are found out here, while there is still a status to send
    await response.prepare(request)
    await response.write(first)
    try:
        async for chunk in chunks:
            await response.write(chunk)
    except TvixError as error:
        log.warning("path=%s cut=%r", request.path, str(error))
        if request.transport:
            request.transport.abort()
        return response
    await response.write_eof()
    return response
