"""Completeness: a result is shown only while all its blobs are there, whatever form they are named in."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import pytest

from remote_apis import remote_execution_pb2 as re_pb2
from tests.contracts.record_store import action_key, action_result, check_record_store, closing
from tvix.cas.complete import ActionResultDigests, CompleteRecords
from tvix.cas.digest import EMPTY, FUNCTIONS, Digest, DigestFunction, digest_of, digest_to_proto
from tvix.cas.directory import encode_directory, tree_from_directories
from tvix.cas.interfaces import ActionKey
from tvix.cas.memory import MemoryBlobStore, MemoryRecordStore
from tvix.cas.tree import TreeWalker

Records = CompleteRecords[ActionKey, re_pb2.ActionResult]


class CountingStore(MemoryBlobStore):
    def __init__(self) -> None:
        super().__init__()
        self.asked: list[set[Digest]] = []
        self.fetches = 0

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        self.asked.append(set(digests))
        return await super().find_missing(digests)

    async def get_many(self, digests: object) -> list[bytes | None]:
        self.fetches += 1
        return await super().get_many(digests)  # type: ignore[arg-type]


@dataclass
class World:
    """Blobs, records over them, and one result that names a blob in every way there is."""

    function: DigestFunction = "sha256"
    blobs: CountingStore = field(default_factory=CountingStore)
    inner: MemoryRecordStore[ActionKey, re_pb2.ActionResult] = field(default_factory=MemoryRecordStore)

    def records(self, max_remembered: int = 1000) -> Records:
        digests_of = ActionResultDigests(self.blobs, TreeWalker(self.blobs), max_remembered)
        return CompleteRecords(self.inner, self.blobs, digests_of, max_remembered)

    @property
    def key(self) -> ActionKey:
        return ActionKey("", digest_of(b"action", self.function))

    def add(self, data: bytes) -> Digest:
        digest = digest_of(data, self.function)
        self.blobs.blobs[digest] = data
        return digest

    def add_directory(self, files: dict[str, Digest], directories: dict[str, Digest]) -> Digest:
        return self.add(
            encode_directory(
                re_pb2.Directory(
                    files=[re_pb2.FileNode(name=name, digest=digest_to_proto(at)) for name, at in files.items()],
                    directories=[
                        re_pb2.DirectoryNode(name=name, digest=digest_to_proto(at)) for name, at in directories.items()
                    ],
                )
            )
        )

    def full_result(self) -> re_pb2.ActionResult:
        deep = self.add_directory({"in tree": self.add(b"in tree"), "empty": EMPTY[self.function]}, {})
        top = self.add_directory({"at top": self.add(b"at top")}, {"deep": deep})
        tree = self.add(tree_from_directories(top, self.blobs.blobs))
        for digest in (deep, top):  # only the Tree holds them
            del self.blobs.blobs[digest]
        leaf = self.add_directory({"leaf file": self.add(b"leaf file")}, {})
        root = self.add_directory({"root file": self.add(b"root file")}, {"leaf": leaf})
        return re_pb2.ActionResult(
            output_files=[
                re_pb2.OutputFile(path="a", digest=digest_to_proto(self.add(b"output"))),
                re_pb2.OutputFile(path="b", digest=digest_to_proto(EMPTY[self.function])),
                re_pb2.OutputFile(path="c", contents=b"inlined only"),
            ],
            output_directories=[
                re_pb2.OutputDirectory(path="t", tree_digest=digest_to_proto(tree)),
                re_pb2.OutputDirectory(path="r", root_directory_digest=digest_to_proto(root)),
            ],
            stdout_digest=digest_to_proto(self.add(b"stdout")),
            stderr_digest=digest_to_proto(self.add(b"stderr")),
            stdout_raw=b"stdout",
        )


async def test_it_keeps_the_contract() -> None:
    await check_record_store(closing(lambda: World().records()))


@pytest.mark.parametrize("function", FUNCTIONS)
async def test_any_single_missing_blob_hides_the_result(function: DigestFunction) -> None:
    world = World(function)
    result = world.full_result()
    await world.inner.put(world.key, result)
    warm = world.records()
    assert await warm.get(world.key) == result
    assert len(world.blobs.blobs) == 10
    for digest, data in list(world.blobs.blobs.items()):
        del world.blobs.blobs[digest]
        assert await warm.get(world.key) is None, data
        assert await world.records().get(world.key) is None, data
        world.blobs.blobs[digest] = data
        assert await warm.get(world.key) == result, data
        assert await world.records().get(world.key) == result, data


async def test_a_repeated_hit_is_one_question_about_all_blobs_and_touches_them() -> None:
    world = World()
    await world.inner.put(world.key, world.full_result())
    records = world.records()
    await records.get(world.key)
    fetches = world.blobs.fetches
    world.blobs.asked.clear()
    assert await records.get(world.key)
    assert world.blobs.asked == [set(world.blobs.blobs)]
    assert world.blobs.fetches == fetches


async def test_a_changed_record_is_looked_into_again() -> None:
    world = World()
    records = world.records()
    await records.put(world.key, world.full_result())
    assert await records.get(world.key)
    other = re_pb2.ActionResult(stdout_digest=digest_to_proto(digest_of(b"nowhere")))
    await world.inner.put(world.key, other)  # by another process
    assert await records.get(world.key) is None
    equal = re_pb2.ActionResult()
    equal.CopyFrom(other)
    await world.inner.put(world.key, equal)
    world.add(b"nowhere")
    assert await records.get(world.key) is equal


MALFORMED: list[tuple[str, Callable[[World], re_pb2.ActionResult]]] = [
    ("uppercase", lambda _: re_pb2.ActionResult(stdout_digest=re_pb2.Digest(hash="AB" * 32, size_bytes=1))),
    ("short", lambda _: re_pb2.ActionResult(stderr_digest=re_pb2.Digest(hash="ab", size_bytes=1))),
    ("negative", lambda _: re_pb2.ActionResult(stderr_digest=re_pb2.Digest(hash="ab" * 32, size_bytes=-1))),
    (
        "no tree",
        lambda world: re_pb2.ActionResult(
            output_directories=[re_pb2.OutputDirectory(tree_digest=digest_to_proto(world.add(b"\x0a\xff")))]
        ),
    ),
    (
        "no directory",
        lambda world: re_pb2.ActionResult(
            output_directories=[re_pb2.OutputDirectory(root_directory_digest=digest_to_proto(world.add(b"\x0a\xff")))]
        ),
    ),
    (
        "bad digest in tree",
        lambda world: re_pb2.ActionResult(
            output_directories=[
                re_pb2.OutputDirectory(
                    tree_digest=digest_to_proto(
                        world.add(
                            re_pb2.Tree(
                                root=re_pb2.Directory(files=[re_pb2.FileNode(name="f")]), children=[]
                            ).SerializeToString()
                        )
                    )
                )
            ]
        ),
    ),
    (
        "tree larger than any",
        lambda _: re_pb2.ActionResult(
            output_directories=[
                re_pb2.OutputDirectory(tree_digest=re_pb2.Digest(hash="ab" * 32, size_bytes=2**60)),
            ]
        ),
    ),
]


@pytest.mark.parametrize("make", [make for _, make in MALFORMED], ids=[name for name, _ in MALFORMED])
async def test_a_malformed_result_is_absent_and_logged(
    make: Callable[[World], re_pb2.ActionResult], caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    await world.inner.put(world.key, make(world))
    assert await world.records().get(world.key) is None
    assert "malformed, shown as absent" in caplog.text
    assert str(world.key.action_digest.hash) in caplog.text


async def test_a_missing_tree_or_root_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    for name in ("tree_digest", "root_directory_digest"):
        directory = re_pb2.OutputDirectory(**{name: re_pb2.Digest(hash="ab" * 32, size_bytes=7)})  # type: ignore[arg-type]
        await world.inner.put(world.key, re_pb2.ActionResult(output_directories=[directory]))
        assert await world.records().get(world.key) is None
    assert caplog.text == ""


async def test_a_large_tree_is_read_in_one_piece() -> None:
    world = World()
    names = [f"{index:03}".ljust(40_000, "x") for index in range(250)]
    root = world.add_directory({name: world.add(name.encode()) for name in names}, {})
    tree = world.add(tree_from_directories(root, world.blobs.blobs))
    assert tree.size_bytes > 8 * 1024 * 1024
    result = re_pb2.ActionResult(output_directories=[re_pb2.OutputDirectory(tree_digest=digest_to_proto(tree))])
    await world.inner.put(world.key, result)
    assert await world.records().get(world.key) is result
    del world.blobs.blobs[digest_of(names[7].encode())]
    assert await world.records().get(world.key) is None


async def test_what_is_remembered_is_bounded() -> None:
    world = World()
    records = world.records(max_remembered=20)
    for index in range(10):
        key = action_key(f"{index}")
        await records.put(key, world.full_result())
        assert await records.get(key)
    assert len(records._known) <= 2
    assert records._room >= 0


async def test_a_result_without_blobs_asks_nothing() -> None:
    world = World()
    await world.inner.put(world.key, action_result("worker"))
    assert await world.records().get(world.key) == action_result("worker")
    assert world.blobs.asked == []
