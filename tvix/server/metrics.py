"""Counters of the processes of a server, added up for Prometheus.

Each process maps files of its own below PROMETHEUS_MULTIPROC_DIR (the supervisor sets it and empties the
folder at each start); whoever is asked adds them up. A counter in a shared file costs a microsecond or
more, a call a few of them, so calls are counted in plain lists and added to the files once a second.
"""

from __future__ import annotations

import asyncio
import os
import time
from bisect import bisect_left
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

CONTENT_TYPE = CONTENT_TYPE_LATEST

BOUNDS_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 60.0)
MAX_METHODS = 200
"""Method names come from callers; beyond this many they are counted together."""
FLUSH_SECONDS = 1.0

CALLS = Counter(
    "tvix_grpc_calls_by_seconds",
    "gRPC calls that took at most `le` seconds, by method; for histogram_quantile.",
    ["method", "le"],
)
CALL_SECONDS = Counter("tvix_grpc_call_seconds", "Time spent in gRPC calls, by method.", ["method"])
CALL_FAILURES = Counter("tvix_grpc_call_failures", "gRPC calls that did not end with OK.", ["method", "code"])
STARTED = Gauge("tvix_process_start_time_seconds", "When a process was started.", ["process"], multiprocess_mode="max")
RESIDENT = Gauge(
    "tvix_process_resident_bytes", "Memory in use by a process.", ["process"], multiprocess_mode="mostrecent"
)


class _Method:
    """What was counted of one method since the last flush."""

    __slots__ = ("buckets", "failures", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS_SECONDS) + 1)
        self.failures: dict[int, int] = {}
        self.seconds = 0.0


class CallMeter:
    """Counts the calls of one process."""

    def __init__(self) -> None:
        self._methods: dict[str, _Method] = {}

    def __repr__(self) -> str:
        return f"<CallMeter of {len(self._methods)} methods>"

    def observe(self, path: str, code: int, seconds: float) -> None:
        """Count a finished call; called for every one."""
        method = self._methods.get(path)
        if method is None:
            key = path if len(self._methods) < MAX_METHODS else "other"
            method = self._methods.setdefault(key, _Method())
        method.seconds += seconds
        method.buckets[bisect_left(BOUNDS_SECONDS, seconds)] += 1
        if code:
            method.failures[code] = method.failures.get(code, 0) + 1

    def flush(self) -> None:
        """Add what was counted to the shared files."""
        for path, method in self._methods.items():
            if not any(method.buckets):
                continue
            counted, self._methods[path] = method, _Method()
            _add(path.strip("/"), counted)


async def keep_metering(meter: CallMeter, process_name: str) -> None:
    """Bring the shared files up to date every second until cancelled."""
    started_seconds = time.time()
    try:
        while True:
            meter.flush()
            note_process(process_name, started_seconds)
            await asyncio.sleep(FLUSH_SECONDS)
    finally:
        meter.flush()


def _add(name: str, method: _Method) -> None:
    total = 0
    for bound, count in zip((*BOUNDS_SECONDS, float("inf")), method.buckets, strict=True):
        total += count
        CALLS.labels(name, "+Inf" if bound == float("inf") else f"{bound:g}").inc(total)
    CALL_SECONDS.labels(name).inc(method.seconds)
    for code, count in method.failures.items():
        CALL_FAILURES.labels(name, str(code)).inc(count)


def note_process(name: str, started_seconds: float) -> None:
    """Say since when this process runs and how much memory it has."""
    STARTED.labels(name).set(started_seconds)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    RESIDENT.labels(name).set(pages * os.sysconf("SC_PAGE_SIZE"))


def render_metrics() -> bytes:
    """Return all processes' counters in Prometheus' text format."""
    return generate_latest(_registry())


def _registry() -> CollectorRegistry:
    """Return what all processes have counted, or this one alone where it does not share."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return REGISTRY
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry


def action_cache_lookups() -> tuple[int, int]:
    """Return how many look-ups of action results hit and missed, in all processes since the server started."""
    registry = _registry()
    labels = {"store": "actions", "method": "get"}
    hits, misses = (
        registry.get_sample_value("tvix_store_blobs_total", {**labels, "outcome": outcome}) or 0
        for outcome in ("hit", "miss")
    )
    return int(hits), int(misses)
