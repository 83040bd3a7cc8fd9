"""Places in sources."""

import pytest

from tvix.eval.source import Source, decode_source


@pytest.mark.parametrize(
    ("offset", "place"), [(0, (1, 1)), (2, (1, 3)), (3, (2, 1)), (5, (2, 4)), (6, (3, 1)), (7, (3, 2))]
)
def test_columns_count_bytes(offset: int, place: tuple[int, int]) -> None:
    assert Source("ab\nüc\nd", "f", "/").line_and_column(offset) == place


def test_lines_are_found_without_their_ends() -> None:
    source = Source("one\r\ntwo", "f", "/")
    assert [source.line(number) for number in (1, 2, 3)] == ["one", "two", ""]


def test_bytes_that_are_not_utf8_survive() -> None:
    assert decode_source(b"a\xffb").encode("utf-8", "surrogateescape") == b"a\xffb"
