"""h2load with gRPC bodies: one fixed request body, sent over and over by POST.

h2load sees HTTP only: a call refused in the trailers counts as a success. So every load is first tried once
by a real client, and the bytes per answer under load must be those of that answer, or the run is void.
"""

from __future__ import annotations

import re
import statistics
import struct
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from google.protobuf.message import Message

CONNECTIONS = 8
STREAMS = 16
_HEADERS = ("-H", "content-type: application/grpc", "-H", "te: trailers")


class Void(RuntimeError):
    """A measurement that does not count: calls failed or answers were not the expected ones."""


def frame(*messages: Message) -> bytes:
    """Return a gRPC request body: each message behind its length."""
    parts = []
    for message in messages:
        data = message.SerializeToString()
        parts.append(struct.pack(">BI", 0, len(data)) + data)
    return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one h2load run measured."""

    requests: int
    seconds: float
    body_bytes: int
    """Of all answers, gRPC's five-byte prefixes included."""

    @property
    def per_second(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds

    @property
    def megabytes_per_second(self) -> float:
        """Answers' bytes per second, in millions."""
        return self.body_bytes / self.seconds / 1e6


def parse(text: str) -> Outcome:
    """Read h2load's report; Void when any request failed."""
    counts = re.search(r"requests: (\d+) total, .* (\d+) done, (\d+) succeeded, (\d+) failed", text)
    finished = re.search(r"finished in ([\d.]+)(us|ms|s|m)", text)
    traffic = re.search(r"traffic: .*\(\d+\) total, .* headers .*?, [\d.]+[KMG]?B \((\d+)\) data", text)
    if not counts or not finished or not traffic:
        raise Void(f"h2load said: {text[-500:]}")
    done, succeeded, failed = (int(counts[group]) for group in (2, 3, 4))
    if failed or not succeeded:
        raise Void(f"{failed} of {done} requests failed")
    unit = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}[finished[2]]
    return Outcome(succeeded, float(finished[1]) * unit, int(traffic[1]))


def h2load(address: str, method: str, body: Path, *options: str) -> Outcome:
    """Run h2load once against a method, such as `/package.Service/Method`."""
    command = ["h2load", *_HEADERS, "-d", str(body), "-w", "30", "-W", "30", *options, f"http://{address}{method}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise Void(f"h2load exit code {done.returncode}: {done.stderr[-300:]}")
    return parse(done.stdout)


def steady(address: str, method: str, body: Path, seconds: float, answer_bytes: int) -> float:
    """Return requests per second at 8 connections with 16 streams each; answers must be `answer_bytes` long.

    A short run warms the server up and tells how many requests make up `seconds`.
    """
    at_once = ("-c", str(CONNECTIONS), "-m", str(STREAMS))
    guess = h2load(address, method, body, *at_once, "-n", str(CONNECTIONS * STREAMS * 4)).per_second
    count = max(CONNECTIONS * STREAMS * 4, int(guess * seconds))
    outcome = h2load(address, method, body, *at_once, "-n", str(count))
    if outcome.body_bytes != answer_bytes * outcome.requests:
        raise Void(f"answers of {outcome.body_bytes / outcome.requests:.1f} bytes, not {answer_bytes}")
    return outcome.per_second


def streamed(address: str, method: str, body: Path, count: int, answer_bytes: int) -> float:
    """Return MB/s of `count` long answers over 4 connections."""
    outcome = h2load(address, method, body, "-c", "4", "-m", "1", "-n", str(count))
    if outcome.body_bytes < answer_bytes * count * 0.999:
        raise Void(f"{outcome.body_bytes} bytes in {count} answers, not {answer_bytes} each")
    return outcome.megabytes_per_second


def uploaded(address: str, method: str, bodies: Sequence[Path], payload_bytes: int) -> float:
    """Return MB/s of sending every body once, 4 at a time. A fixed body would be a blob that is there already."""

    def send(body: Path) -> None:
        h2load(address, method, body, "-c", "1", "-m", "1", "-n", "1")

    started = monotonic()
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(send, bodies):
            pass
    return payload_bytes * len(bodies) / (monotonic() - started) / 1e6


def median_of(rounds: int, measure: Callable[[], float]) -> float:
    """Return the median of several runs of `measure`."""
    return statistics.median(measure() for _ in range(rounds))
