"""Static scope: what each name of a source stands for. Pure.

A name is, in this order: bound lexically (by a lambda, `let` or `rec`), bound by scopedImport, a global
(builtins are lexical too, outermost), or looked up in the enclosing `with`s when evaluated. A name that
is none of these is an error before anything is evaluated, as in Nix.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count

_NOT_IDENTIFIER = re.compile(r"[^A-Za-z0-9_]")


@dataclass(frozen=True, slots=True)
class Local:
    """A Python variable of the emitted code."""

    python_name: str


@dataclass(frozen=True, slots=True)
class Scoped:
    """A name that scopedImport binds for the whole file."""

    name: str


@dataclass(frozen=True, slots=True)
class Global:
    """A builtin that may be used without `builtins.`."""

    name: str


@dataclass(frozen=True, slots=True)
class FromWith:
    """A name sought in the sets of the enclosing `with`s, held by Python variables, innermost first."""

    name: str
    python_names: tuple[str, ...]


Variable = Local | Scoped | Global | FromWith


class Scope:
    """Names visible at a place. Scopes are made as the compiler descends, and never changed after."""

    __slots__ = ("_names", "_parent", "withs")

    def __init__(self, parent: Scope | None, names: Mapping[str, Variable], withs: tuple[str, ...]) -> None:
        self._parent = parent
        self._names = names
        self.withs = withs

    def inside(self, names: Mapping[str, Variable]) -> Scope:
        """Return a scope in which `names` are bound too."""
        return Scope(self, names, self.withs)

    def inside_with(self, python_name: str) -> Scope:
        """Return a scope within a `with` whose set is held by a Python variable."""
        return Scope(self, {}, (python_name, *self.withs))

    def resolve(self, name: str) -> Variable | None:
        """Return what a name stands for, None if nothing binds it."""
        scope: Scope | None = self
        while scope is not None:
            found = scope._names.get(name)
            if found is not None:
                return found
            scope = scope._parent
        return FromWith(name, self.withs) if self.withs else None


def outermost(globals_: frozenset[str], scoped: frozenset[str]) -> Scope:
    """Return the scope of a whole file."""
    names: dict[str, Variable] = {name: Global(name) for name in globals_}
    names.update({name: Scoped(name) for name in scoped})
    return Scope(None, names, ())


class PythonNames:
    """Makes Python variables that never clash, readable in a profile: `x` becomes `x_1`."""

    def __init__(self) -> None:
        self._numbers: Iterator[int] = count(1)

    def fresh(self, name: str) -> str:
        """Return a new Python name for a Nix name."""
        return f"{_NOT_IDENTIFIER.sub('_', name)}_{next(self._numbers)}"
