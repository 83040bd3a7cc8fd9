"""h2load's report is read right, and what does not count is not counted."""

from __future__ import annotations

import pytest

from benchmarks.load import Void, frame, parse
from remote_apis import remote_execution_pb2 as re_pb2

REPORT = """\
finished in 311.79ms, 16036.59 req/s, 1.64MB/s
requests: 5000 total, 5000 started, 5000 done, 5000 succeeded, {failed} failed, 0 errored, 0 timeout
status codes: 5000 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 524.12KB (536702) total, 15.23KB (15600) headers (space savings 96.15%), 366.21KB (375000) data
"""


def test_a_report_is_read() -> None:
    outcome = parse(REPORT.format(failed=0))
    assert (outcome.requests, outcome.body_bytes) == (5000, 375000)
    assert outcome.seconds == pytest.approx(0.31179)
    assert outcome.per_second == pytest.approx(16036.4, rel=1e-3)
    assert outcome.megabytes_per_second == pytest.approx(1.2027, rel=1e-3)


@pytest.mark.parametrize(("unit", "seconds"), [("us", 311.79e-6), ("s", 311.79), ("m", 18707.4)])
def test_units_of_time(unit: str, seconds: float) -> None:
    assert parse(REPORT.format(failed=0).replace("ms,", f"{unit},")).seconds == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "Could not connect\n", REPORT.format(failed=7)])
def test_failures_and_nonsense_are_void(text: str) -> None:
    with pytest.raises(Void):
        parse(text)


def test_frames_carry_their_length() -> None:
    message = re_pb2.Digest(hash="ab", size_bytes=1)
    data = message.SerializeToString()
    assert frame(message, message) == (b"\0" + len(data).to_bytes(4, "big") + data) * 2
