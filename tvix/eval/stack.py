"""Room for deep recursion: evaluation runs in a thread with a large stack.

Calls of emitted code take no C stack, but some steps do (compiling nested expressions, calls through a
functor, deep values shown). The recursion limit counts all Python frames and turns what goes beyond into a
RecursionError long before the thread's stack is used up.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

STACK_BYTES = 512 * 1024 * 1024
"""Reserved, not used: pages are touched only as deep as calls go."""
MAX_FRAMES = 400_000
GC_THRESHOLDS = (2_000_000, 20, 1_000)
"""An evaluation keeps nearly all it makes: with Python's own thresholds it spends 40 % of its time on looking
through that for garbage. Two million containers take about 250 MB.
"""

T = TypeVar("T")
_lock = threading.Lock()


def run_with_large_stack(function: Callable[[], T]) -> T:
    """Call `function` in such a thread and return, or raise, what it does."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        thresholds = gc.get_threshold()
        gc.set_threshold(*GC_THRESHOLDS)
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)
        finally:
            gc.set_threshold(*thresholds)

    with _lock:
        sys.setrecursionlimit(max(sys.getrecursionlimit(), MAX_FRAMES))
        previous = threading.stack_size(STACK_BYTES)
        try:
            thread = threading.Thread(target=run, name="evaluator", daemon=True)
            thread.start()
        finally:
            threading.stack_size(previous)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
