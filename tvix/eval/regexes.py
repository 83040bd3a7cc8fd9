"""POSIX extended regular expressions, as builtins.match and builtins.split know them. Pure.

Nix uses libstdc++'s engine, which tries alternatives in order and repetitions greedily, and then prefers the
longest of what it found. For a match of the whole text that is what Python's `re` finds; so it is for searches
without alternatives. Searches with alternatives need the leftmost longest match, which the `regex` package
finds.

The engine works on bytes: text beyond ASCII is matched as Latin-1 characters standing for its bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from tvix.eval.errors import EvalError

_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": " \\t",
    "cntrl": "\\x00-\\x1f\\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": "!-/:-@\\[-`{-~",
    "space": " \\t\\n\\r\\f\\v",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
    "w": "0-9A-Za-z_",
    "d": "0-9",
    "s": " \\t\\n\\r\\f\\v",
}
_ESCAPABLE = tuple(".[\\()*+?{|^$")
_INTERVAL = re.compile(r"\{([0-9]+)(,?)([0-9]*)\}")
_BRACKET_CLASS = re.compile(r"\[:([a-zA-Z]+):\]|\[\.(.)\.\]|\[=(.)=\]", re.DOTALL)

Part = str | tuple[str | None, ...]


class _Translator:
    """POSIX extended syntax → Python's."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0
        self.out: list[str] = []
        self.groups: list[int] = []
        self.atom = -1
        """Where the last atom begins in `out`; -1 when there is nothing to repeat."""
        self.repeated = False
        self.has_alternatives = False

    def fail(self) -> EvalError:
        return EvalError(f"invalid regular expression '{self.pattern}'")

    def run(self) -> str:
        while self.at < len(self.pattern):
            self.step(self.pattern[self.at])
        if self.groups:
            raise self.fail()
        return "".join(self.out)

    def step(self, character: str) -> None:
        if character == "\\":
            if self.pattern[self.at + 1 : self.at + 2] not in _ESCAPABLE:
                raise self.fail()
            self.add_atom(re.escape(self.pattern[self.at + 1]), 2)
        elif character == "[":
            self.bracket()
        elif character == "(":
            self.groups.append(len(self.out))
            self.add("(")
        elif character == ")":
            self.close_group()
        elif character in "*+?{":
            self.repeat(character)
        elif character == "|":
            self.has_alternatives = True
            self.add("|")
        elif character in "^$":
            self.add(r"\A" if character == "^" else r"\Z")
        elif character == ".":
            self.add_atom(r"[^\x00]", 1)
        else:
            self.add_atom(re.escape(character), 1)

    def add(self, text: str) -> None:
        self.out.append(text)
        self.atom, self.repeated = -1, False
        self.at += 1

    def add_atom(self, text: str, length: int) -> None:
        self.atom, self.repeated = len(self.out), False
        self.out.append(text)
        self.at += length

    def close_group(self) -> None:
        if not self.groups:
            raise self.fail()
        start = self.groups.pop()
        self.out.append(")")
        self.atom, self.repeated = start, False
        self.at += 1

    def repeat(self, character: str) -> None:
        if self.atom < 0:
            raise self.fail()
        text, length = character, 1
        if character == "{":
            match = _INTERVAL.match(self.pattern, self.at)
            if match is None or (match[3] and int(match[3]) < int(match[1])):
                raise self.fail()
            text, length = match[0], len(match[0])
        if self.repeated:  # in Python a second sign would mean something else
            self.out.insert(self.atom, "(?:")
            self.out.append(")")
        self.out.append(text)
        self.repeated = True
        self.at += length

    def bracket(self) -> None:
        start = self.at
        self.at += 1
        negated = self.pattern.startswith("^", self.at)
        self.at += negated
        parts: list[str] = []
        while not (self.pattern.startswith("]", self.at) and parts):
            parts.append(self.bracket_part())
        length = self.at + 1 - start
        self.at = start
        self.add_atom(f"[{'^' if negated else ''}{''.join(parts)}]", length)

    def bracket_part(self) -> str:
        match = _BRACKET_CLASS.match(self.pattern, self.at)
        if match is not None and match[1] is not None:
            found = _CLASSES.get(match[1].lower())
            if found is None:
                raise self.fail()
            self.at = match.end()
            return found
        low = self.bracket_character()
        following = self.pattern[self.at : self.at + 2]
        if not following.startswith("-") or following in ("-", "-]"):
            return re.escape(low)
        self.at += 1
        high = self.bracket_character()
        following = self.pattern[self.at : self.at + 2]
        if high < low or (following.startswith("-") and following != "-]"):
            raise self.fail()
        return f"{re.escape(low)}-{re.escape(high)}"

    def bracket_character(self) -> str:
        match = _BRACKET_CLASS.match(self.pattern, self.at)
        if match is not None and match[1] is None:
            self.at = match.end()
            return match[2] or match[3] or ""
        if self.at >= len(self.pattern):
            raise self.fail()
        self.at += 1
        return self.pattern[self.at - 1]


def _latin(text: str) -> str:
    """Text as the characters that stand for its bytes."""
    return text.encode("utf-8", "surrogateescape").decode("latin-1")


def _unlatin(text: str) -> str:
    return text.encode("latin-1").decode("utf-8", "surrogateescape")


@lru_cache(maxsize=4096)
def _compiled(pattern: str, *, searching: bool) -> Any:
    translator = _Translator(pattern)
    translated = translator.run()
    try:
        if searching and translator.has_alternatives:
            import regex

            return regex.compile(translated, regex.POSIX | regex.VERSION0)
        return re.compile(translated)
    except (re.error, OverflowError) as error:
        raise translator.fail() from error


@lru_cache(maxsize=1024)
def any_of(texts: tuple[str, ...]) -> re.Pattern[str]:
    """Return a pattern that matches the first of `texts` that fits at a place."""
    return re.compile("|".join(map(re.escape, texts)))


def match(pattern: str, text: str) -> tuple[str | None, ...] | None:
    """Return the groups of a match of the whole text, None if it does not match."""
    if pattern.isascii() and text.isascii():
        found = _compiled(pattern, searching=False).fullmatch(text)
        return None if found is None else found.groups()
    found = _compiled(_latin(pattern), searching=False).fullmatch(_latin(text))
    return None if found is None else tuple(_unlatin(g) if g is not None else None for g in found.groups())


def split(pattern: str, text: str) -> Iterator[Part]:
    """Yield text between matches and, for each match, the tuple of its groups, in turn."""
    ascii_only = pattern.isascii() and text.isascii()
    compiled = _compiled(pattern if ascii_only else _latin(pattern), searching=True)
    subject = text if ascii_only else _latin(text)
    restore = str if ascii_only else _unlatin
    end = 0
    for found in compiled.finditer(subject):
        yield restore(subject[end : found.start()])
        yield tuple(restore(group) if group is not None else None for group in found.groups())
        end = found.end()
    yield restore(subject[end:])
