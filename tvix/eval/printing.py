"""Values as text: Nix's own notation, JSON and XML, byte for byte as Nix 2.8 writes them."""

from __future__ import annotations

import re
from collections.abc import Callable
from json.encoder import encode_basestring
from typing import TYPE_CHECKING

from tvix.eval.builtins.registry import primop_kind
from tvix.eval.errors import NixTypeError
from tvix.eval.operators import sorted_names
from tvix.eval.runtime import formals_of
from tvix.eval.values import (
    MISSING,
    Attrs,
    ContextElement,
    ContextString,
    Lazy,
    Path,
    Thunk,
    Value,
    find_position,
    force,
    positions_of,
    show_type,
)

if TYPE_CHECKING:
    from tvix.eval.strings import Strings

_IDENTIFIER = re.compile(r"[a-zA-Z_][a-zA-Z0-9_'\-]*").fullmatch
_KEYWORDS = frozenset(["if", "then", "else", "assert", "with", "let", "in", "rec", "inherit"])
_STRING_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "${": "\\${"}
_TO_ESCAPE = re.compile(r'["\\\n\r\t]|\$\{')
_KIND = {"primop": "<PRIMOP>", "partial": "<PRIMOP-APP>", "lambda": "<LAMBDA>"}


def quote(text: str) -> str:
    """Return a string as Nix source writes it."""
    return '"' + _TO_ESCAPE.sub(lambda match: _STRING_ESCAPES[match[0]], text) + '"'


def show_name(name: str) -> str:
    """Return an attribute's name, quoted unless it is an identifier."""
    return name if _IDENTIFIER(name) and name not in _KEYWORDS else quote(name)


def show_float(value: float) -> str:
    """Return a float as the printers of Nix 2.8 write it, with six digits."""
    return f"{value:g}"


def to_nix(value: Lazy, *, computed: bool = False) -> str:
    """Return a value in Nix's notation. Computes nothing: what is not computed yet is `<CODE>`; lists and sets
    met before are `«repeated»`. `computed` says that all within was forced before.
    """
    return _NixPrinter(computed).show(value, outermost=True)


class _NixPrinter:
    def __init__(self, computed: bool) -> None:
        self.computed = computed
        self.seen: set[int] = set()

    def show(self, lazy: Lazy, *, outermost: bool = False, computed: bool = False) -> str:
        if lazy.__class__ is Thunk:
            if lazy.compute is not None:
                return "<CODE>"
            lazy, computed = lazy.value, True
        if isinstance(lazy, str):
            return quote(lazy)
        kind = lazy.__class__
        if kind is list or kind is Attrs:
            if not (outermost or computed or self.computed) and _is_literal(lazy):
                return "<CODE>"
            return self.container(lazy)
        return _show_scalar(lazy)

    def container(self, value: list[Lazy] | Attrs) -> str:
        if value:
            if id(value) in self.seen:
                return "«repeated»"
            self.seen.add(id(value))
        if isinstance(value, list):
            return "[ " + "".join([f"{self.show(item)} " for item in value]) + "]"
        made_by_builtin = positions_of(value) is None
        shown = [
            f"{show_name(name)} = {self.show(value[name], computed=made_by_builtin)}; " for name in sorted_names(value)
        ]
        return "{ " + "".join(shown) + "}"


def _is_literal(value: list[Lazy] | Attrs) -> bool:
    """Whether Nix would not have computed it yet. We make literals at once, as they cost nothing."""
    if isinstance(value, list):
        return True
    return positions_of(value) is not None or not value


def _show_scalar(value: Value) -> str:
    if value is None:
        return "null"
    kind = value.__class__
    if kind is bool:
        return "true" if value else "false"
    if kind is int:
        return str(value)
    if kind is float:
        return show_float(value)
    if kind is Path:
        return str(value.text)
    return _KIND[primop_kind(value)]


# JSON.

_JSON_SHORT = {"\\b": "\\u0008", "\\f": "\\u000c"}
_JSON_ESCAPE = re.compile(r"\\.")


def json_string(text: str) -> str:
    """Return a string in JSON, with the escapes that Nix chooses."""
    encoded = encode_basestring(str(text))
    if "\\b" in encoded or "\\f" in encoded:
        encoded = _JSON_ESCAPE.sub(lambda match: _JSON_SHORT.get(match[0], match[0]), encoded)
    return encoded


class JsonPrinter:
    """Values as JSON. `context` collects the contexts of all strings; paths are copied to the store."""

    def __init__(self, strings: Strings, *, copy_paths: bool = True, strict: bool = True) -> None:
        self._strings = strings
        self._copy_paths = copy_paths
        self._strict = strict
        self.context: set[ContextElement] = set()

    def show(self, lazy: Lazy) -> str:
        """Return a value in JSON; NixTypeError for what JSON cannot say."""
        if not self._strict and lazy.__class__ is Thunk and lazy.compute is not None:
            raise NixTypeError("cannot convert a thunk to JSON")
        value = force(lazy)
        if isinstance(value, str):
            return self._string(value)
        kind = value.__class__
        if kind is Attrs:
            return self._set(value)
        if kind is list:
            return "[" + ",".join([self.show(item) for item in value]) + "]"
        if value is None:
            return "null"
        if kind is bool:
            return "true" if value else "false"
        if kind is int:
            return str(value)
        if kind is float:
            return show_float(value)
        if kind is Path:
            return self._string(self._strings.coerce(value, copy=self._copy_paths))
        raise NixTypeError(f"cannot convert {show_type(value)} to JSON")

    def _string(self, text: str) -> str:
        if text.__class__ is ContextString:
            self.context |= text.context
        return json_string(text)

    def _set(self, attrs: Attrs) -> str:
        if "__toString" in attrs:
            return self._string(self._strings.coerce(attrs, copy=False))
        out_path = attrs.get("outPath", MISSING)
        if out_path is not MISSING:
            return self.show(out_path)
        members = [f"{json_string(name)}:{self.show(attrs[name])}" for name in sorted_names(attrs)]
        return "{" + ",".join(members) + "}"


