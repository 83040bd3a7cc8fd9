"""NAR archives as events, streamed both ways. Pure: contents pass through, nothing is read or kept.

Strings are a little-endian 64-bit length, the bytes, and zeros up to a multiple of 8. A node is
`( type regular [executable ""] contents … )`, `( type symlink target … )` or
`( type directory entry ( name … node … ) … )`, entries in byte order of their names. There is no time
stamp and no permission but "executable".
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass

from tvix.errors import InvalidInput

MAGIC = b"nix-archive-1"
_MAX_NAME_BYTES = 255
_MAX_TARGET_BYTES = 4095
_MAX_DEPTH = 1000


class InvalidNar(InvalidInput):
    """The bytes are no NAR, or no canonical one."""


@dataclass(frozen=True, slots=True)
class DirectoryStart:
    """A directory begins; `name` is its entry in the directory around it, empty for the root."""

    name: bytes


@dataclass(frozen=True, slots=True)
class DirectoryEnd:
    """The innermost open directory ends."""


@dataclass(frozen=True, slots=True)
class File:
    """A file begins; its contents follow as `bytes` events that add up to `size_bytes`."""

    name: bytes
    executable: bool
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Symlink:
    """A symbolic link."""

    name: bytes
    target: bytes


Event = DirectoryStart | DirectoryEnd | File | Symlink | bytes


def string(data: bytes) -> bytes:
    """Return a string as NARs write it."""
    return len(data).to_bytes(8, "little") + data + bytes(-len(data) % 8)


def _tokens(*words: bytes) -> bytes:
    return b"".join(map(string, words))


_HEAD = string(MAGIC)
_REGULAR = _tokens(b"(", b"type", b"regular")
_EXECUTABLE = _tokens(b"executable", b"")
_CONTENTS = string(b"contents")
_SYMLINK = _tokens(b"(", b"type", b"symlink", b"target")
_DIRECTORY = _tokens(b"(", b"type", b"directory")
_ENTRY = _tokens(b"entry", b"(", b"name")
_NODE = string(b"node")
_CLOSE = string(b")")


def write(events: Iterable[Event]) -> Iterator[bytes]:
    """Yield the NAR that `events` describe, in pieces. Events must be well nested and sorted, as `read`
    gives them; AssertionError if file contents do not add up.
    """
    yield _HEAD
    depth = 0
    left = padding = 0
    in_file = False
    for event in events:
        if isinstance(event, bytes):
            left -= len(event)
            assert in_file, "contents outside a file"
            assert left >= 0, "contents are longer than announced"
            yield event
            if not left:
                in_file = False
                yield bytes(padding) + _CLOSE + (_CLOSE if depth else b"")
            continue
        assert not in_file, "contents are shorter than announced"
        if isinstance(event, DirectoryEnd):
            depth -= 1
            yield _CLOSE + (_CLOSE if depth else b"")
            continue
        opening = _ENTRY + string(event.name) + _NODE if depth else b""
        if isinstance(event, DirectoryStart):
            depth += 1
            yield opening + _DIRECTORY
        elif isinstance(event, Symlink):
            yield opening + _SYMLINK + string(event.target) + _CLOSE + (_CLOSE if depth else b"")
        else:
            left, padding = event.size_bytes, -event.size_bytes % 8
            flag = _EXECUTABLE if event.executable else b""
            yield opening + _REGULAR + flag + _CONTENTS + left.to_bytes(8, "little")
            in_file = bool(left)
            if not left:
                yield _CLOSE + (_CLOSE if depth else b"")


class Reader:
    """Turns NAR bytes, fed in any pieces, into events. Feed until the end, then call `finish`."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._events: list[Event] = []
        self._parser = self._archive()
        self._wanted = next(self._parser)
        self._done = False
        self.position = 0
        """Bytes consumed so far, for error messages."""

    def feed(self, data: bytes) -> list[Event]:
        """Take bytes and return the events they complete; InvalidNar as soon as they cannot be a NAR."""
        self._buffer += data
        while not self._done and len(self._buffer) >= max(self._wanted, 1):
            try:
                self._wanted = self._parser.send(None)
            except StopIteration:
                self._done = True
        if self._done and self._buffer:
            raise self._fail("bytes after the end")
        events, self._events = self._events, []
        return events

    def finish(self) -> None:
        """Tell that there are no more bytes; InvalidNar if the archive is not complete."""
        if not self._done:
            raise self._fail("the archive is cut off")

    def _fail(self, reason: str) -> InvalidNar:
        return InvalidNar(f"not a valid NAR: {reason} at byte {self.position}")

    def _pop(self, count: int) -> bytes:
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        self.position += count
        return data

    # The grammar, as a coroutine that yields how many bytes it needs in the buffer to go on.

    def _string(self, limit: int) -> Generator[int, None, bytes]:
        yield 8
        size = int.from_bytes(self._buffer[:8], "little")
        if size > limit:
            raise self._fail(f"a string of {size} bytes where at most {limit} are allowed")
        self._pop(8)
        padded = size + -size % 8
        if not padded:
            return b""
        yield padded
        data = self._pop(padded)
        if any(data[size:]):
            raise self._fail("padding that is not zero")
        return data[:size]

    def _expect(self, *words: bytes) -> Generator[int, None, None]:
        for word in words:
            found = yield from self._string(32)
            if found != word:
                raise self._fail(f"expected {word.decode()!r}, found {found.decode('latin-1')!r}")

    def _archive(self) -> Generator[int, None, None]:
        yield from self._expect(MAGIC)
        opened: list[bytes] = []
        """The last name read in each open directory."""
        name = b""
        while True:
            is_directory = yield from self._node(name)
            if is_directory:
                opened.append(b"")
                if len(opened) > _MAX_DEPTH:
                    raise self._fail(f"directories nest deeper than {_MAX_DEPTH}")
            elif opened:
                yield from self._expect(b")")
            while opened:
                following = yield from self._next_entry(opened[-1])
                if following is not None:
                    opened[-1] = name = following
                    break
                opened.pop()
                self._events.append(DirectoryEnd())
                if opened:
                    yield from self._expect(b")")
            else:
                return

    def _node(self, name: bytes) -> Generator[int, None, bool]:
        """Read a node, of a directory only the opening; return whether it was one."""
        yield from self._expect(b"(", b"type")
        kind = yield from self._string(32)
        if kind == b"directory":
            self._events.append(DirectoryStart(name))
            return True
        if kind == b"regular":
            yield from self._file(name)
        elif kind == b"symlink":
            yield from self._expect(b"target")
            target = yield from self._string(_MAX_TARGET_BYTES)
            if not target or b"\0" in target:
                raise self._fail("a symlink target that is empty or holds a zero byte")
            self._events.append(Symlink(name, target))
            yield from self._expect(b")")
        else:
            raise self._fail(f"unknown node type {kind.decode('latin-1')!r}")
        return False

    def _file(self, name: bytes) -> Generator[int, None, None]:
        word = yield from self._string(32)
        executable = word == b"executable"
        if executable:
            yield from self._expect(b"")
            word = yield from self._string(32)
        if word == b")":  # Nix reads a file without contents as empty
            self._events.append(File(name, executable, 0))
            return
        if word != b"contents":
            raise self._fail(f"expected 'contents', found {word.decode('latin-1')!r}")
        yield 8
        size = int.from_bytes(self._pop(8), "little")
        self._events.append(File(name, executable, size))
        left = size
        while left:
            yield 1
            piece = self._pop(min(left, len(self._buffer)))
            left -= len(piece)
            self._events.append(piece)
        padding = -size % 8
        if padding:
            yield padding
            if any(self._pop(padding)):
                raise self._fail("padding that is not zero")
        yield from self._expect(b")")

    def _next_entry(self, previous: bytes) -> Generator[int, None, bytes | None]:
        """Return the name of the directory's next entry, None at its end."""
        word = yield from self._string(32)
        if word == b")":
            return None
        if word != b"entry":
            raise self._fail(f"expected 'entry', found {word.decode('latin-1')!r}")
        yield from self._expect(b"(", b"name")
        name = yield from self._string(_MAX_NAME_BYTES)
        if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
            raise self._fail(f"file name {name!r} is not allowed")
        if name <= previous:
            raise self._fail(f"entry {name!r} is not in order")
        yield from self._expect(b"node")
        return name


def read(pieces: Iterable[bytes]) -> Iterator[Event]:
    """Yield the events of a NAR; InvalidNar where it is none."""
    reader = Reader()
    for piece in pieces:
        yield from reader.feed(piece)
    reader.finish()
