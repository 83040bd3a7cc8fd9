"""The choice between mounting and copying."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.executor.mounting import COMMAND, enter_namespace
from tvix.cas.memory import MemoryBlobStore
from tvix.errors import FailedPrecondition
from tvix.executor.build_roots import make_build_root
from tvix.executor.copied_root import CopiedBuildRoot
from tvix.executor.fuse_root import FuseBuildRoot
from tvix.executor.mount_process import FuseConfig


def test_mounting_is_preferred_where_it_works(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    enter_namespace()
    caplog.set_level(logging.INFO)
    config = FuseConfig(str(tmp_path), COMMAND)
    assert isinstance(make_build_root(MemoryBlobStore(), tmp_path / "new/scratch", config), FuseBuildRoot)
    assert "kind=fuse" in caplog.text


def test_without_a_store_url_trees_are_copied_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(make_build_root(MemoryBlobStore(), tmp_path, None), CopiedBuildRoot)
    assert "kind=copy" in caplog.text
    assert "has no URL" in caplog.text


def test_copying_can_be_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = FuseConfig(str(tmp_path), COMMAND)
    assert isinstance(make_build_root(MemoryBlobStore(), tmp_path, config, "copy"), CopiedBuildRoot)
    assert caplog.text == "", "no warning for what was asked for"


def test_mounting_that_was_asked_for_and_cannot_be_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="cannot be mounted: the store has no URL"):
        make_build_root(MemoryBlobStore(), tmp_path, None, "fuse")
