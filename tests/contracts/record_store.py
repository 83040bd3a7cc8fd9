"""What every record store and every decorator of one must do; called from the tests of each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import digest_of
from tvix.cas.interfaces import ActionCache, ActionKey

MakeActionCache = Callable[[], AbstractAsyncContextManager[ActionCache]]
"""Gives a fresh, empty store and closes it in the end."""


def action_key(name: str, instance_name: str = "") -> ActionKey:
    """Return a key that is another one for another name."""
    return ActionKey(instance_name, digest_of(name.encode()))


def action_result(worker: str) -> re_pb2.ActionResult:
    """Return a result that refers to no blobs, so that completeness checks let it pass."""
    return re_pb2.ActionResult(exit_code=0, execution_metadata=re_pb2.ExecutedActionMetadata(worker=worker))


async def check_record_store(make: MakeActionCache) -> None:
    """Run the whole suite, each check on a fresh store."""
    for check in CHECKS:
        async with make() as store:
            try:
                await check(store)
            except BaseException as error:
                error.add_note(f"contract: {check.__name__} on {store!r}")
                raise


async def absent_is_none(store: ActionCache) -> None:
    assert await store.get(action_key("absent")) is None


async def what_was_put_is_got(store: ActionCache) -> None:
    await store.put(action_key("a"), action_result("one"))
    assert await store.get(action_key("a")) == action_result("one")
    assert await store.get(action_key("b")) is None


async def the_last_put_wins(store: ActionCache) -> None:
    await store.put(action_key("a"), action_result("one"))
    assert await store.get(action_key("a")) == action_result("one")
    await store.put(action_key("a"), action_result("two"))
    assert await store.get(action_key("a")) == action_result("two")


async def keys_are_scoped_by_instance_function_and_size(store: ActionCache) -> None:
    key = action_key("a")
    await store.put(key, action_result("one"))
    digest = key.action_digest
    assert await store.get(ActionKey("other/instance", digest)) is None
    assert await store.get(ActionKey("", digest._replace(function="blake3"))) is None
    assert await store.get(ActionKey("", digest._replace(size_bytes=digest.size_bytes + 1))) is None


async def deleted_is_absent(store: ActionCache) -> None:
    await store.put(action_key("a"), action_result("one"))
    await store.put(action_key("b"), action_result("two"))
    assert await store.get(action_key("a")) is not None
    await store.delete(action_key("a"))
    assert await store.get(action_key("a")) is None
    assert await store.get(action_key("b")) == action_result("two")


async def deleting_the_absent_is_fine(store: ActionCache) -> None:
    await store.delete(action_key("absent"))


async def unknown_fields_survive(store: ActionCache) -> None:
    data = action_result("one").SerializeToString() + b"\xfa\x3f\x03abc"  # field 1023
    await store.put(action_key("a"), re_pb2.ActionResult.FromString(data))
    got = await store.get(action_key("a"))
    assert got is not None
    assert got.SerializeToString() == data


async def concurrent_puts_all_arrive(store: ActionCache) -> None:
    async with asyncio.TaskGroup() as group:
        for index in range(50):
            group.create_task(store.put(action_key(f"{index}"), action_result(f"{index}")))
    for index in range(50):
        assert await store.get(action_key(f"{index}")) == action_result(f"{index}")


async def concurrent_puts_of_one_key_leave_one_of_them(store: ActionCache) -> None:
    async with asyncio.TaskGroup() as group:
        for index in range(20):
            group.create_task(store.put(action_key("a"), action_result(f"{index}")))
    assert await store.get(action_key("a")) in [action_result(f"{index}") for index in range(20)]


async def a_cancelled_put_harms_nobody(store: ActionCache) -> None:
    for turns in range(12):
        victim = asyncio.ensure_future(store.put(action_key("victim"), action_result("victim")))
        others = [
            asyncio.ensure_future(store.put(action_key(f"{turns} {index}"), action_result("x"))) for index in range(3)
        ]
        for _ in range(turns):
            await asyncio.sleep(0)
        victim.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await victim
        await asyncio.gather(*others)
        for index in range(3):
            assert await store.get(action_key(f"{turns} {index}")) == action_result("x")
    assert await store.get(action_key("victim")) in (None, action_result("victim"))


async def a_cancelled_get_harms_nobody(store: ActionCache) -> None:
    await store.put(action_key("a"), action_result("one"))
    for turns in range(12):
        reader = asyncio.ensure_future(store.get(action_key("a")))
        for _ in range(turns):
            await asyncio.sleep(0)
        reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reader
        assert await store.get(action_key("a")) == action_result("one")


CHECKS = [
    absent_is_none,
    what_was_put_is_got,
    the_last_put_wins,
    keys_are_scoped_by_instance_function_and_size,
    deleted_is_absent,
    deleting_the_absent_is_fine,
    unknown_fields_survive,
    concurrent_puts_all_arrive,
    concurrent_puts_of_one_key_leave_one_of_them,
    a_cancelled_put_harms_nobody,
    a_cancelled_get_harms_nobody,
]


def closing(make: Callable[[], ActionCache]) -> MakeActionCache:
    """Return the maker of a store that needs nothing else."""

    @contextlib.asynccontextmanager
    async def made() -> AsyncIterator[ActionCache]:
        store = make()
        try:
            yield store
        finally:
            await store.close()

    return made
