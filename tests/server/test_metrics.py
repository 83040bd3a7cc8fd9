"""Counting calls."""

from prometheus_client import REGISTRY

from tvix.server.metrics import BOUNDS_SECONDS, MAX_METHODS, CallMeter, note_process, render_metrics


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_calls_are_counted_by_how_long_they_took() -> None:
    meter = CallMeter()
    for seconds in (0.0001, 0.02, 1000.0):
        meter.observe("/p.S/Timed", 0, seconds)
    meter.observe("/p.S/Timed", 5, 0.3)
    meter.flush()
    meter.flush()
    by_bound = {le: sample("tvix_grpc_calls_by_seconds_total", method="p.S/Timed", le=le) for le in ("0.0005", "0.025")}
    assert by_bound == {"0.0005": 1, "0.025": 2}
    assert sample("tvix_grpc_calls_by_seconds_total", method="p.S/Timed", le="+Inf") == 4
    assert sample("tvix_grpc_call_failures_total", method="p.S/Timed", code="5") == 1
    assert sample("tvix_grpc_call_seconds_total", method="p.S/Timed") > 1000


def test_a_call_that_takes_just_the_bound_counts_as_within_it() -> None:
    meter = CallMeter()
    meter.observe("/p.S/Bound", 0, BOUNDS_SECONDS[3])
    meter.flush()
    assert sample("tvix_grpc_calls_by_seconds_total", method="p.S/Bound", le=f"{BOUNDS_SECONDS[3]:g}") == 1


def test_method_names_that_callers_invent_do_not_fill_the_memory() -> None:
    meter = CallMeter()
    for number in range(MAX_METHODS + 100):
        meter.observe(f"/invented/{number}", 12, 0.0)
    assert repr(meter) == f"<CallMeter of {MAX_METHODS + 1} methods>"


def test_processes_tell_their_memory() -> None:
    note_process("front-9", 1234.5)
    text = render_metrics().decode()
    assert 'tvix_process_start_time_seconds{process="front-9"} 1234.5' in text
    assert 'tvix_process_resident_bytes{process="front-9"}' in text
