"""Settings of the disk store."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvix.cas.disk.config import MIB, DiskConfig
from tvix.errors import InvalidInput


@pytest.mark.parametrize(("low", "high"), [(0.9, 0.8), (0, 0.5), (0.5, 1.1)])
def test_watermarks_must_be_in_order(low: float, high: float) -> None:
    with pytest.raises(InvalidInput, match="low_watermark"):
        DiskConfig(Path("x"), low_watermark=low, high_watermark=high)


def test_tiny_store_is_refused() -> None:
    with pytest.raises(InvalidInput, match="max_size_bytes: 1000"):
        DiskConfig(Path("x"), max_size_bytes=1000)


def test_packs_are_a_small_part_of_the_store() -> None:
    assert DiskConfig(Path("x")).pack_bytes == 256 * MIB
    assert DiskConfig(Path("x"), max_size_bytes=64 * MIB).pack_bytes == 2 * MIB
    assert DiskConfig(Path("x"), max_size_bytes=1 * MIB).pack_bytes == MIB // 16
