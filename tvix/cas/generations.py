"""Generations: how processes tell each other that a record they may hold in RAM has changed.

A file of 65,536 random tokens of 8 bytes, mapped by every process of a server. A writer, after it has
committed a record elsewhere, puts a fresh random token into the record's slot. A reader takes the token
*before* it reads the record and may keep the record for as long as the slot still holds that token.
Checking costs about 200 ns and no system call. Keys that share a slot only invalidate each other.

Layout: slot i is at byte 8·i, native byte order; slot = CRC-32 of the key modulo 65,536. Tokens are random
rather than counted, so that two writers need no lock: a torn or lost update still changes the slot.
A writer killed between commit and `changed` leaves others with the old record until they expire it by age.
"""

from __future__ import annotations

import mmap
import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from zlib import crc32

from tvix.errors import CorruptData, Unavailable

SLOTS = 65_536
_FILE_BYTES = SLOTS * 8


class Generations:
    """The tokens of one state folder; the file is made when it is not there."""

    def __init__(self, path: Path) -> None:
        """Map the file. Raises CorruptData when it has the wrong size, Unavailable when it cannot be opened."""
        self.path = path
        try:
            self._map = _open(path)
        except OSError as error:
            raise Unavailable(f"cannot map the generations file {path}: {error.strerror}") from error
        self._tokens = memoryview(self._map).cast("Q")

    def __repr__(self) -> str:
        return f"<Generations {self.path}>"

    def token(self, key: bytes) -> int:
        """Return the token that now stands for `key`; take it before reading the record."""
        return self._tokens[crc32(key) & 0xFFFF]

    def changed(self, key: bytes) -> None:
        """Tell every process that the record of `key` is another one now; call it after the commit."""
        self._tokens[crc32(key) & 0xFFFF] = secrets.randbits(64)

    def close(self) -> None:
        """Unmap the file; the tokens are not used afterwards."""
        self._tokens.release()
        self._map.close()

    def __enter__(self) -> Generations:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _open(path: Path) -> mmap.mmap:
    if not path.exists():
        _create(path)
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        if size != _FILE_BYTES:
            raise CorruptData(
                f"the generations file {path} has {size} bytes, not {_FILE_BYTES}; stop the server and delete it"
            )
        return mmap.mmap(file.fileno(), _FILE_BYTES)


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.") as file:
        file.write(os.urandom(_FILE_BYTES))
        file.flush()
        # Linked, not renamed: when two processes start at once, both must map the same file.
        with suppress(FileExistsError):
            os.link(file.name, path)
