"""Which sandbox is taken."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tvix.errors import FailedPrecondition
from tvix.executor import sandboxes
from tvix.executor.bubblewrap import BubblewrapConfig, BubblewrapSandbox
from tvix.executor.sandboxes import make_sandbox
from tvix.executor.unconfined import UnconfinedSandbox


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_the_first_that_works_is_taken() -> None:
    assert isinstance(make_sandbox("auto"), BubblewrapSandbox)
    assert isinstance(make_sandbox("bubblewrap"), BubblewrapSandbox)


def test_none_is_taken_on_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = BubblewrapConfig(program="no-such-bwrap")
    monkeypatch.setattr(
        sandboxes,
        "_MAKERS",
        {"bubblewrap": lambda: BubblewrapSandbox(absent), "none": UnconfinedSandbox},
    )
    with pytest.raises(FailedPrecondition, match=r"'no-such-bwrap' is not installed.*choose `none` if you trust"):
        make_sandbox("auto")
    assert isinstance(make_sandbox("none"), UnconfinedSandbox)


def test_a_program_that_fails_is_said_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: no namespaces for you' >&2; exit 1")
    broken.chmod(0o755)
    config = BubblewrapConfig(program=str(broken))
    monkeypatch.setattr(sandboxes, "_MAKERS", {"bubblewrap": lambda: BubblewrapSandbox(config)})
    with pytest.raises(FailedPrecondition, match="does not work here: bwrap: no namespaces for you"):
        make_sandbox("bubblewrap")
