"""Chooses the sandbox. Blocking calls."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

from tvix.errors import FailedPrecondition
from tvix.executor.bubblewrap import BubblewrapSandbox
from tvix.executor.interfaces import Sandbox
from tvix.executor.unconfined import UnconfinedSandbox

log = logging.getLogger(__name__)

SandboxKind = Literal["auto", "bubblewrap", "oci", "none"]

_MAKERS: dict[str, Callable[[], Sandbox]] = {
    "bubblewrap": BubblewrapSandbox,
    "none": UnconfinedSandbox,
}


def make_sandbox(kind: SandboxKind = "auto") -> Sandbox:
    """Return the sandbox of a kind, having tried whether it works; `auto` takes the first that isolates.

    FailedPrecondition says why it does not work and what to do. `auto` never falls back to `none`:
    running strangers' commands unconfined is the operator's decision.
    """
    if kind != "auto":
        return _try(kind)
    reasons = []
    for candidate in _MAKERS:
        if candidate != "none":
            try:
                return _try(candidate)
            except FailedPrecondition as error:
                reasons.append(f"{candidate}: {error}")
    raise FailedPrecondition(
        "no sandbox works here: "
        + "; ".join(reasons)
        + ". Install bubblewrap, or choose `none` if you trust all actions"
    )


def _try(kind: str) -> Sandbox:
    sandbox = _MAKERS[kind]()
    reason = sandbox.why_not()
    if reason:
        raise FailedPrecondition(f"sandbox {kind} does not work here: {reason}")
    log.info("sandbox=%s", sandbox)
    return sandbox
