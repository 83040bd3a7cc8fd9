"""Pins: what must not be evicted, a small file per owner, so that every process's pins count.

Most pins are short: an action of a few milliseconds pins its inputs. So a pin is held in memory first and
gets its file only when it has lasted a second. The evictor's own process, usually the one that pins, counts
those too; another process's evictor may miss a pin younger than that, whose blobs were used just then.

    pins/<sha256 of the owner, hex>: JSON {"owner", "until", "roots": [digest…], "trees": [digest…]}

A digest is [function, hash, size]. Trees are expanded by whoever evicts, only when about to evict.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from google.protobuf.message import DecodeError

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import Digest

GetMany = Callable[[Sequence[Digest]], Awaitable[list[bytes | None]]]


@dataclass(frozen=True, slots=True)
class Pin:
    """What one owner keeps."""

    owner: str
    until: float
    """Seconds since the epoch."""
    roots: tuple[Digest, ...]
    trees: tuple[Digest, ...]


class Pins:
    """All pins, and those of this process that have no file yet. Methods that block say so."""

    def __init__(self, files: PinFiles) -> None:
        self._files = files
        self._young: dict[str, Pin] = {}
        self._written = files.names()

    @property
    def any_young(self) -> bool:
        """Whether there are pins without a file."""
        return bool(self._young)

    def put(self, pin: Pin) -> None:
        """Hold, replacing what the owner held. Does not block."""
        self._young[pin.owner] = pin

    def forget(self, owner: str) -> bool:
        """Let go of a pin held in memory; return whether `remove` has a file to remove. Does not block."""
        self._young.pop(owner, None)
        return self._files.name(owner) in self._written

    def remove(self, owner: str) -> None:
        """Remove the owner's file. Blocks."""
        self._written.discard(self._files.name(owner))
        self._files.remove(owner)

    def write_young(self) -> None:
        """Give the pins held in memory their files. Blocks."""
        for owner, pin in list(self._young.items()):
            self._files.put(pin)
            self._written.add(self._files.name(owner))
            if self._young.get(owner) is pin:
                del self._young[owner]
            elif owner not in self._young:  # let go meanwhile
                self.remove(owner)

    def load(self, now: float) -> list[Pin]:
        """Return all pins that hold, of every process. Blocks."""
        young = list(self._young.values())
        replaced = {pin.owner for pin in young}
        return [pin for pin in self._files.load(now) if pin.owner not in replaced] + [
            pin for pin in young if pin.until > now
        ]


class PinFiles:
    """The folder of pins. Blocks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def name(self, owner: str) -> str:
        """Return the name of the owner's file. Does not block."""
        return sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()

    def names(self) -> set[str]:
        """Return the names of all files."""
        return set(os.listdir(self._folder))

    def _path(self, owner: str) -> Path:
        return self._folder / self.name(owner)

    def put(self, pin: Pin) -> None:
        """Write or replace the owner's pin."""
        text = json.dumps({"owner": pin.owner, "until": pin.until, "roots": pin.roots, "trees": pin.trees})
        path = self._path(pin.owner)
        temp_path = f"{path}.{secrets.token_hex(4)}"
        with open(temp_path, "w") as file:
            file.write(text)
        os.rename(temp_path, path)

    def remove(self, owner: str) -> None:
        """Remove the owner's pin, if there is one."""
        self._path(owner).unlink(missing_ok=True)

    def load(self, now: float) -> list[Pin]:
        """Return the pins that hold; remove the others."""
        pins = []
        for path in list(self._folder.iterdir()):
            with suppress(FileNotFoundError):
                pin = _decode(path.read_bytes())
                if pin is not None and pin.until > now:
                    pins.append(pin)
                elif path.suffix == "" or now - path.stat().st_mtime > 60:
                    path.unlink()
        return pins


def _decode(data: bytes) -> Pin | None:
    """Return the pin, None if the file is torn."""
    try:
        fields = json.loads(data)
        roots, trees = (tuple(Digest(*digest) for digest in fields[key]) for key in ("roots", "trees"))
        return Pin(fields["owner"], fields["until"], roots, trees)
    except (ValueError, KeyError, TypeError):
        return None


def references(directory: Digest, data: bytes) -> tuple[list[Digest], list[Digest]]:
    """Return the (subdirectories, files) that an encoded Directory names; nothing if it is none."""
    message = re_pb2.Directory()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return [], []
    function = directory.function
    directories = [Digest(function, node.digest.hash, node.digest.size_bytes) for node in message.directories]
    return directories, [Digest(function, node.digest.hash, node.digest.size_bytes) for node in message.files]


class Closures:
    """Remembers what trees reach, for the trees now pinned."""

    def __init__(self, get_many: GetMany) -> None:
        self._get_many = get_many
        self._known: dict[Digest, frozenset[Digest]] = {}

    async def kept(self, pins: Iterable[Pin]) -> set[Digest]:
        """Return every blob that these pins keep."""
        roots: set[Digest] = set()
        trees: set[Digest] = set()
        for pin in pins:
            roots.update(pin.roots, pin.trees)
            trees.update(pin.trees)
        self._known = {tree: known for tree, known in self._known.items() if tree in trees}
        for tree in trees - self._known.keys():
            roots |= await self._expand(tree)
        return roots.union(*self._known.values())

    async def _expand(self, tree: Digest) -> set[Digest]:
        reached = {tree}
        level: Collection[Digest] = [tree]
        complete = True
        while level:
            order = list(level)
            following: set[Digest] = set()
            for digest, data in zip(order, await self._get_many(order), strict=True):
                complete &= data is not None
                directories, files = references(digest, data or b"")
                following.update(directories)
                reached.update(files)
            level = following - reached
            reached |= level
        if complete:  # else what is missing may come later
            self._known[tree] = frozenset(reached)
        return reached
