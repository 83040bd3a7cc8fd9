"""Finding the derivations in a value, as `nix-instantiate` and `nix-build` do: in sets by name, and in lists.

Yields while evaluation goes on: what comes later is not computed before it is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from tvix.eval.errors import EvalError, NixTypeError
from tvix.eval.evaluator import Evaluator
from tvix.eval.operators import sorted_names
from tvix.eval.values import MISSING, Attrs, Lazy, Value, force, show_type

_SEARCHED_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9\-_+]*").fullmatch
"""Other attributes are not looked into."""


class FoundDerivation(NamedTuple):
    """A value that stands for a derivation, or for one of its outputs; nothing is computed but its name."""

    attribute_path: str
    attributes: Attrs

    def instantiate(self, evaluator: Evaluator) -> str:
        """Put the derivation into the store; return its path, with `!output` for other outputs than `out`."""
        drv_path = str(evaluator.strings.coerce(force(self.attributes["drvPath"]), copy=False))
        if not drv_path.startswith(f"{evaluator.settings.store_dir}/"):
            raise EvalError(f"path '{drv_path}' is not in the Nix store: the 'drvPath' of '{self.attribute_path}'")
        lazy = self.attributes.get("outputName", MISSING)
        output_name = "" if lazy is MISSING else str(evaluator.strings.coerce(force(lazy), copy=False))
        if not output_name:
            raise EvalError(f"derivation '{drv_path}' lacks an 'outputName' attribute")
        return drv_path if output_name == "out" else f"{drv_path}!{output_name}"


def find_derivations(evaluator: Evaluator, value: Value, arguments: Mapping[str, Lazy]) -> Iterator[FoundDerivation]:
    """Yield the derivations of a value, each once. Functions are called with those of the arguments they name.

    Sets within sets are searched only if they say `recurseForDerivations = true`, those in lists always.
    NixTypeError for a value that is no derivation, set or list.
    """
    return _Search(evaluator, arguments).find(value, "")


class _Search:
    def __init__(self, evaluator: Evaluator, arguments: Mapping[str, Lazy]) -> None:
        self._evaluator = evaluator
        self._arguments = arguments
        self._done: set[int] = set()

    def find(self, value: Value, path: str) -> Iterator[FoundDerivation]:
        value = self._evaluator.auto_call(value, self._arguments)
        kind = value.__class__
        if kind is Attrs:
            if _is_derivation(value):
                yield from self._once(value, path)
                return
            all_sets = "_combineChannels" in value
            for name in sorted_names(value):
                if _SEARCHED_NAME(name):
                    yield from self._within_set(force(value[name]), f"{path}.{name}" if path else name, all_sets)
        elif kind is list:
            for index, item in enumerate(value):
                inner = force(item)
                yield from self.find(inner, f"{path}.{index}" if path else str(index))
        else:
            raise NixTypeError(
                f"expression does not evaluate to a derivation (or a set or list of those), but to {show_type(value)}"
            )

    def _within_set(self, value: Value, path: str, all_sets: bool) -> Iterator[FoundDerivation]:
        if all_sets:
            yield from self.find(value, path)
        elif value.__class__ is Attrs:
            if _is_derivation(value):
                yield from self._once(value, path)
            elif _wants_recursion(value):
                yield from self.find(value, path)

    def _once(self, value: Attrs, path: str) -> Iterator[FoundDerivation]:
        if id(value) in self._done:
            return
        self._done.add(id(value))
        if "name" not in value:
            raise EvalError("derivation name missing")
        force(value["name"])
        yield FoundDerivation(path, value)


def _is_derivation(value: Attrs) -> bool:
    kind = value.get("type", MISSING)
    return kind is not MISSING and force(kind) == "derivation"


def _wants_recursion(value: Attrs) -> bool:
    wish = value.get("recurseForDerivations", MISSING)
    return wish is not MISSING and force(wish) is True
