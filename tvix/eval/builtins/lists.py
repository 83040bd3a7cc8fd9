"""Builtins on lists."""

from __future__ import annotations

from collections.abc import Callable

from tvix.eval.builtins.expect import expect_bool, expect_function, expect_int, expect_list, wrong_type
from tvix.eval.builtins.registry import Registry, Table
from tvix.eval.errors import EvalError, NixTypeError
from tvix.eval.operators import equal, equal_within
from tvix.eval.values import MISSING, Attrs, Lazy, Path, Thunk, Value, force, show_type

TABLE = Table()


def register(registry: Registry) -> None:
    """Add this module's builtins."""
    registry.update(TABLE)


@TABLE.primop("length", "s")
def length(items: Value) -> int:
    if items.__class__ is not list:
        raise wrong_type(items, "a list", "builtins.length")
    return len(items)


@TABLE.primop("elemAt", "ss")
def element_at(items: Value, index: Value) -> Value:
    if items.__class__ is not list or index.__class__ is not int:
        expect_list(items, "builtins.elemAt")
        expect_int(index, "builtins.elemAt")
    if not 0 <= index < len(items):
        raise EvalError(f"list index {index} is out of bounds: the list has {len(items)} elements")
    item = items[index]
    return force(item) if item.__class__ is Thunk else item


@TABLE.primop("head", "s")
def head(items: Value) -> Value:
    if not expect_list(items, "builtins.head"):
        raise EvalError("list index 0 is out of bounds: the list is empty, in builtins.head")
    return force(items[0])


@TABLE.primop("tail", "s")
def tail(items: Value) -> Value:
    if not expect_list(items, "builtins.tail"):
        raise EvalError("the list is empty, in builtins.tail")
    return items[1:]


@TABLE.primop("map", "ls")
def map_(function: Lazy, items: Value) -> Value:
    expect_list(items, "builtins.map")
    if function.__class__ is Thunk:
        return [Thunk(lambda item=item: force(function)(item)) for item in items]  # type: ignore[misc]
    return [Thunk(lambda item=item: function(item)) for item in items]  # type: ignore[misc]


@TABLE.primop("genList", "ls")
def generate_list(function: Lazy, count: Value) -> Value:
    if expect_int(count, "builtins.genList") < 0:
        raise EvalError(f"cannot create a list of {count} elements")
    return map_(function, list(range(count)))


@TABLE.primop("filter", "ss")
def filter_(function: Value, items: Value) -> Value:
    if not expect_list(items, "builtins.filter"):
        return items
    expect_function(function, "builtins.filter")
    kept = []
    for item in items:
        keep = function(item)
        if keep is True:
            kept.append(item)
        elif keep is not False:
            raise wrong_type(keep, "a Boolean", "the function of builtins.filter")
    return kept


@TABLE.primop("elem", "ls")
def elem(wanted: Lazy, items: Value) -> bool:
    for item in expect_list(items, "builtins.elem"):  # noqa: SIM110 - a generator would take C stack
        if equal(force(wanted), force(item)):
            return True
    return False


@TABLE.primop("all", "ss")
def all_(function: Value, items: Value) -> bool:
    expect_function(function, "builtins.all")
    for item in expect_list(items, "builtins.all"):
        if not expect_bool(function(item), "the function of builtins.all"):
            return False
    return True


@TABLE.primop("any", "ss")
def any_(function: Value, items: Value) -> bool:
    expect_function(function, "builtins.any")
    for item in expect_list(items, "builtins.any"):
        if expect_bool(function(item), "the function of builtins.any"):
            return True
    return False


@TABLE.primop("concatLists", "s")
def concat_lists(lists: Value) -> Value:
    joined: list[Lazy] = []
    for items in expect_list(lists, "builtins.concatLists"):
        joined += expect_list(force(items), "builtins.concatLists")
    return joined


@TABLE.primop("concatMap", "ss")
def concat_map(function: Value, items: Value) -> Value:
    expect_function(function, "builtins.concatMap")
    joined: list[Lazy] = []
    for item in expect_list(items, "builtins.concatMap"):
        made = function(item)
        if made.__class__ is not list:
            raise wrong_type(made, "a list", "the function of builtins.concatMap")
        joined += made
    return joined


@TABLE.primop("foldl'", "sls")
def fold_left(function: Value, initial: Lazy, items: Value) -> Value:
    expect_function(function, "builtins.foldl'")
    result = initial
    for item in expect_list(items, "builtins.foldl'"):
        result = function(result)(item)
    return force(result)


