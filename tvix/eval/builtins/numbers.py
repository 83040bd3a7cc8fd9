"""Arithmetic and bit builtins."""

from __future__ import annotations

import math

from tvix.eval.builtins.expect import expect_int, wrong_type
from tvix.eval.builtins.registry import Registry, Table
from tvix.eval.errors import NixTypeError
from tvix.eval.operators import add_numbers, divide, multiply, subtract
from tvix.eval.values import MAX_INT, MIN_INT, Value

TABLE = Table()
TABLE.add("add", "ss", add_numbers)
TABLE.add("sub", "ss", subtract)
TABLE.add("mul", "ss", multiply)
TABLE.add("div", "ss", divide)


def register(registry: Registry) -> None:
    """Add this module's builtins."""
    registry.update(TABLE)


@TABLE.primop("bitAnd", "ss")
def bit_and(left: Value, right: Value) -> int:
    return expect_int(left, "builtins.bitAnd") & expect_int(right, "builtins.bitAnd")


@TABLE.primop("bitOr", "ss")
def bit_or(left: Value, right: Value) -> int:
    return expect_int(left, "builtins.bitOr") | expect_int(right, "builtins.bitOr")


@TABLE.primop("bitXor", "ss")
def bit_xor(left: Value, right: Value) -> int:
    return expect_int(left, "builtins.bitXor") ^ expect_int(right, "builtins.bitXor")


@TABLE.primop("ceil", "s")
def ceil(value: Value) -> int:
    return _whole(value, "builtins.ceil", up=True)


@TABLE.primop("floor", "s")
def floor(value: Value) -> int:
    return _whole(value, "builtins.floor", up=False)


def _whole(value: Value, what: str, *, up: bool) -> int:
    if value.__class__ is int:
        return value
    if value.__class__ is not float:
        raise wrong_type(value, "a float", what)
    if not math.isfinite(value):
        raise NixTypeError(f"{value} is no number that fits an integer, in {what}")
    whole = math.ceil(value) if up else math.floor(value)
    if not MIN_INT <= whole <= MAX_INT:
        raise NixTypeError(f"{value} does not fit an integer, in {what}")
    return whole
