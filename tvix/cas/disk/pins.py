"""Pins: what must not be evicted, a small file per owner, so that every process's pins count.

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


class PinFiles:
    """The folder of pins. Blocks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, owner: str) -> Path:
        return self._folder / sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()

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
