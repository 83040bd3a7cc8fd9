import asyncio
import os
from contextlib import aclosing
from pathlib import Path

import pytest

from tvix.cas.logstream import LogStreamLimits, LogStreams
from tvix.errors import (
    FailedPrecondition,
    InvalidInput,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    TvixError,
)


@pytest.fixture
def streams(tmp_path: Path) -> LogStreams:
    return LogStreams(tmp_path / "logs")


async def read_all(streams: LogStreams, name: str, offset: int = 0, limit: int | None = None) -> bytes:
    async with aclosing(streams.read(name, offset, limit)) as chunks:
        return b"".join([chunk async for chunk in chunks])


@pytest.mark.parametrize("parent", ["", "main", "projects/p/operations/o"])
async def test_what_is_appended_is_read(streams: LogStreams, parent: str) -> None:
    name, write_name = await streams.create(parent)
    assert name.startswith(f"{parent}/logstreams/" if parent else "logstreams/")
    assert write_name.startswith(f"{name}/")
    assert await streams.append(write_name, 0, b"one ") == 4
    assert await streams.status(write_name) == (4, False)
    assert await streams.append(write_name, 4, b"two", finish=True) == 7
    assert await streams.status(write_name) == (7, True)
    assert await read_all(streams, name) == b"one two"
    assert await read_all(streams, name, 4) == b"two"
    assert await read_all(streams, name, 2, 3) == b"e t"
    assert await read_all(streams, name, 7) == b""


async def test_readers_tail_until_the_end(streams: LogStreams, tmp_path: Path) -> None:
    name, write_name = await streams.create("main")
    elsewhere = LogStreams(tmp_path / "logs")  # As another process sees it.
    readers = [asyncio.create_task(read_all(place, name)) for place in (streams, streams, elsewhere)]
    first = asyncio.create_task(read_all(elsewhere, name, limit=3))
    await streams.append(write_name, 0, b"early ")
    assert await first == b"ear"
    await elsewhere.append(write_name, 6, b"late")
    assert not any(reader.done() for reader in readers)
    await elsewhere.append(write_name, 10, b"", finish=True)
    assert await asyncio.gather(*readers) == [b"early late"] * 3


async def test_a_stream_can_be_finished_by_whoever_made_it(streams: LogStreams) -> None:
    name, write_name = await streams.create("main")
    reader = asyncio.create_task(read_all(streams, name))
    await streams.finish(name)
    await streams.finish(write_name)
    assert await reader == b""
    with pytest.raises(FailedPrecondition, match="finished"):
        await streams.append(write_name, 0, b"more")
    assert await streams.append(write_name, 0, b"", finish=True) == 0


async def test_many_writers_lose_nothing(streams: LogStreams) -> None:
    name, write_name = await streams.create("main")
    outcomes = await asyncio.gather(
        *(streams.append(write_name, 0, b"%d" % index) for index in range(8)), return_exceptions=True
    )
    assert sorted(map(str, map(type, outcomes))).count("<class 'int'>") == 1
    await streams.finish(name)
    assert len(await read_all(streams, name)) == 1


async def test_names_are_checked(streams: LogStreams) -> None:
    name, write_name = await streams.create("main")
    _, other_write_name = await streams.create("main")
    invented = name[:-1] + ("0" if name[-1] != "0" else "1")
    moved = name.replace("main", "other")
    wrong_token = f"{name}/{other_write_name.rpartition('/')[2]}"
    cases: list[tuple[str, type[TvixError], str]] = [
        (invented, NotFound, "no log stream"),
        (moved, NotFound, "no log stream"),
        ("logstreams/x", NotFound, "no log stream"),
        ("a/logstreams/", NotFound, "no log stream"),
    ]
    for bad_name, kind, message in cases:
        with pytest.raises(kind, match=message):
            await read_all(streams, bad_name)
        with pytest.raises(kind, match=message):
            await streams.append(f"{bad_name}/token", 0, b"x")
        with pytest.raises(kind, match=message):
            await streams.finish(bad_name)
    with pytest.raises(InvalidInput, match="for writing"):
        await read_all(streams, write_name)
    with pytest.raises(InvalidInput, match="for reading"):
        await streams.append(name, 0, b"x")
    with pytest.raises(PermissionDenied):
        await streams.append(wrong_token, 0, b"x")
    with pytest.raises(InvalidInput, match="write_offset: 3"):
        await streams.append(write_name, 3, b"x")


@pytest.mark.parametrize("parent", ["/a", "a/", "a//b", "logstreams", "a/logstreams/b", "uploads", "x" * 2000, "a\0b"])
async def test_bad_parents_are_refused(streams: LogStreams, parent: str) -> None:
    with pytest.raises(InvalidInput, match="parent"):
        await streams.create(parent)


async def test_offsets_outside_are_refused(streams: LogStreams) -> None:
    name, write_name = await streams.create("main")
    await streams.append(write_name, 0, b"abc")
    for offset in (-1, 4):
        with pytest.raises(OutOfRange, match=f"read_offset: {offset}"):
            await read_all(streams, name, offset)


async def test_streams_are_bounded(tmp_path: Path) -> None:
    streams = LogStreams(tmp_path, LogStreamLimits(max_stream_bytes=10))
    name, write_name = await streams.create("main")
    await streams.append(write_name, 0, b"12345678")
    with pytest.raises(ResourceExhausted, match="over 10 bytes"):
        await streams.append(write_name, 8, b"9abcd")
    assert await read_all(streams, name) == b"123456789a"


async def test_old_streams_go_and_the_oldest_when_there_is_too_much(tmp_path: Path) -> None:
    clock = [1_000_000.0]
    limits = LogStreamLimits(max_total_bytes=25, kept_seconds=100)
    streams = LogStreams(tmp_path, limits, now=lambda: clock[0])
    names = [await streams.create("main") for _ in range(4)]
    for age, (_, write_name) in enumerate(names[:3]):
        await streams.append(write_name, 0, b"0123456789", finish=True)
        path = tmp_path / f"{write_name.split('/')[-2]}.done"
        os.utime(path, (clock[0] - age, clock[0] - age))
    assert await streams.prune() == 1
    with pytest.raises(OutOfRange):
        await read_all(streams, names[2].name, 1)
    clock[0] += 100
    assert await streams.prune() == 1
    assert await read_all(streams, names[0].name) == b"0123456789"
    clock[0] += 1
    assert await streams.prune() == 1
    for name, _ in names:
        with pytest.raises(NotFound, match="not kept"):
            await read_all(streams, name)


@pytest.mark.parametrize(
    ("name", "claimed"),
    [
        ("logstreams/x", True),
        ("a/b/logstreams/x/y", True),
        (f"blobs/{'a' * 64}/1", False),
        (f"logstreams/blobs/{'a' * 64}/1", False),
        (f"uploads/0f7a4b1c-9c3e-4b60-8f6b-3c1de1f0a001/blobs/{'a' * 64}/1/logstreams/x", False),
        ("logstreams", False),
    ],
)
def test_claims(streams: LogStreams, name: str, claimed: bool) -> None:
    assert streams.claims(name) is claimed
