"""Zstandard on the wire: streams of frames in, frames out, never more memory than asked for.

Uploads may be several frames, one after the other (Bazel flushes every chunk as one), and may be bombs:
a decoder hands out bounded pieces and refuses to go past the size that the digest declares. Small
pieces are done where they are; larger ones in a thread, since the library lets go of the interpreter.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from typing import TypeVar

import zstandard
from backports import zstd

from tvix.cas.interfaces import CHUNK_BYTES
from tvix.errors import InvalidInput

LEVEL = 1
"""Wire compression must not be slower than a network; level 1 is 400 MB/s on one core."""

MIN_COMPRESSED_BYTES = 100
"""Below this a frame's overhead eats what it saves (bazel#18997)."""

_INLINE_BYTES = 16 * 1024
"""A hop to a thread costs about as much as (de)compressing this many bytes."""

_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 25}
"""Frames may ask for a window of 32 MiB at most: the strongest ordinary level takes 8."""

_contexts = threading.local()
T = TypeVar("T")


async def _run(size_bytes: int, work: Callable[..., T], *arguments: object) -> T:
    if size_bytes <= _INLINE_BYTES:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)


def compress(data: bytes) -> bytes:
    """Return one frame. For blobs in memory; contexts are kept per thread."""
    compressor: zstandard.ZstdCompressor | None = getattr(_contexts, "compressor", None)
    if compressor is None:
        compressor = _contexts.compressor = zstandard.ZstdCompressor(level=LEVEL)
    return compressor.compress(data)


EMPTY_FRAME = compress(b"")
"""The empty blob, compressed: a valid frame."""


class Decoder:
    """Decodes a stream of frames into at most `size_bytes` bytes, in pieces of about CHUNK_BYTES.

    `feed` a piece of the stream, then `take` until it returns nothing; `finish` at the end. All raise
    InvalidInput on what is not Zstandard, too long, too short or cut off. One thread at a time.
    """

    def __init__(self, size_bytes: int, *, offset: int = 0) -> None:
        self._frame: zstd.ZstdDecompressor | None = None
        self._left = size_bytes - offset
        self._size_bytes = size_bytes
        self._input = b""

    @property
    def decoded_bytes(self) -> int:
        """Bytes of the blob handed out so far, those before `offset` included."""
        return self._size_bytes - self._left

    def feed(self, data: bytes) -> None:
        """Add compressed bytes; what was fed before must have been taken."""
        self._input += data

    def take(self) -> bytes:
        """Return the next decoded bytes; empty when more input is needed."""
        while True:
            if self._frame is None:
                if not self._input:
                    return b""
                self._frame = zstd.ZstdDecompressor(options=_OPTIONS)
            data = self._decode(self._frame)
            if self._frame.eof:
                self._input = self._frame.unused_data
                self._frame = None
            if data:
                self._left -= len(data)
                if self._left < 0:
                    raise InvalidInput(f"data: decompresses to more than the {self._size_bytes} bytes announced")
                return data
            if self._frame is not None and self._frame.needs_input:
                return b""

    def _decode(self, frame: zstd.ZstdDecompressor) -> bytes:
        data, self._input = self._input, b""
        try:
            # One byte more than is left tells an overlong stream at once.
            return frame.decompress(data, min(CHUNK_BYTES, self._left + 1))
        except zstd.ZstdError as error:
            raise InvalidInput(f"data: not Zstandard: {error}") from error

    def finish(self) -> None:
        """Check that the stream ended where it should."""
        if self._frame is not None or self._input:
            raise InvalidInput("data: the Zstandard stream is cut off within a frame")
        if self._left:
            raise InvalidInput(f"data: decompresses to {self.decoded_bytes} bytes, {self._size_bytes} were announced")

    def restart(self) -> None:
        """Forget a frame that was cut off; a new stream goes on after `decoded_bytes`."""
        self._frame, self._input = None, b""


def decompress(data: bytes, size_bytes: int) -> bytes:
    """Return the blob of `size_bytes` that a stream of frames in memory holds; InvalidInput if another size."""
    decoder = Decoder(size_bytes)
    decoder.feed(data)
    pieces = []
    while piece := decoder.take():
        pieces.append(piece)
    decoder.finish()
    return b"".join(pieces)


async def decompress_async(data: bytes, size_bytes: int) -> bytes:
    """`decompress`, off the event loop when it is worth it."""
    return await _run(max(len(data), min(size_bytes, CHUNK_BYTES)), decompress, data, size_bytes)


async def compress_async(data: bytes) -> bytes:
    """`compress`, off the event loop when it is worth it."""
    return await _run(len(data), compress, data)


async def take_async(decoder: Decoder, input_bytes: int) -> bytes:
    """`decoder.take()`, off the event loop when `input_bytes`, what was just fed, is worth it."""
    return await _run(input_bytes, decoder.take)


async def compressed(chunks: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the stream as one frame, in pieces of about CHUNK_BYTES; use under `aclosing`."""
    stream = zstandard.ZstdCompressor(level=LEVEL).compressobj()
    pending: list[bytes] = []
    pending_bytes = 0
    async for chunk in chunks:
        piece = await _run(len(chunk), stream.compress, chunk)
        pending.append(piece)
        pending_bytes += len(piece)
        if pending_bytes >= CHUNK_BYTES // 2:
            yield b"".join(pending)
            pending, pending_bytes = [], 0
    pending.append(await _run(_INLINE_BYTES + 1, stream.flush))
    yield b"".join(pending)
