"""Builtins on functions."""

from __future__ import annotations

from tvix.eval.builtins.expect import wrong_type
from tvix.eval.builtins.registry import Registry, Table
from tvix.eval.runtime import formals_of
from tvix.eval.values import Attrs, PositionTable, Value, type_name

TABLE = Table()


def register(registry: Registry) -> None:
    """Add this module's builtins."""
    registry.update(TABLE)


@TABLE.primop("functionArgs", "s")
def function_args(function: Value) -> Value:
    if type_name(function) != "lambda":
        raise wrong_type(function, "a function", "builtins.functionArgs")
    formals = formals_of(function)
    if formals is None:
        return Attrs()
    made = Attrs(formals.defaults)
    source = function.__globals__.get("SOURCE")  # builtins with formals have none
    if source is not None:
        made.positions = PositionTable(source.name, formals.flat_places)
    return made
