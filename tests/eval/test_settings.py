"""Settings."""

from __future__ import annotations

import pytest

from tvix.eval.settings import default_system, log_to_stderr


def test_the_system_has_machine_and_kernel() -> None:
    machine, _, kernel = default_system().partition("-")
    assert machine
    assert kernel == kernel.lower() != ""


def test_traces_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr("trace: x")
    assert capsys.readouterr().err == "trace: x\n"
