"""Chooses how input trees are made visible: mounted where this machine can, else copied. Blocking calls."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from tvix.cas.interfaces import BlobStore
from tvix.errors import FailedPrecondition
from tvix.executor.copied_root import CopiedBuildRoot
from tvix.executor.fuse_root import FuseBuildRoot
from tvix.executor.interfaces import BuildRoot
from tvix.executor.mount_process import FuseConfig
from tvix.executor.mounts import probe

logger = logging.getLogger(__name__)

Preference = Literal["auto", "fuse", "copy"]


def make_build_root(
    blobs: BlobStore, scratch: Path, fuse: FuseConfig | None, preference: Preference = "auto"
) -> BuildRoot:
    """Return the build roots of a worker whose store is `blobs`; log which kind, and why not FUSE.

    `fuse` names the same store for the mount's process; None when there is no URL for it. Call it after
    `mounts.enter_private_namespace`. With "fuse", raises FailedPrecondition where "auto" would copy.
    """
    reason = "not wanted" if preference == "copy" else why_no_fuse(scratch, fuse)
    if fuse is not None and not reason:
        logger.info("build_roots kind=fuse scratch=%s", scratch)
        return FuseBuildRoot(scratch, fuse)
    if preference == "fuse":
        raise FailedPrecondition(f"input roots cannot be mounted: {reason}")
    level = logging.INFO if preference == "copy" else logging.WARNING
    logger.log(level, "build_roots kind=copy scratch=%s why_not_fuse=%r", scratch, reason)
    return CopiedBuildRoot(blobs, scratch)


def why_no_fuse(scratch: Path, fuse: FuseConfig | None) -> str:
    """Return why input trees cannot be mounted here, empty if they can."""
    if fuse is None:
        return "the store has no URL by which the mount's process could open it"
    scratch.mkdir(parents=True, exist_ok=True)
    features = probe(scratch)
    if not features.fuse:
        return f"FUSE: {features.fuse_reason}"
    return f"overlayfs in {scratch}: {features.overlay_reason}" if not features.overlay else ""
