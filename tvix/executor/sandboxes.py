"""Chooses the sandbox."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from tvix.errors import FailedPrecondition
from tvix.executor.bubblewrap import BubblewrapSandbox
from tvix.executor.cgroups import Cgroups
from tvix.executor.interfaces import Sandbox
from tvix.executor.oci import OciConfig, OciSandbox
from tvix.executor.unconfined import UnconfinedSandbox

log = logging.getLogger(__name__)

SandboxKind = Literal["auto", "bubblewrap", "oci", "none"]
AUTOMATIC: tuple[SandboxKind, ...] = ("bubblewrap", "oci")
"""What `auto` tries, in this order. Not `none`: running strangers' commands unconfined is the operator's decision."""


async def make_sandbox(kind: SandboxKind, scratch: Path, cgroups: Cgroups | None = None) -> Sandbox:
    """Return the sandbox of a kind, having tried whether it works; `auto` takes the first that does.

    `scratch` is a folder for the sandbox alone; what is in it is removed. FailedPrecondition says why it does
    not work and what to do.
    """
    if kind != "auto":
        return await _tried(kind, scratch, cgroups)
    reasons: dict[str, str] = {}
    for candidate in AUTOMATIC:
        try:
            return await _tried(candidate, scratch, cgroups)
        except FailedPrecondition as error:
            reasons[candidate] = str(error)
    raise FailedPrecondition(_nothing_works(reasons))


def _nothing_works(reasons: Mapping[str, str]) -> str:
    tried = "; ".join(f"{kind}: {reason}" for kind, reason in reasons.items())
    return f"no sandbox works here ({tried}). Install bubblewrap, or choose `none` if you trust all actions"


async def _tried(kind: SandboxKind, scratch: Path, cgroups: Cgroups | None) -> Sandbox:
    sandbox = _make(kind, scratch, cgroups)
    reason = await sandbox.why_not()
    if reason:
        raise FailedPrecondition(f"sandbox {kind} does not work here: {reason}")
    log.info("sandbox=%r", sandbox)
    return sandbox


def _make(kind: SandboxKind, scratch: Path, cgroups: Cgroups | None) -> Sandbox:
    if kind == "bubblewrap":
        return BubblewrapSandbox(cgroups=cgroups)
    if kind == "oci":
        return OciSandbox(OciConfig(scratch), cgroups)
    return UnconfinedSandbox(cgroups)