@TABLE.primop("partition", "ss")
def partition(function: Value, items: Value) -> Value:
    expect_function(function, "builtins.partition")
    right: list[Lazy] = []
    wrong: list[Lazy] = []
    for item in expect_list(items, "builtins.partition"):
        (right if expect_bool(function(item), "the function of builtins.partition") else wrong).append(item)
    return Attrs(right=right, wrong=wrong)


@TABLE.primop("groupBy", "ss")
def group_by(function: Value, items: Value) -> Value:
    expect_function(function, "builtins.groupBy")
    groups = Attrs()
    for item in expect_list(items, "builtins.groupBy"):
        name = function(item)
        if not isinstance(name, str):
            raise wrong_type(name, "a string", "the function of builtins.groupBy")
        groups.setdefault(str(name), []).append(item)
    return groups


@TABLE.primop("sort", "ss")
def sort(comparator: Value, items: Value) -> Value:
    if len(expect_list(items, "builtins.sort")) > 0:
        expect_function(comparator, "builtins.sort")

    def is_before(left: Lazy, right: Lazy) -> bool:
        before = comparator(left)(right)
        if before is True or before is False:
            return before
        raise wrong_type(before, "a Boolean", "the comparator of builtins.sort")

    return merge_sorted(is_before, items)


def merge_sorted(is_before: Callable[[Lazy, Lazy], bool], items: list[Lazy]) -> list[Lazy]:
    """Return the items sorted, equal ones in their order. Loops in Python, so that comparators may recurse
    deeply; an inconsistent comparator gives some order of the same items.
    """
    runs = _ascending_runs(is_before, items)
    while len(runs) > 1:
        runs = [
            _merge(is_before, runs[index], runs[index + 1]) if index + 1 < len(runs) else runs[index]
            for index in range(0, len(runs), 2)
        ]
    return runs[0] if runs else []


def _ascending_runs(is_before: Callable[[Lazy, Lazy], bool], items: list[Lazy]) -> list[list[Lazy]]:
    runs: list[list[Lazy]] = []
    for item in items:
        if runs and not is_before(item, runs[-1][-1]):
            runs[-1].append(item)
        else:
            runs.append([item])
    return runs


def _merge(is_before: Callable[[Lazy, Lazy], bool], left: list[Lazy], right: list[Lazy]) -> list[Lazy]:
    merged: list[Lazy] = []
    at_left = at_right = 0
    left_end, right_end = len(left), len(right)
    one, other = left[0], right[0]
    while True:
        if is_before(other, one):
            merged.append(other)
            at_right += 1
            if at_right == right_end:
                return merged + left[at_left:]
            other = right[at_right]
        else:
            merged.append(one)
            at_left += 1
            if at_left == left_end:
                return merged + right[at_right:]
            one = left[at_left]


@TABLE.primop("genericClosure", "s")
def generic_closure(argument: Value) -> Value:
    if argument.__class__ is not Attrs:
        raise wrong_type(argument, "a set", "builtins.genericClosure")
    for name in ("startSet", "operator"):
        if name not in argument:
            raise EvalError(f"attribute '{name}' required, in builtins.genericClosure")
    work = list(expect_list(force(argument["startSet"]), "startSet of builtins.genericClosure"))
    operator = expect_function(force(argument["operator"]), "operator of builtins.genericClosure") if work else None
    keys = _Keys()
    found: list[Lazy] = []
    for lazy in work:  # grows while we go
        item = force(lazy)
        if keys.add(_key_of(item)):
            found.append(item)
            assert operator is not None
            work.extend(expect_list(operator(item), "the result of operator of builtins.genericClosure"))
    return found


def _key_of(item: Value) -> Value:
    key = item.get("key", MISSING) if item.__class__ is Attrs else MISSING
    if key is MISSING:
        raise EvalError("attribute 'key' required in each element, in builtins.genericClosure")
    return force(key)


class _Keys:
    """Keys seen before: strings, numbers and paths by hash, lists one by one. All keys must be comparable."""

    def __init__(self) -> None:
        self._kind: object = None
        self._first: Value = None
        self._hashed: set[object] = set()
        self._lists: list[Value] = []

    def add(self, key: Value) -> bool:
        """Return whether a key is new, and remember it."""
        kind = str if isinstance(key, str) else float if key.__class__ is int else key.__class__
        if self._kind is None:
            self._kind, self._first = kind, key
        elif kind is not self._kind or kind not in (str, float, list, Path):
            raise NixTypeError(f"cannot compare {show_type(self._first)} with {show_type(key)}")
        if kind is not list:
            hashable = key if kind in (str, float, Path) else id(key)
            if hashable in self._hashed:
                return False
            self._hashed.add(hashable)
            return True
        for other in self._lists:
            if equal_within(key, other):
                return False
        self._lists.append(key)
        return True
