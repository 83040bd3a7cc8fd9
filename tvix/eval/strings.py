"""Strings with context: coercion to strings, concatenation, paths made of parts.

Every string operation that keeps contexts is here; plain operations of `str` lose them.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from functools import lru_cache

from tvix.eval.errors import EvalError, NixTypeError
from tvix.eval.operators import add_numbers
from tvix.eval.values import (
    MISSING,
    NO_CONTEXT,
    Attrs,
    Context,
    ContextString,
    Path,
    Value,
    force,
    show_type,
    with_context,
)

CopyPath = Callable[[str], str]
"""Copies a path to the store and returns the store path as a string with context."""


def expect_string(value: Value, what: str = "") -> str:
    """Return the value if it is a string; NixTypeError says `what` needed one."""
    if not isinstance(value, str):
        raise NixTypeError(f"value is {show_type(value)} while a string was expected{what and f', {what}'}")
    return value


def without_context(value: str, what: str) -> str:
    """Return a string that must not refer to store paths."""
    if value.__class__ is ContextString:
        raise EvalError(f"the string '{value}' is not allowed to refer to a store path, {what}")
    return value


@lru_cache(maxsize=65_536)
def canonical_path(text: str) -> str:
    """Return an absolute path without `.`, `..`, double or trailing slashes."""
    normal = posixpath.normpath(text)
    return normal[1:] if normal.startswith("//") else normal


def format_float(value: float) -> str:
    """Return a float as builtins.toString writes it."""
    return f"{value:f}"


class Strings:
    """String operations of one evaluator; `copy_path` is how its paths get into the store."""

    def __init__(self, copy_path: CopyPath) -> None:
        self._copy_path = copy_path

    def coerce(self, value: Value, *, more: bool = False, copy: bool = True) -> str:
        """Return a value as a string with its context.

        Strings, paths (copied to the store if `copy`), sets with `__toString` or `outPath`; if `more` also
        null, Booleans, numbers and lists. NixTypeError for anything else.
        """
        while True:
            if isinstance(value, str):
                return value
            kind = value.__class__
            if kind is Path:
                return self._copy_path(value.text) if copy else value.text
            if kind is not Attrs:
                break
            to_string = value.get("__toString", MISSING)
            if to_string is not MISSING:
                value = force(force(to_string)(value))
                continue
            out_path = value.get("outPath", MISSING)
            if out_path is MISSING:
                break
            value = force(out_path)
        if more:
            return self._coerce_more(value, copy=copy)
        raise NixTypeError(f"cannot coerce {show_type(value)} to a string")

    def _coerce_more(self, value: Value, *, copy: bool) -> str:
        if value is None or value is False:
            return ""
        if value is True:
            return "1"
        kind = value.__class__
        if kind is int:
            return str(value)
        if kind is float:
            return format_float(value)
        if kind is list:
            return self._coerce_list(value, copy=copy)
        raise NixTypeError(f"cannot coerce {show_type(value)} to a string")

    def _coerce_list(self, items: list[Value], *, copy: bool) -> str:
        parts: list[str] = []
        last = len(items) - 1
        for index in range(len(items)):
            item = force(items[index])
            parts.append(self.coerce(item, more=True, copy=copy))
            if index < last and not (item.__class__ is list and not item):  # an empty list leaves no gap
                parts.append(" ")
        return join(parts)

    def interpolate(self, *parts: Value) -> str:
        """`"…${part}…"`."""
        plain = True
        for part in parts:
            if part.__class__ is not str:
                plain = False
                break
        if plain:
            return "".join(parts)
        return join([part if isinstance(part, str) else self.coerce(part) for part in parts])

    def add(self, first: Value, *others: Value) -> Value:
        """`first + other + …`: numbers, strings, or paths, as the left operand says."""
        for other in others:
            first = self._add(first, other)
        return first

    def add_one(self, left: Value, right: Value) -> Value:
        """`left + right`."""
        kind, other = left.__class__, right.__class__
        if kind is str and other is str:
            return left + right
        if kind is int and other is int:
            return add_numbers(left, right)
        return self._add(left, right)

    def _add(self, left: Value, right: Value) -> Value:
        kind = left.__class__
        if kind is int or kind is float:
            return add_numbers(left, right)
        if kind is str and right.__class__ is str:
            return left + right
        if kind is Path:
            return self.append_to_path(left, right)
        copy = isinstance(left, str)
        return join([self.coerce(left, copy=copy), self.coerce(right, copy=copy)])

    def append_to_path(self, path: Path, *parts: Value) -> Path:
        """`path + part`: a path again."""
        return self.path_from_parts(path.text, *parts)

    def path_from_parts(self, first: str, *parts: Value) -> Path:
        """A path literal with interpolations; `first` is absolute."""
        texts = [first]
        for part in parts:
            text = self.coerce(part, copy=False)
            if text.__class__ is ContextString:
                raise EvalError("a string that refers to a store path cannot be appended to a path")
            texts.append(text)
        return Path(canonical_path("".join(texts)))


def join(parts: list[str], separator: str = "") -> str:
    """Return the concatenation of strings, with all their contexts."""
    contexts = [part.context for part in parts if part.__class__ is ContextString]
    text = separator.join(parts)
    if not contexts:
        return text
    context: Context = contexts[0] if len(contexts) == 1 else NO_CONTEXT.union(*contexts)
    return with_context(text, context)
