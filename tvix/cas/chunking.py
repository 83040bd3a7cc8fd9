"""Content-defined chunking: FastCDC 2020 as the Remote Execution API fixes it. Pure.

Normalization level 2, seed 0, minimum a quarter and maximum four times the average: FastCdc2020Params
in remote_apis/remote_execution.proto. A boundary depends on the maximum chunk size of bytes that follow
the chunk's start and on nothing else, so a stream can be cut with a bounded buffer.
"""

from __future__ import annotations

from collections.abc import Iterator

from pyfastcdc import FastCDC

from tvix.cas.capabilities import AVERAGE_CHUNK_BYTES


class Chunker:
    """Cuts a stream: `feed` any pieces, iterate `cut()` after each, and `cut(last=True)` at the end.

    `cut` is CPU-bound (over 1 GB/s) and lets go of the interpreter; call it off the event loop.
    """

    def __init__(self, average_bytes: int = AVERAGE_CHUNK_BYTES) -> None:
        self._max_bytes = 4 * average_bytes
        self._fast_cdc = FastCDC(
            average_bytes,
            min_size=average_bytes // 4,
            max_size=self._max_bytes,
            normalized_chunking=2,
            seed=0,
        )
        self._buffer = bytearray()

    @property
    def buffered_bytes(self) -> int:
        """Bytes fed and not yet cut."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Add a piece of the stream."""
        self._buffer += data

    def cut(self, *, last: bool = False) -> Iterator[bytes]:
        """Yield the chunks whose end is certain by now; with `last`, all that remain."""
        buffer = bytes(self._buffer)
        done = 0
        if buffer and (last or len(buffer) >= self._max_bytes):
            for chunk in self._fast_cdc.cut_buf(buffer):
                if not last and len(buffer) - chunk.offset < self._max_bytes:
                    break
                done = chunk.offset + chunk.length
                yield buffer[chunk.offset : done]
        del self._buffer[:done]
