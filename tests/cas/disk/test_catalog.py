"""The catalog: finding, noting uses, background work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tvix.cas.digest import EMPTY, digest_of
from tvix.cas.disk import journal
from tvix.cas.disk.catalog import Catalog
from tvix.cas.disk.config import DiskConfig
from tvix.cas.disk.index import Index
from tvix.cas.disk.journal import RECORD_BYTES, Journal, encode, encode_note
from tvix.cas.disk.location import IDENTITY, OWN_FILE, pack_location

ONE, TWO, THREE = (digest_of(data) for data in (b"1", b"2", b"3"))
PLACE = pack_location(OWN_FILE, 5, 1, IDENTITY)


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[Catalog]:
    file = Journal(tmp_path / "journal")
    catalog = Catalog(DiskConfig(tmp_path), file, Index(), lambda: 1000.0)
    yield catalog
    await catalog.close()
    file.close()


async def put(catalog: Catalog) -> None:
    await catalog.append(b"".join(encode(journal.PUT, digest, PLACE, 0.0) for digest in (ONE, TWO)))


async def test_missing_is_exact_and_leaves_out_the_empty_blob(catalog: Catalog) -> None:
    await put(catalog)
    assert catalog.find_missing([ONE, THREE, EMPTY["sha256"], EMPTY["blake3"]]) == {THREE}
    assert catalog.find_missing([ONE]) == set()
    assert catalog.use(ONE) == PLACE
    assert catalog.use(THREE) is None


async def test_a_use_is_written_once_in_its_time(catalog: Catalog) -> None:
    await put(catalog)
    size = catalog.journal.size_bytes
    for _ in range(3):
        catalog.find_missing([ONE, TWO, THREE])
        catalog.use(ONE)
        await catalog.write_uses()
    assert catalog.journal.size_bytes == size + 2 * RECORD_BYTES
    catalog._recent.clear()  # as the timer does
    catalog.use(ONE)
    await catalog.write_uses()
    assert list(catalog.index.blobs) == [TWO, ONE]


async def test_uses_are_written_by_close(tmp_path: Path) -> None:
    file = Journal(tmp_path / "journal")
    catalog = Catalog(DiskConfig(tmp_path), file, Index(), lambda: 1000.0)
    await put(catalog)
    catalog.use(ONE)
    await catalog.close()
    assert file.last_record() == (journal.TOUCH, ONE, 0, 1000.0)
    file.close()


async def test_lost_blob_is_struck_out_unless_it_lies_elsewhere(catalog: Catalog) -> None:
    await put(catalog)
    await catalog.lost(ONE, PLACE + 1)
    assert catalog.use(ONE) == PLACE
    await catalog.lost(ONE, PLACE)
    assert catalog.use(ONE) is None
    assert catalog.use(TWO) == PLACE


async def test_lost_pack_is_struck_out_whole(catalog: Catalog) -> None:
    place = pack_location(9, 0, 1, IDENTITY)
    await catalog.append(b"".join(encode(journal.PUT, digest, place, 0.0) for digest in (ONE, TWO)))
    await catalog.lost(ONE, place, with_pack=True)
    assert catalog.find_missing([ONE, TWO]) == {ONE, TWO}
    assert catalog.index.used_bytes == 0


async def test_moved_in_the_midst_of_what_is_read(catalog: Catalog) -> None:
    """A compaction that died after MOVED: what follows in the old file still counts."""
    await catalog.append(encode(journal.PUT, ONE, PLACE, 0.0) + encode_note(journal.MOVED, 0, 0.0))
    other = Journal(catalog.journal.path)
    other.append(encode_note(journal.MOVED, 0, 0.0) + encode(journal.PUT, TWO, PLACE, 0.0))
    assert catalog.find_missing([ONE, TWO]) == set()
    late = Catalog(catalog.config, other, Index(), lambda: 0.0)
    assert late.find_missing([ONE, TWO]) == set()
    await late.close()
    other.close()


async def test_failing_background_job_is_logged(catalog: Catalog, caplog: pytest.LogCaptureFixture) -> None:
    async def job() -> None:
        raise OSError(28, "No space left on device")

    with caplog.at_level(logging.ERROR):
        catalog.start(job())
        await asyncio.wait(catalog._jobs)
        await asyncio.sleep(0)
    assert "cannot write down: [Errno 28] No space left on device" in caplog.text
