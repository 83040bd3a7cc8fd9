"""Builtins on sets."""

from __future__ import annotations

from tvix.eval.builtins.expect import expect_function, expect_list, expect_set, expect_text, text_in
from tvix.eval.builtins.registry import Registry, Table
from tvix.eval.errors import EvalError, Position
from tvix.eval.operators import sorted_names
from tvix.eval.values import MISSING, Attrs, Lazy, Thunk, Value, find_position, force, positions_of

TABLE = Table()


def register(registry: Registry) -> None:
    """Add this module's builtins."""
    registry.update(TABLE)


@TABLE.primop("attrNames", "s")
def attr_names(attrs: Value) -> Value:
    return sorted_names(expect_set(attrs, "builtins.attrNames"))


@TABLE.primop("attrValues", "s")
def attr_values(attrs: Value) -> Value:
    return [attrs[name] for name in sorted_names(expect_set(attrs, "builtins.attrValues"))]


@TABLE.primop("getAttr", "ss")
def get_attr(name: Value, attrs: Value) -> Value:
    expect_text(name, "builtins.getAttr")
    return force(expect_set(attrs, "builtins.getAttr")[name])


@TABLE.primop("hasAttr", "ss")
def has_attr(name: Value, attrs: Value) -> bool:
    expect_text(name, "builtins.hasAttr")
    return name in expect_set(attrs, "builtins.hasAttr")


@TABLE.primop("removeAttrs", "ss")
def remove_attrs(attrs: Value, names: Value) -> Value:
    kept = Attrs(expect_set(attrs, "builtins.removeAttrs"))
    for name in expect_list(names, "builtins.removeAttrs"):
        kept.pop(text_in(name, "builtins.removeAttrs"), None)
    kept.positions = positions_of(attrs)
    return kept


@TABLE.primop("listToAttrs", "s")
def list_to_attrs(items: Value) -> Value:
    made = Attrs()
    for lazy in expect_list(items, "builtins.listToAttrs"):
        item = expect_set(force(lazy), "an element for builtins.listToAttrs")
        lazy_name = item.get("name", MISSING)
        if lazy_name is MISSING:
            raise EvalError("attribute 'name' missing in an element for builtins.listToAttrs")
        name = str(text_in(lazy_name, "an attribute 'name' for builtins.listToAttrs"))
        if name not in made:
            value = item.get("value", MISSING)
            if value is MISSING:
                raise EvalError("attribute 'value' missing in an element for builtins.listToAttrs")
            made[name] = value
    made.positions = _ValuePositions(items)
    return made


class _ValuePositions:
    """Attributes that listToAttrs made were written where their `value`s were."""

    __slots__ = ("items",)

    def __init__(self, items: list[Lazy]) -> None:
        self.items = items

    def get(self, name: str) -> Position | None:
        for lazy in self.items:
            item = force(lazy)
            if force(item["name"]) == name:
                return find_position(positions_of(item), "value")
        return None


@TABLE.primop("intersectAttrs", "ss")
def intersect_attrs(left: Value, right: Value) -> Value:
    expect_set(left, "builtins.intersectAttrs")
    expect_set(right, "builtins.intersectAttrs")
    if len(left) < len(right):
        common = Attrs([(name, right[name]) for name in left if name in right])
    else:
        common = Attrs([(name, value) for name, value in right.items() if name in left])
    common.positions = positions_of(right)
    return common


@TABLE.primop("catAttrs", "ss")
def cat_attrs(name: Value, items: Value) -> Value:
    expect_text(name, "builtins.catAttrs")
    values: list[Lazy] = []
    for item in expect_list(items, "builtins.catAttrs"):
        value = expect_set(force(item), "an element for builtins.catAttrs").get(name, MISSING)
        if value is not MISSING:
            values.append(value)
    return values


@TABLE.primop("mapAttrs", "ls")
def map_attrs(function: Lazy, attrs: Value) -> Value:
    return _applied_to_all(function, expect_set(attrs, "builtins.mapAttrs"))


def _applied_to_all(function: Lazy, attrs: dict[str, Lazy]) -> Attrs:
    made = Attrs()
    if function.__class__ is Thunk:
        for name, value in attrs.items():
            made[name] = Thunk(lambda name=name, value=value: force(function)(name)(value))  # type: ignore[misc]
    else:
        for name, value in attrs.items():
            made[name] = Thunk(lambda name=name, value=value: function(name)(value))  # type: ignore[misc]
    return made


@TABLE.primop("zipAttrsWith", "ss")
def zip_attrs_with(function: Lazy, sets: Value) -> Value:
    expect_function(function, "builtins.zipAttrsWith")
    collected: dict[str, list[Lazy]] = {}
    for lazy in expect_list(sets, "builtins.zipAttrsWith"):
        for name, value in expect_set(force(lazy), "an element for builtins.zipAttrsWith").items():
            if name in collected:
                collected[name].append(value)
            else:
                collected[name] = [value]
    return _applied_to_all(function, collected)


@TABLE.primop("unsafeGetAttrPos", "ss")
def unsafe_get_attr_pos(name: Value, attrs: Value) -> Value:
    expect_text(name, "builtins.unsafeGetAttrPos")
    expect_set(attrs, "builtins.unsafeGetAttrPos")
    position = find_position(positions_of(attrs), name) if name in attrs else None
    return position_set(position) if position is not None else None


def position_set(position: Position) -> Attrs:
    """Return a place as programs see it."""
    return Attrs(file=position.file, line=position.line, column=position.column)
