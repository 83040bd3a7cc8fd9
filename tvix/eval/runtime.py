"""What emitted code may use: the names of its global namespace.

`SHARED` holds for all files; `bind` adds what depends on the evaluator and the file. `SOURCE` is no name that
emitted code uses: it tells, in a traceback, which file a frame belongs to (tvix.eval.error_report).
"""

from __future__ import annotations

import os
from types import FunctionType
from typing import TYPE_CHECKING, Any

from tvix.eval import operators
from tvix.eval.errors import EvalError, NixTypeError
from tvix.eval.operators import Formals
from tvix.eval.source import Source
from tvix.eval.strings import canonical_path
from tvix.eval.values import MISSING, Attrs, Lazy, Path, PositionTable, Thunk, Value, force, new_set, show_type

if TYPE_CHECKING:
    from tvix.eval.evaluator import Evaluator

ENTRY = "evaluate_file"
"""The emitted function that returns a file's value."""

EXPORTED = [
    "apply_overrides",
    "assertion_failed",
    "concatenate",
    "divide",
    "equal",
    "get_or_missing",
    "has_name",
    "has_path",
    "less_than",
    "look_up_with",
    "match_formals",
    "multiply",
    "not_a_boolean",
    "select_or_missing",
    "subtract",
    "update",
    "update_one",
]
"""Helpers of tvix.eval.operators."""


def attribute_name(value: Value) -> str | None:
    """Return the name that `${value}` gives; None for null, which names nothing."""
    if isinstance(value, str):
        return str(value) if value.__class__ is not str else value
    if value is None:
        return None
    raise NixTypeError(f"value is {show_type(value)} while a string was expected, as the name of an attribute")


def static_name(value: Value) -> str:
    """Return the name by which `${value}` selects: null does not."""
    name = attribute_name(value)
    if name is None:
        raise NixTypeError("value is null while a string was expected, as the name of an attribute")
    return name


def add_dynamic(attrs: Attrs, *names_and_values: Lazy) -> Attrs:
    """Add `${name} = value` attributes to a new set; names are values, and null ones are left out."""
    for index in range(0, len(names_and_values), 2):
        name = attribute_name(names_and_values[index])
        if name is None:
            continue
        if name in attrs:
            raise EvalError(f"dynamic attribute '{name}' already defined")
        attrs[name] = names_and_values[index + 1]
    return attrs


def formals_of(value: Value) -> Formals | None:
    """Return the set pattern of a function, None if it takes none or is no function of a Nix file.

    The compiler names such functions after the global that holds their Formals.
    """
    if value.__class__ is not FunctionType or not value.__name__.startswith("K_formals_"):
        return None
    formals: Formals = value.__globals__[value.__name__.rpartition("_")[0]]
    return formals


SHARED: dict[str, Any] = {
    **{name: getattr(operators, name) for name in EXPORTED},
    "Attrs": Attrs,
    "MISSING": MISSING,
    "Thunk": Thunk,
    "add_dynamic": add_dynamic,
    "attribute_name": static_name,
    "force": force,
    "make_formals": Formals,
    "new_set": new_set,
}


def evaluator_namespace(evaluator: Evaluator) -> dict[str, Any]:
    """Return the names that all files of an evaluator share."""
    strings = evaluator.strings
    return {
        **SHARED,
        **evaluator.registry.namespace,
        "add": strings.add,
        "add_one": strings.add_one,
        "interpolate": strings.interpolate,
        "interpolate_path": strings.path_from_parts,
    }


def file_namespace(shared: dict[str, Any], source: Source, scope: Attrs | None) -> dict[str, Any]:
    """Return the namespace of one file; `scope` is what scopedImport binds."""
    file, base_directory = source.name, source.base_directory

    def absolute(text: str) -> str:
        if text.startswith("~/"):
            text = os.path.expanduser("~") + text[1:]
        elif not text.startswith("/"):
            text = f"{base_directory}/{text}"
        return text

    def make_path(text: str) -> Path:
        return Path(canonical_path(absolute(text)))

    def interpolate_path(first: str, *parts: Value) -> Path:
        path: Path = shared["interpolate_path"](absolute(first), *parts)
        return path

    def make_positions(flat: tuple[Any, ...]) -> PositionTable:
        return PositionTable(file, flat)

    def current_position(line: int, column: int) -> Attrs:
        return Attrs(file=file, line=line, column=column)

    namespace = dict(shared)
    namespace["SOURCE"] = source
    namespace["SCOPE"] = scope
    namespace["make_path"] = make_path
    namespace["interpolate_path"] = interpolate_path
    namespace["make_positions"] = make_positions
    namespace["current_position"] = current_position
    return namespace
