"""Operators and the other helpers that emitted code calls, except those that need strings or I/O.

Operands are values, already forced; parts of lists and sets may be thunks.
"""

from __future__ import annotations

from typing import Any

from tvix.eval.errors import AssertionFailed, NixTypeError, UndefinedVariable
from tvix.eval.values import (
    MAX_INT,
    MIN_INT,
    MISSING,
    Attrs,
    Lazy,
    Path,
    Value,
    check_int,
    force,
    positions_of,
    show_type,
    suggestions,
)

_NUMBERS = (int, float)


def _is_number(value: Value) -> bool:
    kind = value.__class__
    return kind is int or kind is float


def _wrong_operand(operation: str, left: Value, right: Value) -> NixTypeError:
    return NixTypeError(f"cannot {operation} {show_type(left)} and {show_type(right)}")


def _numbers(operation: str, left: Value, right: Value) -> None:
    for operand in (left, right):
        if not _is_number(operand):
            raise NixTypeError(f"value is {show_type(operand)} while a number was expected, in {operation}")


def subtract(left: Value, right: Value) -> Value:
    """`left - right`."""
    if left.__class__ is int and right.__class__ is int:
        difference = left - right
        if MIN_INT <= difference <= MAX_INT:
            return difference
        return check_int(difference, f"subtracting {left} - {right}")
    _numbers("subtraction", left, right)
    return float(left) - float(right)


def multiply(left: Value, right: Value) -> Value:
    """`left * right`."""
    if left.__class__ is int and right.__class__ is int:
        product = left * right
        if MIN_INT <= product <= MAX_INT:
            return product
        return check_int(product, f"multiplying {left} * {right}")
    _numbers("multiplication", left, right)
    return float(left) * float(right)


def divide(left: Value, right: Value) -> Value:
    """`left / right`; integers are divided towards zero."""
    if left.__class__ is int and right.__class__ is int and left >= 0 and right > 0:
        return left // right
    _numbers("division", left, right)
    if not right:
        raise NixTypeError("division by zero")
    if left.__class__ is int and right.__class__ is int:
        quotient = abs(left) // abs(right)
        return check_int(quotient if (left < 0) == (right < 0) else -quotient, f"dividing {left} / {right}")
    return float(left) / float(right)


def add_numbers(left: Value, right: Value) -> Value:
    """`left + right` of numbers."""
    if left.__class__ is int and right.__class__ is int:
        total = left + right
        if MIN_INT <= total <= MAX_INT:
            return total
        return check_int(total, f"adding {left} + {right}")
    _numbers("addition", left, right)
    return float(left) + float(right)


def _bytes_of(text: str) -> bytes | str:
    return text if text.isascii() else text.encode("utf-8", "surrogateescape")


def _text_less(left: str, right: str) -> bool:
    if left.isascii() or right.isascii():
        return str.__lt__(left, right)
    return left.encode("utf-8", "surrogateescape") < right.encode("utf-8", "surrogateescape")


def less_than(left: Value, right: Value) -> bool:
    """`left < right`: numbers, strings, paths, and lists of such."""
    if left.__class__ is int and right.__class__ is int:
        return left < right
    while True:
        kind = left.__class__
        if (kind is int or kind is float) and _is_number(right):
            return bool(left < right)
        if isinstance(left, str) and isinstance(right, str):
            return _text_less(left, right)
        if kind is Path and right.__class__ is Path:
            return _text_less(left.text, right.text)
        if kind is not list or right.__class__ is not list:
            raise _wrong_operand("compare", left, right)
        for index in range(len(left)):
            if index >= len(right):
                return False
            one, other = force(left[index]), force(right[index])
            if not equal(one, other):
                left, right = one, other
                break
        else:
            return len(left) < len(right)


def sorted_names(attrs: Attrs) -> list[str]:
    """Return the names of a set in byte order: how Nix shows and iterates sets."""
    names = sorted(attrs)
    if names and not "".join(names).isascii():
        names.sort(key=_encoded)
    return names


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _is_derivation(value: Attrs) -> bool:
    kind = value.get("type", MISSING)
    return kind is not MISSING and force(kind) == "derivation"


def equal(left: Value, right: Value) -> bool:
    """`left == right`. Functions are never equal; derivations are if their `outPath`s are."""
    kind, other = left.__class__, right.__class__
    if kind is int or kind is float:
        return (other is int or other is float) and bool(left == right)
    if isinstance(left, str):
        return isinstance(right, str) and str.__eq__(left, right)
    if kind is bool or left is None:
        return left is right
    if kind is not other:
        return False
    if kind is Path:
        return bool(left.text == right.text)
    if kind is list:
        return _lists_equal(left, right)
    if kind is Attrs:
        return _sets_equal(left, right)
    return False


def equal_within(left: Lazy, right: Lazy) -> bool:
    """Equality of elements of lists and sets: the very same value equals itself, even a function."""
    if left is right:
        return True
    one, other = force(left), force(right)
    return one is other or equal(one, other)


