from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tvix.cas import zstd
from tvix.errors import InvalidInput

MIB = 1024 * 1024


def frames(data: bytes, chunk: int) -> bytes:
    compressor = zstandard.ZstdCompressor()
    return b"".join(compressor.compress(data[start : start + chunk]) for start in range(0, len(data), chunk))


def take_all(decoder: zstd.Decoder) -> bytes:
    return b"".join(iter(decoder.take, b""))


@settings(deadline=None)
@given(st.binary(max_size=5000), st.integers(1, 2000), st.integers(1, 500))
def test_any_frames_in_any_pieces(data: bytes, frame_bytes: int, piece_bytes: int) -> None:
    stream = frames(data, frame_bytes)
    decoder = zstd.Decoder(len(data))
    found = b""
    for start in range(0, len(stream), piece_bytes):
        decoder.feed(stream[start : start + piece_bytes])
        found += take_all(decoder)
    decoder.finish()
    assert found == data
    assert decoder.decoded_bytes == len(data)
    assert zstd.decompress(stream, len(data)) == data


@given(st.binary(max_size=2000))
def test_compress_round_trips(data: bytes) -> None:
    assert zstd.decompress(zstd.compress(data), len(data)) == data


def test_output_comes_in_bounded_pieces() -> None:
    decoder = zstd.Decoder(8 * MIB)
    decoder.feed(zstd.compress(bytes(8 * MIB)))
    pieces = list(map(len, iter(decoder.take, b"")))
    assert max(pieces) <= MIB
    assert sum(pieces) == 8 * MIB
    decoder.finish()


def test_a_bomb_stops_one_byte_past_what_was_announced() -> None:
    decoder = zstd.Decoder(1000)
    decoder.feed(zstd.compress(bytes(60 * MIB)))
    with pytest.raises(InvalidInput, match="more than the 1000 bytes"):
        decoder.take()


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"not zstd at all", "not Zstandard"),
        (zstd.compress(b"x" * 1000)[:-3], "cut off"),
        (zstd.compress(b"x" * 999), "decompresses to 999 bytes"),
        (zstd.compress(b"x" * 1001), "more than the 1000 bytes"),
        (zstd.compress(b"x" * 1000) + b"junk", "not Zstandard|cut off"),
        (b"", "decompresses to 0 bytes"),
    ],
)
def test_bad_streams(stream: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        zstd.decompress(stream, 1000)


def test_huge_windows_are_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=27)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = stream.compress(bytes(1000)) + stream.flush()
    with pytest.raises(InvalidInput, match="not Zstandard"):
        zstd.decompress(data, 1000)


def test_the_empty_frame_is_a_frame() -> None:
    assert zstandard.ZstdDecompressor().decompress(zstd.EMPTY_FRAME) == b""
    assert zstd.decompress(zstd.EMPTY_FRAME, 0) == b""


@pytest.mark.parametrize("size_bytes", [0, 10, 100_000, 3 * MIB])
async def test_streams_become_one_frame(size_bytes: int) -> None:
    data = (b"some text %d " % size_bytes * (size_bytes // 10 + 1))[:size_bytes]

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 400_000):
            yield data[start : start + 400_000]

    async with aclosing(zstd.compressed(chunks())) as pieces:
        stream = b"".join([piece async for piece in pieces])
    assert zstd.decompress(stream, size_bytes) == data
    assert await zstd.decompress_async(stream, size_bytes) == data
    assert zstd.decompress(await zstd.compress_async(data), size_bytes) == data
