"""Builtins that are no functions."""

from __future__ import annotations

from tvix.eval.builtins.registry import Registry
from tvix.eval.errors import EvalError
from tvix.eval.values import Thunk, Value

NIX_VERSION = "2.18.0"
"""The version of the language and builtins that programs may count on (nixpkgs wants at least 2.18)."""
LANGUAGE_VERSION = 6


def register(registry: Registry) -> None:
    """Add this module's builtins."""
    evaluator = registry.evaluator
    settings = evaluator.settings

    def current_system() -> Value:
        if settings.pure:
            raise EvalError("builtins.currentSystem is not available in pure evaluation")
        return settings.current_system

    def current_time() -> Value:
        if settings.pure:
            raise EvalError("builtins.currentTime is not available in pure evaluation")
        return evaluator.start_time

    registry.constant("true", True)
    registry.constant("false", False)
    registry.constant("null", None)
    registry.constant("langVersion", LANGUAGE_VERSION)
    registry.constant("nixVersion", NIX_VERSION)
    registry.constant("storeDir", settings.store_dir)
    if not settings.pure:
        registry.constant("currentSystem", Thunk(current_system))
        registry.constant("currentTime", Thunk(current_time))
    registry.constant("nixPath", Thunk(evaluator.search_path_value))
