"""Composition: what configuration makes, and what it says about mistakes."""

import tomllib
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tests.cas.blobs import read, write
from tests.cas.reapi_server import reapi_server
from tests.contracts.record_store import action_key, action_result
from tvix.cas.compose import check_document, compose, default_stores, open_blobs
from tvix.cas.memory import MemoryBlobStore
from tvix.cas.metered import StoreMetrics
from tvix.errors import InvalidInput, Unavailable


async def test_every_kind_of_store_is_made_and_works(tmp_path: Path) -> None:
    async with reapi_server() as url:
        document = tomllib.loads(
            f"""
            [blobs]
            ram = {{ type = "memory" }}
            disk = {{ type = "disk", path = "{tmp_path}/cas", compression = "zstd" }}
            far = {{ type = "grpc", url = "{url}/main", compress = true, headers = {{ x = "y" }} }}
            checked = {{ type = "verifying", inner = "ram" }}
            cached = {{ type = "cached", near = "disk", far = "far" }}
            both = {{ type = "fallback", first = "cached", then = "memory:" }}
            spread = {{ type = "sharded", shards = {{ a = "both", b = "memory:" }}, weights = {{ b = 0.5 }} }}
            guarded = {{ type = "authorizing", inner = "spread" }}
            main = {{ type = "metered", inner = "guarded" }}
            mirror = {{ type = "readonly", inner = "main" }}
            [actions]
            ram = {{ type = "memory" }}
            sql = {{ type = "sql", database = "{tmp_path}/records.sqlite" }}
            far = {{ type = "grpc", url = "{url}/main" }}
            cached = {{ type = "cached", inner = "sql", generations = "{tmp_path}/generations" }}
            both = {{ type = "fallback", first = "cached", then = "far" }}
            complete = {{ type = "complete", inner = "both", blobs = "main" }}
            guarded = {{ type = "authorizing", inner = "complete" }}
            main = {{ type = "metered", inner = "guarded" }}
            mirror = {{ type = "readonly", inner = "main" }}
            """
        )
        registry = CollectorRegistry()
        async with compose(document, metrics=StoreMetrics(registry)) as made:
            for data in (b"one", b"two", b"three"):
                digest = await write(made.blobs["main"], data)
                assert await read(made.blobs["mirror"], digest) == data
            await made.actions["main"].put(action_key("a"), action_result("one"))
            assert await made.actions["mirror"].get(action_key("a")) == action_result("one")
        assert registry.get_sample_value("tvix_store_seconds_count", {"store": "blobs.main", "method": "write"}) == 3


async def test_the_default_composition_keeps_what_it_is_given(tmp_path: Path) -> None:
    metrics = StoreMetrics(CollectorRegistry())
    async with default_stores(tmp_path, metrics=metrics) as (blobs, actions):
        digest = await write(blobs, b"data")
        await actions.put(action_key("a"), action_result("one"))
    async with default_stores(tmp_path, metrics=metrics) as (blobs, actions):
        assert await read(blobs, digest) == b"data"
        assert await actions.get(action_key("a")) == action_result("one")
        assert repr(actions).startswith("<CompleteRecords <MeteredRecordStore <CachedRecords")


async def test_stores_are_shared_between_those_that_refer_to_them() -> None:
    async with compose(
        {
            "blobs": {
                "a": {"type": "memory"},
                "b": {"type": "readonly", "inner": "a"},
                "c": {"type": "verifying", "inner": "a"},
            }
        }
    ) as made:
        digest = await write(made.blobs["c"], b"data")
        assert await read(made.blobs["b"], digest) == b"data"


