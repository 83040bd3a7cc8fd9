"""Scanning for references."""

from hypothesis import given
from hypothesis import strategies as st

from tvix.nix.references import ReferenceScanner, scan
from tvix.nix.store_path import text_path

PATHS = [text_path(f"p{number}", b"%d" % number) for number in range(4)]


@given(
    st.lists(st.sampled_from([*(path.digits.encode() for path in PATHS), b"a" * 5, b"/nix/store/", b"\0", b"e"])),
    st.integers(1, 40),
)
def test_what_is_found_does_not_depend_on_chunks(parts: list[bytes], step: int) -> None:
    data = b"".join(parts)
    scanner = ReferenceScanner(PATHS)
    for start in range(0, len(data), step):
        scanner.feed(data[start : start + step])
    assert scanner.found == {path for path in PATHS if path.digits.encode() in data}


def test_digits_within_longer_runs_count() -> None:
    assert scan(b"abc" + PATHS[0].digits.encode() + b"xyz", PATHS) == {PATHS[0]}


def test_contents_that_were_separated_do_not_join() -> None:
    digits = PATHS[0].digits.encode()
    scanner = ReferenceScanner(PATHS)
    scanner.feed(digits[:10])
    scanner.separate()
    scanner.feed(digits[10:])
    assert not scanner.found


def test_nothing_is_found_where_nothing_is_sought() -> None:
    assert scan(PATHS[0].digits.encode(), []) == frozenset()
