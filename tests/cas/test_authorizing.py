"""Rights: each method needs its own, and says whose is lacking."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from tests.cas.blobs import chunks_of, read
from tests.contracts.blob_store import BlobStoreContract
from tests.contracts.record_store import action_key, action_result, check_record_store, closing
from tvix.cas.authorizing import (
    ANYONE,
    AuthorizingBlobStore,
    AuthorizingRecordStore,
    Caller,
    Rights,
    caller,
    caller_name,
    instance_of_action,
    require,
)
from tvix.cas.digest import digest_of
from tvix.cas.interfaces import ActionCache, BlobStore
from tvix.cas.memory import MemoryBlobStore, MemoryRecordStore
from tvix.errors import PermissionDenied

DIGEST = digest_of(b"data")


@contextmanager
def called_by(who: Caller) -> Iterator[None]:
    token = caller.set(who)
    try:
        yield
    finally:
        caller.reset(token)


def action_cache() -> ActionCache:
    return AuthorizingRecordStore(MemoryRecordStore(), Rights.AC_READ, Rights.AC_WRITE, instance_of_action)


CALLS: list[tuple[str, Rights, Callable[[], Awaitable[object]]]] = [
    ("find_missing", Rights.CAS_READ, lambda: AuthorizingBlobStore(MemoryBlobStore()).find_missing([DIGEST])),
    ("get_many", Rights.CAS_READ, lambda: AuthorizingBlobStore(MemoryBlobStore()).get_many([DIGEST])),
    ("read", Rights.CAS_READ, lambda: read(AuthorizingBlobStore(MemoryBlobStore()), digest_of(b""))),
    ("write", Rights.CAS_WRITE, lambda: AuthorizingBlobStore(MemoryBlobStore()).write(DIGEST, chunks_of(b"data"))),
    ("put_many", Rights.CAS_WRITE, lambda: AuthorizingBlobStore(MemoryBlobStore()).put_many([(DIGEST, b"data")])),
    ("get", Rights.AC_READ, lambda: action_cache().get(action_key("a"))),
    ("put", Rights.AC_WRITE, lambda: action_cache().put(action_key("a"), action_result("one"))),
    ("delete", Rights.AC_WRITE, lambda: action_cache().delete(action_key("a"))),
]


@pytest.mark.parametrize(("right", "call"), [row[1:] for row in CALLS], ids=[row[0] for row in CALLS])
async def test_each_method_needs_its_right_and_no_other(right: Rights, call: Callable[[], Awaitable[object]]) -> None:
    with called_by(Caller("alice", right)):
        await call()
    denied = pytest.raises(PermissionDenied, match=f"mallory lacks the right {right.name}")
    with called_by(Caller("mallory", Rights.ALL & ~right)), denied:
        await call()


async def test_rights_may_differ_by_instance() -> None:
    store = action_cache()
    with called_by(Caller("alice", Rights.READ, {"hers": Rights.ALL})):
        await store.put(action_key("a", "hers"), action_result("one"))
        with pytest.raises(PermissionDenied, match="alice lacks the right AC_WRITE in instance 'theirs'"):
            await store.put(action_key("a", "theirs"), action_result("one"))
        with pytest.raises(PermissionDenied):
            require(Rights.ADMIN)
        assert caller_name() == "alice"


def test_without_an_authenticator_anyone_may_do_everything() -> None:
    for right in Rights:
        require(right, "anywhere")
    assert caller.get() is ANYONE
    assert caller_name() == ""


async def test_records_keep_the_contract() -> None:
    await check_record_store(closing(action_cache))


class TestAuthorizing(BlobStoreContract):
    @asynccontextmanager
    async def make(self, tmp_path: Path) -> AsyncIterator[BlobStore]:
        yield AuthorizingBlobStore(MemoryBlobStore())
