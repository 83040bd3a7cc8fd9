"""What is done now and then so that nothing grows without end. Blobs are the disk store's own evictor's business."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from tvix.errors import TvixError

log = logging.getLogger(__name__)

PERIOD_SECONDS = 600.0

Prune = Callable[[], Awaitable[int]]
"""Removes what need not be kept and returns how many it removed."""


async def keep_house(chores: Sequence[tuple[str, Prune]], period_seconds: float = PERIOD_SECONDS) -> None:
    """Do the named chores every `period_seconds` until cancelled. One that fails is tried again the next time."""
    while True:
        for name, prune in chores:
            try:
                removed = await prune()
            except (TvixError, OSError) as error:
                log.warning("pruning=%s failed=%r", name, str(error))
            else:
                if removed:
                    log.info("pruning=%s removed=%d", name, removed)
        await asyncio.sleep(period_seconds)
