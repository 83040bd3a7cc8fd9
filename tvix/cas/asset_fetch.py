"""Retrieval of assets from their origin, by HTTP, into the CAS.

The digest is known only at the end, so that content passes through a temporary file: hashed on the way,
then written. Failures of the origin are errors whose code goes into the response's own status.
"""

from __future__ import annotations

import asyncio
import base64
import fnmatch
import hashlib
import os
import re
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import aiohttp
import tenacity

from tvix.cas.asset import Qualifiers
from tvix.cas.digest import FUNCTIONS, Digest, DigestFunction
from tvix.cas.interfaces import CHUNK_BYTES, BlobStore
from tvix.errors import (
    Aborted,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    TvixError,
    Unavailable,
)

_IGNORED = frozenset({"resource_type", "bazel.canonical_id"})
_SRI_ALGORITHMS = ("sha256", "sha384", "sha512")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_IN_MEMORY_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class FetchConfig:
    """What may be fetched, and how hard to try."""

    allowed_hosts: tuple[str, ...] = ("*",)
    """Shell patterns; a host that fits none is refused."""
    allow_files: bool = False
    """Whether file:// URIs are read, with the server's rights."""
    max_bytes: int = 16 * 1024**3
    attempts: int = 3
    retry_seconds: float = 0.5
    """Before the first retry; doubled for each further one."""
    folder: Path | None = None
    """For temporary files; None for the system's own."""


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """What qualifiers ask of a retrieval."""

    checksums: tuple[tuple[str, bytes], ...]
    """Algorithm and digest; one of them must fit, unless there are none."""
    headers: tuple[tuple[str, str], ...]
    headers_by_uri: tuple[tuple[int, str, str], ...]

    def headers_of(self, index: int) -> dict[str, str]:
        """Return the headers for the URI at this place of the request."""
        return dict(self.headers) | {name: value for at, name, value in self.headers_by_uri if at == index}


def plan_fetch(qualifiers: Qualifiers) -> FetchPlan:
    """Return what the qualifiers ask; InvalidInput with one violation per qualifier that we cannot honour."""
    checksums: tuple[tuple[str, bytes], ...] = ()
    headers: list[tuple[str, str]] = []
    by_uri: list[tuple[int, str, str]] = []
    unsupported: list[str] = []
    for name, value in qualifiers:
        if name == "checksum.sri":
            checksums = _parse_sri(value)
        elif name.startswith("http_header_url:"):
            _, index, header = [*name.split(":", 2), "", ""][:3]
            if not index.isascii() or not index.isdigit():
                raise InvalidInput(f"qualifiers.name: {name!r} has no index of a URI", field="qualifiers.name")
            by_uri.append((int(index), *_check_header(name, header, value)))
        elif name.startswith("http_header:"):
            headers.append(_check_header(name, name.partition(":")[2], value))
        elif name not in _IGNORED or value == "application/x-git":
            unsupported.append(name)
    if unsupported:
        raise InvalidInput(
            "; ".join(f'"{name}" not supported' for name in unsupported),
            violations=[("qualifiers.name", f'"{name}" not supported') for name in unsupported],
        )
    return FetchPlan(checksums, tuple(headers), tuple(by_uri))


def _parse_sri(value: str) -> tuple[tuple[str, bytes], ...]:
    checksums = []
    for part in value.split():
        algorithm, _, rest = part.partition("-")
        try:
            digest = base64.b64decode(rest.partition("?")[0], validate=True)
        except ValueError as error:
            raise InvalidInput(f"checksum.sri: {part[:200]!r}: {error}", field="qualifiers.value") from error
        if algorithm in _SRI_ALGORITHMS and len(digest) == hashlib.new(algorithm).digest_size:
            checksums.append((algorithm, digest))
    if not checksums:
        known = ", ".join(_SRI_ALGORITHMS)
        raise InvalidInput(f"checksum.sri: {value[:200]!r} has no valid checksum of {known}", field="qualifiers.value")
    return tuple(checksums)


def _check_header(qualifier: str, name: str, value: str) -> tuple[str, str]:
    if not _HEADER_NAME.fullmatch(name) or any(character in value for character in "\r\n\0"):
        raise InvalidInput(f"qualifiers.name: {qualifier!r} is no valid HTTP header", field="qualifiers.name")
    return name, value


