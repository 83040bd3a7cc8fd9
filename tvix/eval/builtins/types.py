"""Builtins that tell and check types."""

from __future__ import annotations

from tvix.eval.builtins.registry import Registry, Table
from tvix.eval.operators import less_than
from tvix.eval.values import Attrs, Path, Value, type_name

TABLE = Table()


def register(registry: Registry) -> None:
    """Add this module's builtins."""
    registry.update(TABLE)


@TABLE.primop("typeOf", "s")
def type_of(value: Value) -> str:
    return type_name(value)


@TABLE.primop("isAttrs", "s")
def is_attrs(value: Value) -> bool:
    return value.__class__ is Attrs


@TABLE.primop("isBool", "s")
def is_bool(value: Value) -> bool:
    return value is True or value is False


@TABLE.primop("isFloat", "s")
def is_float(value: Value) -> bool:
    return value.__class__ is float


@TABLE.primop("isFunction", "s")
def is_function(value: Value) -> bool:
    return value is not None and type_name(value) == "lambda"


@TABLE.primop("isInt", "s")
def is_int(value: Value) -> bool:
    return value.__class__ is int


@TABLE.primop("isList", "s")
def is_list(value: Value) -> bool:
    return value.__class__ is list


@TABLE.primop("isNull", "s")
def is_null(value: Value) -> bool:
    return value is None


@TABLE.primop("isPath", "s")
def is_path(value: Value) -> bool:
    return value.__class__ is Path


@TABLE.primop("isString", "s")
def is_string(value: Value) -> bool:
    return isinstance(value, str)


TABLE.add("lessThan", "ss", less_than)
