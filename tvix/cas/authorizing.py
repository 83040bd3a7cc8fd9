"""Who may do what. The edge says who is calling, in one ContextVar; only this file asks.

Rights are separate, and may differ per instance name. Without an authenticator every caller is
`ANYONE`, who may do everything: such a server listens on loopback only.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

from tvix.cas.digest import Digest
from tvix.cas.forwarding import ForwardingBlobStore, ForwardingRecordStore
from tvix.cas.interfaces import ActionKey, BlobStore, K, RecordStore, V
from tvix.errors import PermissionDenied, TvixError


class Rights(enum.Flag):
    """What a caller may do."""

    CAS_READ = enum.auto()
    CAS_WRITE = enum.auto()
    AC_READ = enum.auto()
    AC_WRITE = enum.auto()
    EXECUTE = enum.auto()
    ASSET_FETCH = enum.auto()
    ASSET_PUSH = enum.auto()
    LOG_READ = enum.auto()
    LOG_WRITE = enum.auto()
    WORK = enum.auto()
    """Take leases and report results, as workers do."""
    ADMIN = enum.auto()

    NONE = 0
    READ = CAS_READ | AC_READ | ASSET_FETCH | LOG_READ
    ALL = READ | CAS_WRITE | AC_WRITE | EXECUTE | ASSET_PUSH | LOG_WRITE | WORK | ADMIN


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling, and what they may do: `rights`, or for the instances named, those given there."""

    name: str
    rights: Rights
    rights_by_instance: Mapping[str, Rights] = field(default_factory=dict)

    def may(self, right: Rights, instance_name: str = "") -> bool:
        """Say whether the caller has all of `right`."""
        return right in self.rights_by_instance.get(instance_name, self.rights)


ANYONE = Caller("", Rights.ALL)

caller: ContextVar[Caller] = ContextVar("caller", default=ANYONE)
"""Set by the authenticator at the edge, for the duration of a call."""


def require(right: Rights, instance_name: str = "") -> None:
    """Raise PermissionDenied, naming caller, right and instance, unless the caller has the right."""
    who = caller.get()
    if not who.may(right, instance_name):
        where = f" in instance {instance_name!r}" if instance_name else ""
        raise PermissionDenied(f"{who.name or 'an unknown caller'} lacks the right {right.name}{where}")


def caller_name() -> str:
    """Return who is calling; empty when nobody was authenticated. For the writer column of records."""
    return caller.get().name


class AuthorizingBlobStore(ForwardingBlobStore):
    """Asks for CAS_READ before reads and find_missing, CAS_WRITE before writes."""

    def __init__(self, inner: BlobStore, instance_name: str = "") -> None:
        super().__init__(inner)
        self._instance_name = instance_name

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        require(Rights.CAS_READ, self._instance_name)
        return await self._inner.find_missing(digests)

    def read(self, digest: Digest, *, offset: int = 0, limit: int | None = None) -> AsyncGenerator[bytes, None]:
        """Raise already when called, sparing every read a generator in between."""
        require(Rights.CAS_READ, self._instance_name)
        return self._inner.read(digest, offset=offset, limit=limit)

    async def write(self, digest: Digest, chunks: AsyncIterable[bytes]) -> None:
        require(Rights.CAS_WRITE, self._instance_name)
        await self._inner.write(digest, chunks)

    async def get_many(self, digests: Sequence[Digest]) -> list[bytes | None]:
        require(Rights.CAS_READ, self._instance_name)
        return await self._inner.get_many(digests)

    async def put_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> list[TvixError | None]:
        require(Rights.CAS_WRITE, self._instance_name)
        return await self._inner.put_many(blobs)


class AuthorizingRecordStore(ForwardingRecordStore[K, V]):
    """Asks for `reading` before `get`, `writing` before `put` and `delete`, in the instance of the key."""

    def __init__(
        self, inner: RecordStore[K, V], reading: Rights, writing: Rights, instance_of: Callable[[K], str]
    ) -> None:
        super().__init__(inner)
        self._reading = reading
        self._writing = writing
        self._instance_of = instance_of

    async def get(self, key: K) -> V | None:
        require(self._reading, self._instance_of(key))
        return await self._inner.get(key)

    async def put(self, key: K, value: V) -> None:
        require(self._writing, self._instance_of(key))
        await self._inner.put(key, value)

    async def delete(self, key: K) -> None:
        require(self._writing, self._instance_of(key))
        await self._inner.delete(key)


def instance_of_action(key: ActionKey) -> str:
    """Return the instance of an action cache key, for AuthorizingRecordStore."""
    return key.instance_name
