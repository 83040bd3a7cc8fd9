"""Header blocks against the hpack package's encoder and decoder."""

import contextlib

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvix.http2.frames import ConnectionFault
from tvix.http2.headers import (
    HeaderDecoder,
    RequestHead,
    encode_trailers,
    literal,
    parse_timeout,
)

CALL = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/a.B/C"),
    (":authority", "localhost"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]


def test_a_call_is_read_from_its_headers() -> None:
    fields = [*CALL, ("grpc-timeout", "250m"), ("x-key", "value"), ("meta-bin", "AAEC")]
    head = HeaderDecoder().decode(hpack.Encoder().encode(fields))
    assert head.method == "POST"
    assert head.path == "/a.B/C"
    assert head.content_type == "application/grpc"
    assert head.timeout_seconds == 0.25
    assert head.metadata == (("x-key", "value"), ("meta-bin", b"\x00\x01\x02"))


@given(st.lists(st.sampled_from(["/a", "/b", "/c", "/d" * 600]), min_size=1, max_size=60))
def test_remembered_blocks_never_outlive_the_table_they_refer_to(paths: list[str]) -> None:
    encoder, decoder = hpack.Encoder(), HeaderDecoder()
    for number, path in enumerate(paths):
        fields = [*CALL[:2], (":path", path), ("x-id", str(number % 3)), *CALL[3:]]
        head = decoder.decode(encoder.encode(fields))
        assert head.path == path
        assert dict(head.metadata)["x-id"] == str(number % 3)


def test_a_shrunken_table_is_noticed() -> None:
    encoder, decoder = hpack.Encoder(), HeaderDecoder()
    assert decoder.decode(encoder.encode(CALL)).path == "/a.B/C"
    repeated = encoder.encode(CALL)
    assert decoder.decode(repeated).path == "/a.B/C"
    encoder.header_table_size = 0
    assert decoder.decode(encoder.encode(CALL)).path == "/a.B/C"
    with pytest.raises(ConnectionFault):
        decoder.decode(repeated)


@given(st.binary(max_size=200))
def test_garbage_is_a_fault_or_a_call_never_a_crash(block: bytes) -> None:
    with contextlib.suppress(ConnectionFault):
        assert isinstance(HeaderDecoder().decode(block), RequestHead)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=300))
def test_literals_are_read_back(value: str) -> None:
    (field,) = hpack.Decoder().decode(literal("x-long-name", value))
    assert f"{field[0]!s}: {field[1]!s}" == f"x-long-name: {value}"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1S", 1.0), ("5m", 0.005), ("2M", 120.0), ("1H", 3600.0), ("3u", 3e-6), ("S", None), ("1x", None), ("-1S", None),
     ("123456789S", None), ("", None)],
)  # fmt: skip
def test_timeouts(text: str, seconds: float | None) -> None:
    assert parse_timeout(text) == seconds


def test_trailers_escape_what_headers_cannot_carry() -> None:
    fields = hpack.Decoder().decode(encode_trailers(3, "naïve\n100%", (("d-bin", b"\xff"),)))
    assert [f"{field[0]!s}={field[1]!s}" for field in fields] == [
        "grpc-status=3",
        "grpc-message=na%C3%AFve%0A100%25",
        "d-bin=/w",
    ]
