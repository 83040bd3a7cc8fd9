"""What a command writes to its standard output and error: kept, bounded, and passed on while it runs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tvix.cas.digest import FUNCTIONS, Digest, DigestFunction
from tvix.cas.interfaces import CHUNK_BYTES
from tvix.executor.interfaces import Output

MAX_MEMORY_BYTES = 1024 * 1024
"""What is kept in memory; more goes to a file."""
MAX_CAPTURED_BYTES = 256 * 1024 * 1024
"""What is kept at all: a command in a loop must not fill the disk."""


class Capture:
    """An Output that keeps what is written, and hands it to another Output as well."""

    def __init__(self, scratch: Path, also: Output | None = None, *, max_bytes: int = MAX_CAPTURED_BYTES) -> None:
        self._scratch = scratch
        self._also = also
        self._max_bytes = max_bytes
        self._chunks: list[bytes] = []
        self._file: IO[bytes] | None = None
        self.size_bytes = 0
        self.truncated = False

    def write(self, chunk: bytes) -> None:
        if self.truncated:
            return
        if self.size_bytes + len(chunk) > self._max_bytes:
            self.truncated = True
            chunk = chunk[: self._max_bytes - self.size_bytes] + b"\n[tvix: output over %d bytes is cut off here]\n" % (
                self._max_bytes
            )
        self.size_bytes += len(chunk)
        if self._also is not None:
            self._also.write(chunk)
        if self._file is not None:
            self._file.write(chunk)
            return
        self._chunks.append(chunk)
        if self.size_bytes > MAX_MEMORY_BYTES:
            self._file = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115
            self._file.writelines(self._chunks)
            self._chunks.clear()

    @property
    def in_memory(self) -> bytes | None:
        """All that was written, or None when it is in a file; see `chunks`."""
        return b"".join(self._chunks) if self._file is None else None

    def chunks(self) -> Iterator[bytes]:
        """Yield all that was written, in pieces. Reads a file: not for the event loop."""
        if self._file is None:
            yield from self._chunks
            return
        self._file.seek(0)
        while chunk := self._file.read(CHUNK_BYTES):
            yield chunk

    def digest(self, function: DigestFunction) -> Digest:
        """Return the digest of all that was written. Not for the event loop when it is much."""
        hasher = FUNCTIONS[function].new()
        for chunk in self.chunks():
            hasher.update(chunk)
        return Digest(function, hasher.hexdigest(), self.size_bytes)

    def close(self) -> None:
        """Drop what was kept."""
        if self._file is not None:
            self._file.close()
        self._chunks.clear()
