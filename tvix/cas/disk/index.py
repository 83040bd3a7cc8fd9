"""The index: every blob of the store and where it lies, and how much space is used. No I/O.

The order of `blobs` is the order of last use, the longest unused first. All processes that have read
the journal to the same point have the same index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from tvix.cas.digest import Digest
from tvix.cas.disk import journal
from tvix.cas.disk.journal import Record
from tvix.cas.disk.location import OWN_FILE, end_of, pack_of, rounded, stored_bytes_of


class PackUse(NamedTuple):
    """How a pack is used."""

    end: int
    """The pack's length as far as blobs are known in it."""
    live_bytes: int


_NO_USE = PackUse(0, 0)


class Index:
    """What the journal says."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, int] = {}
        """Every blob's packed location."""
        self.packs: dict[int, PackUse] = {}
        self.blob_bytes = 0
        """Sum of the blobs' sizes."""
        self.file_bytes = 0
        """Space used by blobs with files of their own."""
        self.pack_bytes = 0
        """Space used by packs, live or not."""
        self.wanted_bytes = 0
        """Room that writers asked for since the evictor last looked."""
        self.on_drop: Callable[[int], object] = lambda pack: None
        """Called for each pack that goes: whoever has it open should close it."""
        self.on_put: Callable[[Digest], object] = lambda digest: None
        """Called for each blob that is new to this index."""
        self.evictions = 0
        self.evicted_bytes = 0

    def __repr__(self) -> str:
        return f"<Index {len(self.blobs)} blobs, {self.used_bytes} bytes used>"

    @property
    def used_bytes(self) -> int:
        """Space used on disk, blocks rounded up."""
        return self.file_bytes + self.pack_bytes

    def clear(self) -> None:
        """Forget everything, before the journal is read anew."""
        self.blobs.clear()
        self.packs.clear()
        self.blob_bytes = self.file_bytes = self.pack_bytes = self.wanted_bytes = 0

    def apply(self, records: Iterable[Record]) -> int:
        """Take in records in the journal's order. Stops after MOVED and returns how many were taken
        in then; 0 when there was no MOVED.
        """
        blobs = self.blobs
        for count, (op, digest, location, _) in enumerate(records, 1):
            if digest is None:
                if op == journal.MOVED:
                    return count
                self._apply_note(op, location)
            elif op == journal.PUT:
                self._put(digest, location)
            elif op == journal.TOUCH:
                if present := blobs.pop(digest, None):
                    blobs[digest] = present
            elif op == journal.EVICT:
                if blobs.get(digest) == location:
                    del blobs[digest]
                    self._release(digest, location)
                    self.evictions += 1
                    self.evicted_bytes += digest.size_bytes
            elif op == journal.RELOCATE and digest in blobs:
                self._release(digest, blobs[digest])
                blobs[digest] = location
                self._claim(digest, location)
        return 0

    def _apply_note(self, op: int, number: int) -> None:
        if op == journal.DROP_PACK:
            self._drop_pack(number)
        elif op == journal.ROOM:
            self.wanted_bytes = max(self.wanted_bytes, number)
        elif op == journal.PACK_END:
            self._extend(number & 0xFFFF_FFFF, number >> 32, 0)

    def _put(self, digest: Digest, location: int) -> None:
        if digest not in self.blobs:
            self.blobs[digest] = location
            self._claim(digest, location)
            self.on_put(digest)
        elif pack_of(location) != OWN_FILE:
            self._extend(pack_of(location), end_of(location), 0)

    def _claim(self, digest: Digest, location: int) -> None:
        self.blob_bytes += digest.size_bytes
        pack = pack_of(location)
        if pack == OWN_FILE:
            self.file_bytes += rounded(stored_bytes_of(location))
        else:
            self._extend(pack, end_of(location), stored_bytes_of(location))

    def _extend(self, pack: int, end: int, live_bytes: int) -> None:
        known_end, live = self.packs.get(pack, _NO_USE)
        if end > known_end:
            self.pack_bytes += end - known_end
        else:
            end = known_end
        self.packs[pack] = PackUse(end, live + live_bytes)

    def _release(self, digest: Digest, location: int) -> None:
        pack, stored_bytes = pack_of(location), stored_bytes_of(location)
        self.blob_bytes -= digest.size_bytes
        if pack == OWN_FILE:
            self.file_bytes -= rounded(stored_bytes)
        elif use := self.packs.get(pack):
            self.packs[pack] = PackUse(use.end, use.live_bytes - stored_bytes)

    def _drop_pack(self, pack: int) -> None:
        use = self.packs.pop(pack, None)
        if use is None:
            return
        self.pack_bytes -= use.end
        self.on_drop(pack)
        if use.live_bytes:
            for digest in self.blobs_of_pack(pack):
                del self.blobs[digest]
                self.blob_bytes -= digest.size_bytes

    def blobs_of_pack(self, pack: int) -> list[Digest]:
        """Return the blobs that lie in a pack. Walks the whole index."""
        return [digest for digest, location in self.blobs.items() if pack_of(location) == pack]
