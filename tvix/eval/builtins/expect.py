"""Checks of the arguments of builtins: each returns the value if it has the type, else raises NixTypeError."""

from __future__ import annotations

from tvix.eval.errors import NixTypeError
from tvix.eval.values import Attrs, Lazy, Value, force, show_type


def wrong_type(value: Value, wanted: str, what: str) -> NixTypeError:
    """Return the error for a value that is not `wanted` (with its article); `what` needed it."""
    return NixTypeError(f"value is {show_type(value)} while {wanted} was expected, in {what}")


def expect_list(value: Value, what: str) -> list[Lazy]:
    """Return a list."""
    if value.__class__ is not list:
        raise wrong_type(value, "a list", what)
    return value


def expect_set(value: Value, what: str) -> Attrs:
    """Return a set."""
    if value.__class__ is not Attrs:
        raise wrong_type(value, "a set", what)
    return value


def expect_int(value: Value, what: str) -> int:
    """Return an integer; Booleans are none."""
    if value.__class__ is not int:
        raise wrong_type(value, "an integer", what)
    return value


def expect_text(value: Value, what: str) -> str:
    """Return a string, with its context if it has one."""
    if not isinstance(value, str):
        raise wrong_type(value, "a string", what)
    return value


def expect_bool(value: Value, what: str) -> bool:
    """Return a Boolean."""
    if value is True or value is False:
        return value
    raise wrong_type(value, "a Boolean", what)


def expect_function(value: Value, what: str) -> Value:
    """Return what can be called: a function, a builtin, or a set with `__functor`."""
    if value is None or not callable(value) or (value.__class__ is Attrs and "__functor" not in value):
        raise wrong_type(value, "a function", what)
    return value


def text_in(lazy: Lazy, what: str) -> str:
    """Return the string that an element of a list or set is."""
    return expect_text(force(lazy), what)
