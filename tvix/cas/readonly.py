"""Stores that refuse to be changed: mirrors, archives, and servers in maintenance."""

from __future__ import annotations

from collections.abc import AsyncIterable, Sequence
from typing import NoReturn

from tvix.cas.digest import Digest
from tvix.cas.forwarding import ForwardingBlobStore, ForwardingRecordStore
from tvix.cas.interfaces import K, V
from tvix.errors import PermissionDenied, TvixError


def _refuse() -> NoReturn:
    raise PermissionDenied("this store is read-only")


class ReadOnlyBlobStore(ForwardingBlobStore):
    """Reads only; writes raise PermissionDenied without looking at the data."""

    async def write(self, digest: Digest, chunks: AsyncIterable[bytes]) -> None:
        _refuse()

    async def put_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> list[TvixError | None]:
        _refuse()


class ReadOnlyRecordStore(ForwardingRecordStore[K, V]):
    """Reads only; `put` and `delete` raise PermissionDenied."""

    async def put(self, key: K, value: V) -> None:
        _refuse()

    async def delete(self, key: K) -> None:
        _refuse()
