"""Evaluating in tests: text in, text as Nix prints it out."""

from __future__ import annotations

from typing import Any

from tvix.eval.builtins.control import force_deep
from tvix.eval.evaluator import Evaluator
from tvix.eval.io import FileSystem
from tvix.eval.printing import to_nix
from tvix.eval.settings import Settings
from tvix.eval.stack import run_with_large_stack


def make_evaluator(**settings: Any) -> Evaluator:
    """Return an evaluator of files without a store, that logs nothing and knows no NIX_PATH."""
    return Evaluator(FileSystem(), Settings(**{"use_nix_path": False, "log": lambda text: None, **settings}))


def shown(text: str, evaluator: Evaluator | None = None, base_directory: str = "/") -> str:
    """Evaluate deeply; return what `nix-instantiate --eval --strict` prints. EvalError as it comes."""
    evaluator = evaluator or make_evaluator()

    def run() -> str:
        with evaluator.reporting():
            return to_nix(force_deep(evaluator.evaluate_text(text, base_directory)), computed=True)

    return run_with_large_stack(run)