async def test_urls_open_leaves(tmp_path: Path) -> None:
    async with open_blobs(f"file://{tmp_path}/a%20b") as store:
        digest = await write(store, b"data")
    assert (tmp_path / "a b").is_dir()
    async with open_blobs(f"file://{tmp_path}/a%20b") as store:
        assert await read(store, digest) == b"data"
    async with open_blobs("memory:") as store:
        assert isinstance(store, MemoryBlobStore)
    async with reapi_server() as url, open_blobs(url) as store:
        assert await read(store, await write(store, b"data")) == b"data"
    document = {"actions": {"main": {"type": "readonly", "inner": f"sqlite://{tmp_path}/r.sqlite"}}}
    async with compose(document) as made:
        assert await made.actions["main"].get(action_key("a")) is None


MISTAKES = [
    ("blobz.main.type = 'memory'", "blobz: unknown; did you mean 'blobs'?"),
    ("blobs = 3", "blobs: must be a table of tables"),
    ("blobs.main = 'memory:'", "blobs.main: must be a table"),
    ("blobs.main = {}", "blobs.main.type: is missing; known are memory, disk, grpc"),
    ("blobs.main.type = 'dsik'", "blobs.main.type: 'dsik' is unknown; known are memory, disk, grpc"),
    ("blobs.main.type = 'dsik'", "did you mean 'disk'?"),
    ("blobs.main = { type = 'verifying' }", "blobs.main.inner: is missing"),
    (
        "blobs.main = { type = 'disk', path = '/x', max_size = 3 }",
        "blobs.main.max_size: unknown; known are path, max_size_bytes",
    ),
    ("blobs.main = { type = 'disk', path = '/x', max_size_bytes = 'big' }", "blobs.main.max_size_bytes: 'big': "),
    ("blobs.main = { type = 'disk', path = '/x', max_size_bytes = 3 }", "max_size_bytes: 3 is less than 1 MiB"),
    (
        "blobs.main = { type = 'verifying', inner = 'dsik' }",
        "blobs.main.inner: there is no [blobs.dsik]; there are: main",
    ),
    ("blobs.main = { type = 'verifying', inner = 'main' }", "blobs.main.inner: stores refer to each other in a circle"),
    ("blobs.main = { type = 'verifying', inner = 'ftp://x' }", "blobs.main.inner: 'ftp://x': not a blob store"),
    ("blobs.main = { type = 'verifying', inner = 'file://x/y' }", "write file:///absolute/path"),
    ("blobs.main = { type = 'verifying', inner = 'grpc://x' }", "blobs.main.inner: 'grpc://x': write grpc://host:port"),
    ("blobs.main = { type = 'sharded', shards = {} }", "blobs.main.shards: {}: "),
    (
        "blobs.main = { type = 'sharded', shards = { a = 'memory:' }, weights = { b = 1 } }",
        "blobs.main.weights.b: there is no such shard",
    ),
    (
        "blobs.main = { type = 'sharded', shards = { a = 'memory:' }, weights = { a = 0 } }",
        "blobs.main: shards.a.weight: 0",
    ),
    (
        "actions.main = { type = 'readonly', inner = 'file:///x' }",
        "actions.main.inner: 'file:///x': not an action cache",
    ),
    (
        "actions.main = { type = 'complete', inner = 'memory:', blobs = 'b' }",
        "actions.main.blobs: there is no [blobs.b]",
    ),
]


@pytest.mark.parametrize(("toml", "said"), MISTAKES)
async def test_mistakes_are_named_by_their_key(toml: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        async with compose(tomllib.loads(toml)):
            pass
    assert said in str(caught.value)


async def test_a_circle_is_drawn() -> None:
    document = {"blobs": {name: {"type": "readonly", "inner": other} for name, other in ("ab", "bc", "ca")}}
    with pytest.raises(InvalidInput, match=r"blobs.a → blobs.b → blobs.c → blobs.a"):
        async with compose(document):
            pass


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        check_document({"blobs": {"a": {"type": "x"}, "b": {"type": "disk", "pth": 1}}, "rest": {}})
    assert len(str(caught.value).splitlines()) == 4


async def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable, match=f"{tmp_path}/file"):
        async with compose({"blobs": {"main": {"type": "disk", "path": str(tmp_path / "file")}}}):
            pass