class _Spool:
    """Content on its way: in memory while small, then in a file without a name. Close it."""

    def __init__(self, function: DigestFunction, plan: FetchPlan, config: FetchConfig) -> None:
        self._function = function
        self._hasher = FUNCTIONS[function].new()
        self._checksums = {algorithm: hashlib.new(algorithm) for algorithm, _ in plan.checksums}
        self._plan = plan
        self._max_bytes = config.max_bytes
        folder = str(config.folder) if config.folder else None
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES, dir=folder)  # noqa: SIM115
        self.size_bytes = 0

    def write(self, data: bytes) -> None:
        """Add bytes; blocks."""
        self.size_bytes += len(data)
        if self.size_bytes > self._max_bytes:
            raise ResourceExhausted(f"the asset is over {self._max_bytes} bytes")
        self._hasher.update(data)
        for checksum in self._checksums.values():
            checksum.update(data)
        self._file.write(data)

    def digest(self) -> Digest:
        """Return the content's digest; Aborted when a checksum was demanded and none fits."""
        wanted = self._plan.checksums
        if wanted and not any(self._checksums[algorithm].digest() == value for algorithm, value in wanted):
            found = ", ".join(
                f"{algorithm}-{base64.b64encode(checksum.digest()).decode()}"
                for algorithm, checksum in self._checksums.items()
            )
            raise Aborted(f"the content fetched does not have the checksum.sri asked for, but {found}")
        return Digest(self._function, self._hasher.hexdigest(), self.size_bytes)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the content."""
        self._file.seek(0)
        while data := await asyncio.to_thread(self._file.read, CHUNK_BYTES):
            yield data

    def close(self) -> None:
        """Remove the file."""
        self._file.close()


class Fetcher:
    """Fetches by HTTP. Close it."""

    def __init__(self, blobs: BlobStore, config: FetchConfig | None = None) -> None:
        self._blobs = blobs
        self._config = config or FetchConfig()
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"<Fetcher into {self._blobs!r}>"

    async def close(self) -> None:
        """Close connections."""
        if self._session is not None:
            await self._session.close()

    def can_fetch(self, uri: str) -> bool:
        """Tell whether the scheme is one that is fetched at all, allowed or not."""
        return urlsplit(uri).scheme in ("http", "https", "file")

    async def fetch(
        self, uris: Sequence[str], plan: FetchPlan, function: DigestFunction, timeout_seconds: float
    ) -> tuple[str, Digest]:
        """Store the content of the first URI that works and return which one, and its digest.

        Raises what went wrong with the last one: NotFound, PermissionDenied, Aborted, ResourceExhausted,
        DeadlineExceeded, with the URI in a note.
        """
        failure: TvixError = NotFound("none of the URIs is one that this server fetches")
        try:
            async with asyncio.timeout(timeout_seconds):
                for index, uri in enumerate(uris):
                    if not self.can_fetch(uri):
                        continue
                    try:
                        return uri, await self._fetch_one(uri, plan.headers_of(index), plan, function)
                    except TvixError as error:
                        error.add_note(uri)
                        failure = error
        except TimeoutError as error:
            raise DeadlineExceeded(f"the fetch took longer than {timeout_seconds:g} s") from error
        raise failure

    async def _fetch_one(self, uri: str, headers: dict[str, str], plan: FetchPlan, function: DigestFunction) -> Digest:
        self._check_allowed(uri)
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self._config.attempts),
            wait=tenacity.wait_exponential(multiplier=self._config.retry_seconds, max=10),
            retry=tenacity.retry_if_exception_type(Unavailable),
            reraise=True,
        )
        try:
            return await retrying(self._attempt, uri, headers, plan, function)
        except Unavailable as error:
            raise Aborted(f"{error} ({self._config.attempts} attempts)") from error

    def _check_allowed(self, uri: str) -> None:
        parts = urlsplit(uri)
        if parts.scheme == "file":
            if not self._config.allow_files:
                raise PermissionDenied(f"{uri}: file: URIs are not allowed on this server")
            return
        host = parts.hostname or ""
        if not any(fnmatch.fnmatchcase(host, pattern) for pattern in self._config.allowed_hosts):
            raise PermissionDenied(f"{uri}: host {host!r} is not among those this server may fetch from")

    async def _attempt(self, uri: str, headers: dict[str, str], plan: FetchPlan, function: DigestFunction) -> Digest:
        spool = _Spool(function, plan, self._config)
        try:
            async with aclosing(self._content(uri, headers)) as pieces:
                async for piece in pieces:
                    await asyncio.to_thread(spool.write, piece)
            digest = spool.digest()
            async with aclosing(spool.chunks()) as chunks:
                await self._blobs.write(digest, chunks)
            return digest
        finally:
            spool.close()

    async def _content(self, uri: str, headers: dict[str, str]) -> AsyncGenerator[bytes, None]:
        if urlsplit(uri).scheme == "file":
            async with aclosing(_file_content(uri)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=120)
            self._session = aiohttp.ClientSession(timeout=timeout, read_bufsize=CHUNK_BYTES)
        try:
            async with self._session.get(uri, headers=headers) as response:
                _check_status(uri, response)
                async for piece in response.content.iter_chunked(CHUNK_BYTES):
                    yield piece
        except aiohttp.InvalidURL as error:
            raise InvalidInput(f"uris: {uri[:400]!r} is not a valid URL", field="uris") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(f"{uri}: {type(error).__name__}: {error}") from error


async def _file_content(uri: str) -> AsyncGenerator[bytes, None]:
    try:
        with open(urlsplit(uri).path, "rb") as file:  # noqa: ASYNC230
            while piece := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield piece
    except FileNotFoundError as error:
        raise NotFound(f"{uri}: there is no such file") from error
    except OSError as error:
        raise PermissionDenied(f"{uri}: {os.strerror(error.errno or 0)}") from error


def _check_status(uri: str, response: Any) -> None:
    if response.status == 200:
        return
    shown = f"{uri}: HTTP {response.status} {response.reason}"
    if response.status in (404, 410):
        raise NotFound(shown)
    if response.status in (401, 403, 407):
        raise PermissionDenied(shown)
    if response.status in (408, 429) or response.status >= 500:
        raise Unavailable(shown)
    raise Aborted(shown)
