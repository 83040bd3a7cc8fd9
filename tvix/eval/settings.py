"""What an evaluation may be told: frozen, made by the command line or a caller."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from tvix.nix.store_path import STORE_DIR


def default_system() -> str:
    """Return this machine's system as Nix names it, such as `x86_64-linux`."""
    system = os.uname()
    machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(system.machine.lower(), system.machine)
    return f"{machine}-{system.sysname.lower()}"


def log_to_stderr(text: str) -> None:
    """Print a line of builtins.trace or a warning."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Settings:
    """How to evaluate."""

    pure: bool = False
    """No environment, time, system, nor files outside the store."""
    restrict: bool = False
    """Only files below the search path and the store."""
    search_path: tuple[str, ...] = ()
    """Entries of `-I`, before those of NIX_PATH: `name=path` or `path`."""
    use_nix_path: bool = True
    """Whether NIX_PATH adds to the search path."""
    current_system: str = field(default_factory=default_system)
    store_dir: str = STORE_DIR
    trace_verbose: bool = False
    abort_on_warn: bool = False
    allow_import_from_derivation: bool = True
    log: Callable[[str], None] = log_to_stderr
    """Gets the lines of builtins.trace and warnings."""
