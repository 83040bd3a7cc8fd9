"""What is read out of Bazel's output, and the repositories made for it."""

from __future__ import annotations

from pathlib import Path

from conformance.bazel.client import CC_RULES, Done, make_coverage_shim, make_shim

OUTPUT = """\
Loading: 0 packages loaded
INFO: Analyzed 5 targets (0 packages loaded, 0 targets configured).
ERROR: //x:y failed: (Exit 34)
INFO: Elapsed time: 1.261s, Critical Path: 0.27s
INFO: 105 processes: 96 remote cache hit, 9 internal.
INFO: Build completed successfully, 105 total actions
"""


def test_processes_are_counted_by_strategy() -> None:
    done = Done(0, OUTPUT, 1.0)
    assert done.processes == {"remote cache hit": 96, "internal": 9}
    assert done.ran("remote", "remote cache hit") == 96
    assert done.ran("remote") == 0


def test_no_closing_line_means_no_processes() -> None:
    assert Done(1, "ERROR: no\n", 1.0).processes == {}


def test_errors_are_what_is_not_progress() -> None:
    assert Done(1, OUTPUT, 1.0).errors() == "ERROR: //x:y failed: (Exit 34)"


def test_shims_re_export_native_rules(tmp_path: Path) -> None:
    repository = make_shim(tmp_path, "rules_cc", "cc", CC_RULES)
    lines = (repository / "cc" / "defs.bzl").read_text().splitlines()
    assert "cc_library = native.cc_library" in lines
    assert len(lines) == 10
    assert "lcov_merger" in (make_coverage_shim(tmp_path) / "BUILD").read_text()
