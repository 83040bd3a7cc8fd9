"""A process that writes blobs to a store until it is killed, and says which ones were acknowledged.

python -m tests.cas.disk.writer_process FOLDER FSYNC SEED
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from tvix.cas.digest import digest_of
from tvix.cas.disk import DiskBlobStore, DiskConfig


def blob(seed: int, number: int) -> bytes:
    """Return the blob of this number: sizes from a few bytes to a few hundred KiB."""
    generator = random.Random(seed * 1_000_000 + number)
    return generator.randbytes(generator.choice((10, 1000, 50_000, 200_000, 700_000)))


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    """Yield data in pieces."""
    for start in range(0, len(data), 65536):
        yield data[start : start + 65536]


async def main(folder: str, fsync: str, seed: int) -> None:
    """Write for ever; one line per acknowledged blob."""
    config = DiskConfig(Path(folder), fsync=fsync, compression="zstd", small_blob_bytes=60_000)  # type: ignore[arg-type]
    store = await DiskBlobStore.open(config)
    number = 0
    while True:
        batch = [blob(seed, number + step) for step in range(4)]
        await asyncio.gather(*(store.write(digest_of(data), chunks(data)) for data in batch))
        for step in range(4):
            os.write(1, b"%d\n" % (number + step))
        number += 4


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