def _lists_equal(left: list[Lazy], right: list[Lazy]) -> bool:
    if len(left) != len(right):
        return False
    for index in range(len(left)):  # noqa: SIM110 - a generator would take C stack
        if not equal_within(left[index], right[index]):
            return False
    return True


def _sets_equal(left: Attrs, right: Attrs) -> bool:
    if left is right:
        return True
    if _is_derivation(left) and _is_derivation(right) and "outPath" in left and "outPath" in right:
        return equal(force(left["outPath"]), force(right["outPath"]))
    if left.keys() != right.keys():
        return False
    for name in sorted(left):  # noqa: SIM110 - as above
        if not equal_within(left[name], right[name]):
            return False
    return True


def update(*sets: Value) -> Value:
    """`a // b // …`: attributes of later sets win. Positions follow their attributes."""
    for value in sets:
        if value.__class__ is not Attrs:
            raise NixTypeError(f"value is {show_type(value)} while a set was expected")
    first, *others = sets
    for other in others:
        if not other:
            continue
        if not first:
            first = other
            continue
        joined = Attrs(first)
        joined.update(other)
        joined.positions = (positions_of(first), positions_of(other))
        first = joined
    return first


def concatenate(*lists: Value) -> Value:
    """`a ++ b ++ …`."""
    for value in lists:
        if value.__class__ is not list:
            raise NixTypeError(f"value is {show_type(value)} while a list was expected")
    return [item for items in lists for item in items]


def select_or_missing(value: Value, *names: str) -> Lazy:
    """Return `value.a.b…`, MISSING if any step is not there or not in a set."""
    for name in names:
        value = force(value)
        if value.__class__ is not Attrs:
            return MISSING
        value = value.get(name, MISSING)
        if value is MISSING:
            return MISSING
    return value


def has_name(value: Value, name: str) -> bool:
    """`value ? a`."""
    return value.__class__ is Attrs and name in value


def get_or_missing(value: Value, name: str) -> Lazy:
    """Return `value.a`, MISSING if it is not there or `value` is no set."""
    return value.get(name, MISSING) if value.__class__ is Attrs else MISSING


def update_one(left: Value, right: Value) -> Value:
    """`a // b`."""
    if left.__class__ is not Attrs or right.__class__ is not Attrs or not left or not right:
        return update(left, right)
    joined = Attrs(left)
    joined.update(right)
    joined.positions = (positions_of(left), positions_of(right))
    return joined


def has_path(value: Value, *names: str) -> bool:
    """`value ? a.b…`."""
    return select_or_missing(value, *names) is not MISSING


def not_a_boolean(value: Value) -> Any:
    """Fail where a condition is no Boolean."""
    raise NixTypeError(f"value is {show_type(value)} while a Boolean was expected")


def assertion_failed(text: str) -> Any:
    """Fail an `assert`."""
    raise AssertionFailed(f"assertion '{text}' failed")


def look_up_with(name: str, *sets: Lazy) -> Value:
    """Return a name's value from the sets of the enclosing `with`s, innermost first."""
    for lazy in sets:
        subject = force(lazy)
        if subject.__class__ is not Attrs:
            raise NixTypeError(f"value is {show_type(subject)} while a set was expected, in a `with`")
        found = subject.get(name, MISSING)
        if found is not MISSING:
            return force(found)
    raise UndefinedVariable(f"undefined variable '{name}'")


class Formals:
    """The parameters of a set pattern."""

    __slots__ = ("defaults", "ellipsis", "flat_places", "name", "names", "required")

    def __init__(self, flat: tuple[Any, ...], ellipsis: bool, places: tuple[Any, ...], name: str | None = None) -> None:
        self.defaults: dict[str, bool] = dict(zip(flat[::2], flat[1::2], strict=True))
        """Each name, and whether it has a default: what builtins.functionArgs returns."""
        self.names = self.defaults.keys()
        self.required = frozenset(name for name, has_default in self.defaults.items() if not has_default)
        self.ellipsis = ellipsis
        self.flat_places = places
        self.name = name
        """What the whole set is called (`@name`), if anything."""


def match_formals(argument: Lazy, formals: Formals) -> Attrs:
    """Return the set that a pattern is matched with; NixTypeError names what is missing or too much."""
    value = force(argument)
    if value.__class__ is not Attrs:
        raise NixTypeError(f"value is {show_type(value)} while a set was expected")
    names = value.keys()
    if not names >= formals.required:
        missing = min(formals.required - names)
        raise NixTypeError(f"function called without required argument '{missing}'")
    if not formals.ellipsis and len(value) > len(formals.names & names):
        unexpected = min(names - formals.names)
        raise NixTypeError(
            f"function called with unexpected argument '{unexpected}'{suggestions(unexpected, formals.names)}"
        )
    return value


def apply_overrides(attrs: Attrs) -> Attrs:
    """`rec { __overrides = …; }`: return the set with what `__overrides` replaces."""
    overrides = force(attrs["__overrides"])
    if overrides.__class__ is not Attrs:
        raise NixTypeError(f"value is {show_type(overrides)} while a set was expected, in __overrides")
    return update(attrs, overrides)  # type: ignore[no-any-return]