# XML.

_XML_ESCAPES = str.maketrans({'"': "&quot;", "\n": "&#xA;", "&": "&amp;", "<": "&lt;", ">": "&gt;"})
_PYTHON_NAME = re.compile(r"(.*)_[0-9]+")


class XmlPrinter:
    """Values as XML. `location` adds where attributes and functions were written."""

    def __init__(self, *, strict: bool, location: bool) -> None:
        self._strict = strict
        self._location = location
        self._lines: list[str] = []
        self._depth = 0
        self._derivations: set[str] = set()
        self.context: set[ContextElement] = set()

    def show(self, value: Lazy) -> str:
        """Return the document."""
        self._lines = ["<?xml version='1.0' encoding='utf-8'?>"]
        self._open("expr", {}, lambda: self._value(value))
        return "\n".join(self._lines) + "\n"

    def _tag(self, name: str, attributes: dict[str, str]) -> str:
        shown = "".join(f' {key}="{attributes[key].translate(_XML_ESCAPES)}"' for key in sorted(attributes))
        return f"{name}{shown}"

    def _empty(self, name: str, attributes: dict[str, str]) -> None:
        self._lines.append(f"{'  ' * self._depth}<{self._tag(name, attributes)} />")

    def _open(self, name: str, attributes: dict[str, str], content: Callable[[], None]) -> None:
        self._lines.append(f"{'  ' * self._depth}<{self._tag(name, attributes)}>")
        self._depth += 1
        content()
        self._depth -= 1
        self._lines.append(f"{'  ' * self._depth}</{name}>")

    def _value(self, lazy: Lazy) -> None:
        if lazy.__class__ is Thunk:
            if lazy.compute is not None and not self._strict:
                self._empty("unevaluated", {})
                return
            lazy = force(lazy)
        value = lazy
        if isinstance(value, str):
            if value.__class__ is ContextString:
                self.context |= value.context
            self._empty("string", {"value": value})
            return
        kind = value.__class__
        if value is None:
            self._empty("null", {})
        elif kind is Attrs:
            self._set(value)
        elif kind is list:
            self._open("list", {}, lambda: self._items(value))
        elif kind in _XML_SCALARS:
            name, show = _XML_SCALARS[kind]
            self._empty(name, {"value": show(value)})
        elif primop_kind(value) == "lambda":
            self._function(value)
        else:
            self._empty("unevaluated", {})

    def _items(self, items: list[Lazy]) -> None:
        for item in items:
            self._value(item)

    def _set(self, attrs: Attrs) -> None:
        kind = attrs.get("type", MISSING)
        if kind is MISSING or force(kind) != "derivation":
            self._open("attrs", {}, lambda: self._members(attrs))
            return
        shown: dict[str, str] = {}
        for name in ("drvPath", "outPath"):
            path = attrs.get(name, MISSING)
            if path is not MISSING and (self._strict or path.__class__ is not Thunk or path.compute is None):
                text = force(path)
                if isinstance(text, str):
                    shown[name] = text
        drv_path = shown.get("drvPath", "")
        if drv_path and drv_path not in self._derivations:
            self._derivations.add(drv_path)
            self._open("derivation", shown, lambda: self._members(attrs))
        else:
            self._open("derivation", shown, lambda: self._empty("repeated", {}))

    def _members(self, attrs: Attrs) -> None:
        positions = positions_of(attrs)
        for name in sorted_names(attrs):
            attributes = {"name": name}
            if self._location:
                position = find_position(positions, name)
                if position is not None:
                    attributes.update(line=str(position.line), column=str(position.column), path=position.file)
            self._open("attr", attributes, lambda name=name: self._value(attrs[name]))  # type: ignore[misc]

    def _function(self, function: Value) -> None:
        attributes: dict[str, str] = {}
        if self._location and "SOURCE" in function.__globals__:
            line = str(function.__code__.co_firstlineno)
            attributes = {"line": line, "path": function.__globals__["SOURCE"].name}
        self._open("function", attributes, lambda: self._parameter(function))

    def _parameter(self, function: Value) -> None:
        python_name = function.__code__.co_varnames[0]
        match = _PYTHON_NAME.fullmatch(python_name)
        name = match[1] if match else python_name
        formals = formals_of(function)
        if formals is None:
            self._empty("varpat", {"name": name})
            return
        attributes = {"ellipsis": "1"} if formals.ellipsis else {}
        if formals.name is not None:
            attributes["name"] = formals.name
        self._open("attrspat", attributes, lambda: self._formals(sorted(formals.names)))

    def _formals(self, names: list[str]) -> None:
        for name in names:
            self._empty("attr", {"name": name})


_XML_SCALARS: dict[type, tuple[str, Callable[[Value], str]]] = {
    bool: ("bool", lambda value: "true" if value else "false"),
    int: ("int", str),
    float: ("float", show_float),
    Path: ("path", lambda value: str(value.text)),
}
