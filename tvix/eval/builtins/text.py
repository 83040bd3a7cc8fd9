"""Builtins on strings. Lengths and offsets count bytes, as everywhere in Nix."""

from __future__ import annotations

from tvix.eval import regexes
from tvix.eval.builtins.expect import expect_int, expect_list, expect_text, text_in
from tvix.eval.builtins.registry import Registry, Table
from tvix.eval.errors import EvalError
from tvix.eval.values import NO_CONTEXT, Context, ContextString, Lazy, Path, Value, context_of, force, with_context

TABLE = Table()


def register(registry: Registry) -> None:
    """Add this module's builtins."""
    registry.update(TABLE)
    strings = registry.evaluator.strings

    @registry.primop("toString", "s")
    def to_string(value: Value) -> str:
        return value if value.__class__ is str else strings.coerce(value, more=True, copy=False)

    @registry.primop("stringLength", "s")
    def string_length(value: Value) -> int:
        text = value if isinstance(value, str) else strings.coerce(value)
        return len(text) if text.isascii() else len(_encoded(text))

    @registry.primop("substring", "sss")
    def substring(start: Value, length: Value, value: Value) -> str:
        if expect_int(start, "builtins.substring") < 0:
            raise EvalError(f"negative start position {start} in builtins.substring")
        expect_int(length, "builtins.substring")
        text = value if isinstance(value, str) else strings.coerce(value)
        end = None if length < 0 else start + length
        part = str(text)[start:end]
        if not text.isascii():
            part = _encoded(text)[start:end].decode("utf-8", "surrogateescape")
        return with_context(part, text.context) if text.__class__ is ContextString else part

    @registry.primop("concatStringsSep", "ss")
    def concat_strings_sep(separator: Value, items: Value) -> str:
        expect_text(separator, "builtins.concatStringsSep")
        parts: list[str] = []
        contexts: set[Context] = set()
        for item in expect_list(items, "builtins.concatStringsSep"):
            part = force(item)
            if part.__class__ is not str:
                part = strings.coerce(part)
                contexts.add(context_of(part))
            parts.append(part)
        if separator.__class__ is ContextString:
            contexts.add(separator.context)
        return with_context(separator.join(parts), NO_CONTEXT.union(*contexts))

    @registry.primop("baseNameOf", "s")
    def base_name_of(value: Value) -> str:
        text = strings.coerce(value, copy=False)
        trimmed = str(text)[:-1] if text.endswith("/") else str(text)
        return with_context(trimmed.rpartition("/")[2], context_of(text))

    @registry.primop("dirOf", "s")
    def dir_of(value: Value) -> Value:
        if value.__class__ is Path:
            return Path(value.text.rpartition("/")[0] or "/")
        text = strings.coerce(value, copy=False)
        head, slash, _ = str(text).rpartition("/")
        directory = (head or "/") if slash else "."
        return with_context(directory, context_of(text))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


@TABLE.primop("replaceStrings", "sss")
def replace_strings(old: Value, new: Value, text: Value) -> str:
    patterns = [str(text_in(item, "builtins.replaceStrings")) for item in expect_list(old, "builtins.replaceStrings")]
    replacements = expect_list(new, "builtins.replaceStrings")
    if len(patterns) != len(replacements):
        raise EvalError("'from' and 'to' arguments passed to builtins.replaceStrings have different lengths")
    expect_text(text, "builtins.replaceStrings")
    return _Replacing(patterns, replacements).replace(text)


class _Replacing:
    """At each place the first pattern that matches is replaced; replacements are forced when used."""

    def __init__(self, patterns: list[str], replacements: list[Lazy]) -> None:
        self.patterns = patterns
        self.replacements = replacements
        self.contexts: set[Context] = set()

    def replacement(self, index: int) -> str:
        text = text_in(self.replacements[index], "builtins.replaceStrings")
        if text.__class__ is ContextString:
            self.contexts.add(text.context)
        return text

    def replace(self, text: str) -> str:
        self.contexts.add(context_of(text))
        made = self.with_empty(text) if "" in self.patterns else self.by_regex(text)
        return with_context(made, NO_CONTEXT.union(*self.contexts))

    def by_regex(self, text: str) -> str:
        index_of: dict[str, int] = {}
        for index, pattern in enumerate(self.patterns):
            index_of.setdefault(pattern, index)
        if not any(pattern in text for pattern in index_of):
            return str(text)
        if len(index_of) == 1:
            return text.replace(self.patterns[0], self.replacement(0))
        parts: list[str] = []
        end = 0
        for match in regexes.any_of(tuple(index_of)).finditer(text):
            parts += (text[end : match.start()], self.replacement(index_of[match[0]]))
            end = match.end()
        parts.append(text[end:])
        return "".join(parts)

    def with_empty(self, text: str) -> str:
        """An empty pattern matches before each character, and at the end."""
        parts: list[str] = []
        at = 0
        while at <= len(text):
            for index, pattern in enumerate(self.patterns):
                if text.startswith(pattern, at):
                    parts.append(self.replacement(index))
                    if not pattern:
                        parts.append(text[at : at + 1])
                        at += 1
                    at += len(pattern)
                    break
            else:
                parts.append(text[at : at + 1])
                at += 1
        return "".join(parts)


@TABLE.primop("match", "ss")
def match(pattern: Value, text: Value) -> Value:
    groups = regexes.match(str(expect_text(pattern, "builtins.match")), str(expect_text(text, "builtins.match")))
    return None if groups is None else list(groups)


@TABLE.primop("split", "ss")
def split(pattern: Value, text: Value) -> Value:
    expect_text(pattern, "builtins.split")
    return [
        list(part) if isinstance(part, tuple) else part
        for part in regexes.split(str(pattern), str(expect_text(text, "builtins.split")))
    ]
