"""Packed locations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvix.cas.disk.location import Location, end_of, pack_location, pack_of, rounded, stored_bytes_of, unpack_location

locations = st.builds(
    Location, st.integers(0, 2**32 - 1), st.integers(0, 2**40 - 1), st.integers(0, 2**52 - 1), st.integers(0, 15)
)


@given(locations)
def test_unpacking_gives_back_what_was_packed(location: Location) -> None:
    packed = pack_location(*location)
    assert unpack_location(packed) == location
    assert packed < 2**128
    assert (pack_of(packed), stored_bytes_of(packed)) == (location.pack, location.stored_bytes)
    assert end_of(packed) == location.offset + location.stored_bytes


@pytest.mark.parametrize(("size", "space"), [(0, 4096), (1, 4096), (4096, 4096), (4097, 8192)])
def test_space_is_counted_in_blocks(size: int, space: int) -> None:
    assert rounded(size) == space
