"""NARs, both ways."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvix.nix import base32, nar
from tvix.nix.nar import DirectoryEnd, DirectoryStart, Event, File, InvalidNar, Symlink

TREE: list[Event] = [
    DirectoryStart(b""),
    Symlink(b"link", b"run"),
    File(b"run", True, 10),
    b"#!/bin/sh\n",
    DirectoryStart(b"sub"),
    File(b"empty", False, 0),
    DirectoryEnd(),
    DirectoryEnd(),
]


def test_the_hash_of_a_tree_is_nix_hash() -> None:
    # nix-hash --type sha256 --base32 of this tree, by Nix 2.8
    digest = hashlib.sha256(b"".join(nar.write(TREE))).digest()
    assert base32.encode(digest) == "1qwplgilxrj88kh02lgxvq7ibfsbqxcv01sy955gc9agb5iwli6c"


names = st.binary(min_size=1, max_size=6).filter(lambda n: n not in (b".", b"..") and b"/" not in n and b"\0" not in n)


def node(name: bytes, children: object) -> list[Event]:
    if isinstance(children, dict):
        inner = [event for key in sorted(children) for event in node(key, children[key])]
        return [DirectoryStart(name), *inner, DirectoryEnd()]
    if isinstance(children, tuple):
        return [Symlink(name, children[0])]
    assert isinstance(children, bytes)
    return [File(name, len(children) % 2 == 1, len(children)), *([children] if children else [])]


leaves = st.binary(max_size=40) | st.tuples(names)
trees = st.recursive(leaves, lambda inner: st.dictionaries(names, inner, max_size=4), max_leaves=12)


def joined(events: list[Event]) -> list[Event]:
    out: list[Event] = []
    for event in events:
        if isinstance(event, bytes) and out and isinstance(out[-1], bytes):
            out[-1] += event
        else:
            out.append(event)
    return out


@given(trees, st.integers(1, 50))
def test_reading_undoes_writing_in_pieces_of_any_size(tree: object, step: int) -> None:
    events = node(b"", tree)
    data = b"".join(nar.write(events))
    pieces = [data[start : start + step] for start in range(0, len(data), step)]
    assert joined(list(nar.read(pieces))) == events


@given(st.binary(max_size=300))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidNar):
        list(nar.read([data]))


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_gives_another_tree_or_an_error(position: int, byte: int) -> None:
    data = bytearray(b"".join(nar.write(TREE)))
    position %= len(data)
    if data[position] == byte:
        return
    data[position] = byte
    try:
        events = joined(list(nar.read([bytes(data)])))
    except InvalidNar:
        return
    assert events != TREE


def directory_of(*entries: list[Event]) -> bytes:
    return b"".join(nar.write([DirectoryStart(b""), *[event for entry in entries for event in entry], DirectoryEnd()]))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (directory_of([File(b"b", False, 0)], [File(b"a", False, 0)]), "not in order"),
        (directory_of([File(b"a", False, 0)], [File(b"a", False, 0)]), "not in order"),
        (directory_of([File(b"a/b", False, 0)]), "not allowed"),
        (directory_of([File(b"..", False, 0)]), "not allowed"),
        (directory_of([Symlink(b"a", b"")]), "empty"),
        (directory_of()[:-8], "cut off"),
        (directory_of() + b"x", "after the end"),
        (b"".join(nar.write([DirectoryStart(b"a")] * 1100 + [DirectoryEnd()] * 1100)), "deeper"),
        (nar.string(b"nix-archive-1") + (2**60).to_bytes(8, "little"), "at most"),
    ],
)
def test_what_is_not_canonical_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidNar, match=reason):
        list(nar.read([data]))


def test_contents_must_add_up() -> None:
    with pytest.raises(AssertionError, match="longer"):
        list(nar.write([File(b"", False, 1), b"ab"]))
