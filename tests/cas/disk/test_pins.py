"""Pin files, and what trees reach."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import Digest, digest_of, digest_to_proto
from tvix.cas.disk.pins import Closures, Pin, PinFiles, Pins, references

ONE, TWO = digest_of(b"1"), digest_of(b"2", "blake3")


def test_pins_of_all_owners_are_loaded_until_they_expire(tmp_path: Path) -> None:
    files = PinFiles(tmp_path)
    first = Pin("one/../owner", 100.0, (ONE,), (TWO,))
    second = Pin("another", 200.0, (), ())
    files.put(first)
    files.put(second)
    assert {pin.owner: pin for pin in PinFiles(tmp_path).load(99.0)} == {"one/../owner": first, "another": second}
    assert files.load(100.0) == [second]
    assert len(list(tmp_path.iterdir())) == 1


def test_pinning_anew_replaces_and_unpinning_removes(tmp_path: Path) -> None:
    files = PinFiles(tmp_path)
    files.put(Pin("owner", 100.0, (ONE,), ()))
    files.put(Pin("owner", 100.0, (), (TWO,)))
    assert files.load(1.0) == [Pin("owner", 100.0, (), (TWO,))]
    files.remove("owner")
    files.remove("owner")
    assert files.load(1.0) == []


def test_torn_and_foreign_files_are_no_pins(tmp_path: Path) -> None:
    (tmp_path / "torn").write_text('{"owner": "x", "un')
    (tmp_path / "foreign").write_text("[1, 2]")
    assert PinFiles(tmp_path).load(1.0) == []


def test_a_short_pin_counts_without_a_file(tmp_path: Path) -> None:
    pins = Pins(PinFiles(tmp_path))
    pin = Pin("owner", 100.0, (ONE,), ())
    pins.put(pin)
    assert pins.load(1.0) == [pin]
    assert list(tmp_path.iterdir()) == []
    assert not pins.forget("owner")
    assert pins.load(1.0) == []


def test_a_lasting_pin_gets_a_file_that_others_see(tmp_path: Path) -> None:
    pins = Pins(PinFiles(tmp_path))
    pins.put(Pin("owner", 100.0, (ONE,), ()))
    pins.write_young()
    assert not pins.any_young
    renewed = Pin("owner", 200.0, (TWO,), ())
    pins.put(renewed)
    assert pins.load(1.0) == [renewed]
    assert [pin.until for pin in Pins(PinFiles(tmp_path)).load(1.0)] == [100.0]
    assert pins.forget("owner")
    pins.remove("owner")
    assert pins.load(1.0) == []


def test_the_file_of_a_predecessor_can_be_removed(tmp_path: Path) -> None:
    PinFiles(tmp_path).put(Pin("owner", 100.0, (ONE,), ()))
    assert Pins(PinFiles(tmp_path)).forget("owner")


def test_references_of_noise_are_none() -> None:
    assert references(ONE, b"\xff\xff") == ([], [])


class Trees:
    """Directories in a dict, and how often each was asked for."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, bytes] = {}
        self.asked: list[Digest] = []

    async def get_many(self, digests: Sequence[Digest]) -> list[bytes | None]:
        self.asked += digests
        return [self.blobs.get(digest) for digest in digests]

    def add(self, files: Sequence[Digest], children: Sequence[Digest]) -> Digest:
        message = re_pb2.Directory(
            files=[
                re_pb2.FileNode(name=str(number), digest=digest_to_proto(file)) for number, file in enumerate(files)
            ],
            directories=[
                re_pb2.DirectoryNode(name=f"d{number}", digest=digest_to_proto(child))
                for number, child in enumerate(children)
            ],
        )
        data = message.SerializeToString()
        digest = digest_of(data)
        self.blobs[digest] = data
        return digest


async def test_closure_reaches_all_levels_and_reads_each_directory_once() -> None:
    trees = Trees()
    shared = trees.add([ONE], [])
    left, right = trees.add([], [shared]), trees.add([digest_of(b"f")], [shared])
    root = trees.add([], [left, right])
    closures = Closures(trees.get_many)
    pins = [Pin("a", 1.0, (TWO,), (root,)), Pin("b", 1.0, (), (root,))]
    everything = {TWO, root, left, right, shared, ONE, digest_of(b"f")}
    assert await closures.kept(pins) == everything
    assert sorted(trees.asked) == sorted([root, left, right, shared])
    assert await closures.kept(pins) == everything
    assert len(trees.asked) == 4


async def test_incomplete_tree_is_read_again() -> None:
    trees = Trees()
    child = trees.add([ONE], [])
    child_bytes = trees.blobs.pop(child)
    root = trees.add([], [child])
    closures = Closures(trees.get_many)
    assert await closures.kept([Pin("a", 1.0, (), (root,))]) == {root, child}
    trees.blobs[child] = child_bytes
    assert await closures.kept([Pin("a", 1.0, (), (root,))]) == {root, child, ONE}
    assert await closures.kept([]) == set()
