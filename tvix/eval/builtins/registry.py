"""Tables of builtins, and what is made of them: curried functions, names for emitted code, the `builtins` set."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from tvix.eval.values import Attrs, Lazy, Thunk, Value, force

if TYPE_CHECKING:
    from tvix.eval.evaluator import Evaluator

Function = TypeVar("Function", bound=Callable[..., Value])

PLAIN_GLOBALS = frozenset(
    [
        "abort",
        "baseNameOf",
        "break",
        "builtins",
        "derivation",
        "derivationStrict",
        "dirOf",
        "false",
        "fetchGit",
        "fetchMercurial",
        "fetchTarball",
        "fetchTree",
        "fromTOML",
        "import",
        "isNull",
        "map",
        "null",
        "placeholder",
        "removeAttrs",
        "scopedImport",
        "throw",
        "toString",
        "true",
    ]
)
"""Builtins usable under their own names; all others only as `builtins.x` and `__x`."""


class Primop(NamedTuple):
    """A builtin function."""

    name: str
    strictness: str
    """A letter per parameter: `s`, given as a value; `l`, given as a value or a thunk."""
    function: Callable[..., Value]


class Table:
    """Builtins of one subject."""

    def __init__(self) -> None:
        self.primops: dict[str, Primop] = {}
        self.constants: dict[str, Lazy] = {}

    def add(self, name: str, strictness: str, function: Callable[..., Value]) -> None:
        """Add a builtin function."""
        self.primops[name] = Primop(name, strictness, function)

    def primop(self, name: str, strictness: str) -> Callable[[Function], Function]:
        """Return a decorator that adds a builtin function."""

        def decorate(function: Function) -> Function:
            self.add(name, strictness, function)
            return function

        return decorate

    def constant(self, name: str, value: Lazy) -> None:
        """Add a builtin that is no function; a Thunk is computed when used."""
        self.constants[name] = value

    def update(self, table: Table) -> None:
        """Add all of a table."""
        self.primops.update(table.primops)
        self.constants.update(table.constants)


class Registry(Table):
    """All builtins of one evaluator."""

    def __init__(self, evaluator: Evaluator) -> None:
        super().__init__()
        self.evaluator = evaluator
        self.builtins = Attrs()
        """The set that programs see."""
        self.saturated: dict[str, str] = {}
        """Each function's name, also as a global, and its strictness: for compile_tree."""
        self.namespace: dict[str, Any] = {}
        """`B_<name>` and `D_<name>` for emitted code."""
        self.globals: frozenset[str] = frozenset()
        self.fingerprint = ""
        """Tells apart what compile_tree is given: emitted code depends on it."""

    def finish(self) -> None:
        """Make the set, the namespace and the names, once everything is registered."""
        self.constants.setdefault("builtins", self.builtins)
        known = {"__findFile", "__nixPath", "__sub", "__mul", "__div", "__lessThan"}
        for name, primop in self.primops.items():
            curried = curry(primop)
            self.builtins[name] = curried
            known.add(self._name_everywhere(name, curried))
            for alias in (name, f"__{name}"):
                self.saturated[alias] = primop.strictness
                self.namespace[f"D_{alias}"] = primop.function
        for name, value in self.constants.items():
            self.builtins[name] = value
            known.add(self._name_everywhere(name, value))
        self.globals = frozenset(known)
        self.fingerprint = f"{sorted(self.saturated.items())}{sorted(known)}"

    def _name_everywhere(self, name: str, value: Lazy) -> str:
        """Name a builtin for emitted code; return what it is called as a global."""
        self.namespace[f"B_{name}"] = self.namespace[f"B___{name}"] = value
        return name if name in PLAIN_GLOBALS else f"__{name}"


def _curry_1(function: Callable[..., Value], strictness: str) -> Callable[[Lazy], Value]:
    if strictness == "l":

        def lazy(argument: Lazy) -> Value:
            return function(argument)

        return lazy

    def strict(argument: Lazy) -> Value:
        return function(force(argument) if argument.__class__ is Thunk else argument)

    return strict


def _curry_2(function: Callable[..., Value], strictness: str) -> Callable[[Lazy], Value]:
    first_strict, second_strict = (letter == "s" for letter in strictness)
    if strictness == "ss":

        def first_of_2(first: Lazy) -> Value:
            def second_of_2(second: Lazy) -> Value:
                return function(
                    force(first) if first.__class__ is Thunk else first,
                    force(second) if second.__class__ is Thunk else second,
                )

            return second_of_2

        return first_of_2

    def first_of_2(first: Lazy) -> Value:  # type: ignore[no-redef]
        def second_of_2(second: Lazy) -> Value:
            return function(force(first) if first_strict else first, force(second) if second_strict else second)

        return second_of_2

    return first_of_2


def _curry_3(function: Callable[..., Value], strictness: str) -> Callable[[Lazy], Value]:
    one_strict, two_strict, three_strict = (letter == "s" for letter in strictness)

    def first_of_3(first: Lazy) -> Value:
        def second_of_3(second: Lazy) -> Value:
            def third_of_3(third: Lazy) -> Value:
                return function(
                    force(first) if one_strict else first,
                    force(second) if two_strict else second,
                    force(third) if three_strict else third,
                )

            return third_of_3

        return second_of_3

    return first_of_3


_CURRY = {1: _curry_1, 2: _curry_2, 3: _curry_3}
_WHOLE = frozenset(["lazy", "strict", "first_of_2", "first_of_3"])
_PARTIAL = frozenset(["second_of_2", "second_of_3", "third_of_3"])


def curry(primop: Primop) -> Callable[[Lazy], Value]:
    """Return the builtin as the Nix value: a function of one argument."""
    return _CURRY[len(primop.strictness)](primop.function, primop.strictness)


def primop_kind(function: Callable[..., Value]) -> str:
    """Return `primop` for a builtin, `partial` for one that has some of its arguments, else `lambda`."""
    if getattr(function, "__module__", None) == __name__:
        name = function.__name__
        if name in _WHOLE:
            return "primop"
        if name in _PARTIAL:
            return "partial"
    return "lambda"
