"""Which sandbox is taken."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tvix.errors import FailedPrecondition
from tvix.executor.bubblewrap import BubblewrapSandbox
from tvix.executor.oci import OciSandbox
from tvix.executor.sandboxes import make_sandbox
from tvix.executor.unconfined import UnconfinedSandbox


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
async def test_the_first_that_works_is_taken(tmp_path: Path) -> None:
    assert isinstance(await make_sandbox("auto", tmp_path / "s"), BubblewrapSandbox)
    assert isinstance(await make_sandbox("bubblewrap", tmp_path / "s"), BubblewrapSandbox)


@pytest.mark.skipif(shutil.which("crun") is None, reason="crun is not installed")
async def test_the_next_one_is_taken_when_the_first_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bin" / "bwrap"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho 'bwrap: no namespaces for you' >&2; exit 1")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken.parent}:/usr/local/bin:/usr/bin:/bin")
    with pytest.raises(FailedPrecondition, match=r"bubblewrap does not work here: .* bwrap: no namespaces for you"):
        await make_sandbox("bubblewrap", tmp_path / "s")
    assert isinstance(await make_sandbox("auto", tmp_path / "s"), OciSandbox)


async def test_none_is_taken_on_request_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FailedPrecondition, match=r"no sandbox works .*'bwrap' is not installed.*choose `none` if you"):
        await make_sandbox("auto", tmp_path / "s")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert isinstance(await make_sandbox("none", tmp_path / "s"), UnconfinedSandbox)
