"""The report: what counts as what, and what is printed."""

from __future__ import annotations

import io

import pytest

from conformance.results import Failed, Report, Skipped


def _raise(error: Exception) -> str:
    raise error


def _report(expected: dict[str, str] | None = None) -> tuple[Report, io.StringIO]:
    out = io.StringIO()
    return Report(out=out, expected=expected or {}), out


def test_every_outcome_is_printed_and_counted() -> None:
    report, out = _report()
    assert report.run("a/good", lambda: "fine")
    assert not report.run("a/bad", lambda: _raise(Failed("said\n  no")))
    assert report.run("a/absent", lambda: _raise(Skipped("not offered")))
    assert report.close() == 1
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("ok   a/good (")
    assert lines[0].endswith(": fine")
    assert lines[1].startswith("FAIL a/bad (")
    assert lines[1].endswith(": said no")
    assert lines[2].startswith("skip a/absent (")
    assert lines[-1] == "1 passed, 1 failed, 1 skipped"


def test_an_unforeseen_error_is_a_failure_that_names_type_and_text() -> None:
    report, out = _report()
    report.run("a/broken", lambda: _raise(ValueError("odd")))
    assert "ValueError at " in out.getvalue()
    assert out.getvalue().rstrip().endswith(": odd")


def test_a_known_difference_counts_as_skipped() -> None:
    report, out = _report(expected={"a/bad": "theirs is older"})
    assert report.run("a/bad", lambda: _raise(Failed("no")))
    report.run("a/good", lambda: None)
    assert report.close() == 0
    assert "known: theirs is older (no)" in out.getvalue()


def test_a_report_without_any_case_is_no_success() -> None:
    report, out = _report()
    assert report.close() == 1
    assert out.getvalue() == "0 passed, 0 failed\n"


def test_interrupts_are_not_swallowed() -> None:
    report, _ = _report()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report.run("a/x", interrupt)
