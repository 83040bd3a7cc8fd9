"""Values of the Nix language as Python objects, and forcing them.

    null   None             list      list of values or thunks
    bool   bool             set       Attrs (a dict) of values or thunks
    int    int, 64 bits     function  a Python function of one value or thunk
    float  float            string    str, or ContextString when it has a context
    path   Path             later     Thunk

Functions are called as Python functions: builtins are curried Python functions too, and a set with
`__functor` is callable. What recurses (`force`, calls) is plain Python calling plain Python, which takes
no C stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from tvix.eval.errors import InfiniteRecursion, MissingAttribute, NixTypeError, Position

Value = Any
"""A value in weak head normal form: anything but a Thunk."""
Lazy = Any
"""A value or a Thunk."""

MAX_INT = 2**63 - 1
MIN_INT = -(2**63)


def _blackhole() -> Value:
    raise InfiniteRecursion("infinite recursion encountered")


class Thunk:
    """A value that is computed when first needed. `compute` is None once `value` holds."""

    __slots__ = ("compute", "value")

    def __init__(self, compute: Callable[[], Value]) -> None:
        self.compute: Callable[[], Value] | None = compute
        self.value: Value = None

    def __repr__(self) -> str:
        return "<Thunk>" if self.compute is not None else f"<Thunk of {self.value!r}>"


def force(lazy: Lazy) -> Value:
    """Return the value behind a thunk, computing it once; other values are returned as they are."""
    if lazy.__class__ is not Thunk:
        return lazy
    compute = lazy.compute
    if compute is None:
        return lazy.value
    lazy.compute = _blackhole
    try:
        value = compute()
    except BaseException:
        lazy.compute = compute  # a later attempt fails the same way, not by recursion
        raise
    lazy.value = value
    lazy.compute = None
    return value


@dataclass(frozen=True, slots=True)
class Path:
    """A path value: absolute, without `.`, `..` or a trailing slash."""

    text: str


@dataclass(frozen=True, slots=True)
class Opaque:
    """Context: a store path."""

    path: str


@dataclass(frozen=True, slots=True)
class Built:
    """Context: an output of a derivation."""

    derivation: str
    output: str


@dataclass(frozen=True, slots=True)
class DeepDerivation:
    """Context: a derivation with its whole closure, outputs included."""

    derivation: str


ContextElement = Opaque | Built | DeepDerivation
Context = frozenset[ContextElement]
NO_CONTEXT: Context = frozenset()


class ContextString(str):
    """A string that knows which store paths it came from. Operations of `str` lose the context: only the
    functions of tvix.eval.strings keep it.
    """

    __slots__ = ("context",)
    context: Context


def with_context(text: str, context: Context) -> str:
    """Return the string with a context; a plain `str` when that is empty."""
    if not context:
        return str(text)
    string = ContextString(text)
    string.context = context
    return string


def context_of(string: str) -> Context:
    """Return a string's context."""
    return string.context if string.__class__ is ContextString else NO_CONTEXT


Positions = Any
"""Where attributes were written: None, a PositionTable, or a pair of them of which the second wins."""


class PositionTable:
    """Places of the attributes of one set literal; `flat` is name, line, column, name, …"""

    __slots__ = ("_places", "file", "flat")

    def __init__(self, file: str, flat: tuple[Any, ...]) -> None:
        self.file = file
        self.flat = flat
        self._places: dict[str, tuple[int, int]] | None = None

    def get(self, name: str) -> Position | None:
        """Return where an attribute was written."""
        if self._places is None:
            flat = self.flat
            self._places = {flat[i]: (flat[i + 1], flat[i + 2]) for i in range(0, len(flat), 3)}
        place = self._places.get(name)
        return Position(self.file, *place) if place is not None else None


def find_position(positions: Positions, name: str) -> Position | None:
    """Return where an attribute was written, looking through what `//` joined."""
    while positions.__class__ is tuple:
        found = find_position(positions[1], name)
        if found is not None:
            return found
        positions = positions[0]
    return positions.get(name) if positions is not None else None


class Attrs(dict[str, Lazy]):
    """A set. Order of insertion means nothing: whoever shows attributes sorts them."""

    __slots__ = ("positions",)
    positions: Positions
    """Unset on sets that were not written down; see `positions_of`."""

    def __missing__(self, name: str) -> Lazy:
        raise MissingAttribute(f"attribute '{name}' missing{suggestions(name, self)}")

    def __call__(self, argument: Lazy) -> Value:
        functor = self.get("__functor", MISSING)
        if functor is MISSING:
            raise NixTypeError("attempt to call something which is not a function but a set")
        return force(functor)(self)(argument)

    __hash__ = object.__hash__  # type: ignore[assignment]


def new_set(items: dict[str, Lazy], positions: Positions) -> Attrs:
    """Return a set that knows where its attributes were written."""
    attrs = Attrs(items)
    attrs.positions = positions
    return attrs


def positions_of(attrs: Attrs) -> Positions:
    """Return where a set's attributes were written, None if that is not known."""
    return getattr(attrs, "positions", None)


class _Missing:
    def __repr__(self) -> str:
        return "<missing>"


MISSING = _Missing()
"""Stands for "no such attribute" where None is a value."""


def suggestions(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean …?" for names that are near, else nothing."""
    near = get_close_matches(name, list(known), n=3, cutoff=0.7)
    if not near:
        return ""
    shown = " or ".join(f"'{candidate}'" for candidate in sorted(near))
    return f"; did you mean {shown}?"


def type_name(value: Value) -> str:
    """Return the type as builtins.typeOf names it."""
    if value is None:
        return "null"
    kind = value.__class__
    return _TYPE_NAMES.get(kind, "lambda")


_TYPE_NAMES: dict[type, str] = {
    bool: "bool",
    int: "int",
    float: "float",
    str: "string",
    ContextString: "string",
    Path: "path",
    list: "list",
    Attrs: "set",
}

_SHOWN = {
    "null": "null",
    "bool": "a Boolean",
    "int": "an integer",
    "float": "a float",
    "string": "a string",
    "path": "a path",
    "list": "a list",
    "set": "a set",
    "lambda": "a function",
}


def show_type(value: Value) -> str:
    """Return the type as error messages name it, with its article."""
    return _SHOWN[type_name(value)]


def check_int(value: int, operation: str) -> int:
    """Return an integer that fits 64 bits; NixTypeError names the operation that overflowed."""
    if MIN_INT <= value <= MAX_INT:
        return value
    raise NixTypeError(f"integer overflow in {operation}")
