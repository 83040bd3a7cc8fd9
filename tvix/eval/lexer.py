"""Nix source → tokens. Pure.

Flex's rule of the longest match is kept by the order of the alternatives below: where two could match,
the one written first is never the shorter. Strings and paths with interpolations become a start token,
pieces, interpolations between `${` and `}`, and an end token.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from tvix.eval.errors import NixSyntaxError
from tvix.eval.source import Source

_PATH_CHAR = r"[a-zA-Z0-9._\-+]"
_TOKEN = re.compile(
    rf"""
      (?P<space>(?:[ \t\r\n]+|\#[^\r\n]*|/\*(?:[^*]|\*+[^*/])*\*+/)+)
    | (?P<uri>[a-zA-Z][a-zA-Z0-9+\-.]*:[a-zA-Z0-9%/?:@&=+$,\-_.!~*']+)
    | (?P<path>{_PATH_CHAR}*(?:/{_PATH_CHAR}+)+/?|{_PATH_CHAR}*/(?=\$\{{)|~(?:/{_PATH_CHAR}+)+/?|~/(?=\$\{{))
    | (?P<spath><{_PATH_CHAR}+(?:/{_PATH_CHAR}+)*>)
    | (?P<float>(?:[1-9][0-9]*\.[0-9]*|0?\.[0-9]+)(?:[Ee][+-]?[0-9]+)?)
    | (?P<int>[0-9]+)
    | (?P<id>[a-zA-Z_][a-zA-Z0-9_'\-]*)
    | (?P<indented>''(?:\ *\n)?)
    | (?P<op>\.\.\.|==|!=|<=|>=|&&|\|\||->|//|\+\+|\|>|<\||\$\{{|[{{}}()\[\];:=.,?@!<>+\-*/"])
    """,
    re.VERBOSE,
)

KEYWORDS = frozenset({"if", "then", "else", "assert", "with", "let", "in", "rec", "inherit", "or"})

_STRING_TEXT = re.compile(r'(?:[^$"\\]|\$[^{"\\]|\\.|\$\\.|\$(?="))+', re.DOTALL)
_STRING_ESCAPE = re.compile(r"\\(.)|\r\n?", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
_INDENTED_TEXT = re.compile(r"(?:[^$']|\$[^{']|'[^'$])+", re.DOTALL)
_PATH_PIECE = re.compile(rf"{_PATH_CHAR}*(?:/{_PATH_CHAR}+)+/?|{_PATH_CHAR}*/|{_PATH_CHAR}+")


class Token(NamedTuple):
    """`kind` is the operator or keyword itself, or one of: id int float uri spath eof; string_start text
    string_end; indented_start indented_text indented_escape indented_end; path_start text path_end; `${`.
    """

    kind: str
    text: str
    at: int


def _unescape(match: re.Match[str]) -> str:
    character = match[1]
    return "\n" if character is None else _ESCAPES.get(character, character)


class _Lexer:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.text = source.text
        self.tokens: list[Token] = []
        self.at = 0

    def fail(self, message: str, at: int) -> NixSyntaxError:
        return NixSyntaxError(f"syntax error, {message}", self.source.position(at))

    def add(self, kind: str, text: str, at: int) -> None:
        self.tokens.append(Token(kind, text, at))

    def run(self, *, nested: bool) -> None:
        """Lex to the end of the source, or, `nested`, to the `}` that ends an interpolation."""
        match_token, text, add = _TOKEN.match, self.text, self.tokens.append
        depth = 0
        while self.at < len(text):
            at = self.at
            match = match_token(text, at)
            if match is None:
                raise self.fail(f"unexpected invalid token {text[at]!r}", at)
            kind, value = match.lastgroup, match[0]
            self.at = match.end()
            if kind == "space":
                continue
            if kind == "id":
                add(Token(value if value in KEYWORDS else "id", value, at))
            elif kind == "op":
                if value == '"':
                    self.string(at)
                    continue
                add(Token(value, value, at))
                if value in ("{", "${"):
                    depth += 1
                elif value == "}":
                    if nested and not depth:
                        return
                    depth -= 1
            elif kind == "indented":
                self.indented(at)
            elif kind == "path":
                self.path(value, at)
            else:
                assert kind is not None
                add(Token(kind, value, at))
        if nested:
            raise self.fail("unexpected end of file, expecting '}'", len(text))

    def interpolation(self) -> None:
        """Lex `${ … }`, at whose beginning we are; the closing brace is a token too."""
        self.add("${", "${", self.at)
        self.at += 2
        self.run(nested=True)

    def string(self, start: int) -> None:
        self.add("string_start", '"', start)
        while True:
            at = self.at
            match = _STRING_TEXT.match(self.text, at)
            if match is not None:
                raw = match[0]
                plain = "\\" not in raw and "\r" not in raw
                self.add("text", raw if plain else _STRING_ESCAPE.sub(_unescape, raw), at)
                self.at = match.end()
            elif self.text.startswith("${", at):
                self.interpolation()
            elif self.text.startswith('"', at):
                self.at += 1
                self.add("string_end", '"', at)
                return
            else:
                raise self.fail("unexpected end of file, expecting '\"'", len(self.text))

    def indented(self, start: int) -> None:
        self.add("indented_start", "''", start)
        text = self.text
        while True:
            at = self.at
            match = _INDENTED_TEXT.match(text, at)
            if match is not None:
                self.at = match.end()
                self.add("indented_text", re.sub("\r\n?", "\n", match[0]) if "\r" in match[0] else match[0], at)
            elif text.startswith("''$", at):
                self.escape("$", 3)
            elif text.startswith("'''", at):
                self.escape("''", 3)
            elif text.startswith("''\\", at) and at + 3 < len(text):
                self.escape(_ESCAPES.get(text[at + 3], text[at + 3]), 4)
            elif text.startswith("${", at):
                self.interpolation()
            elif text.startswith("''", at):
                self.at += 2
                self.add("indented_end", "''", at)
                return
            elif text.startswith(("$", "'"), at):
                self.escape(text[at], 1)
            else:
                raise self.fail("unexpected end of file, expecting \"''\"", len(text))

    def escape(self, value: str, length: int) -> None:
        self.add("indented_escape", value, self.at)
        self.at += length

    def path(self, first: str, start: int) -> None:
        self.add("path_start", "", start)
        self.add("text", first, start)
        last = first
        while True:
            if self.text.startswith("${", self.at):
                self.interpolation()
                last = ""
                continue
            match = _PATH_PIECE.match(self.text, self.at) if not last else None
            if match is None:
                break
            last = match[0]
            self.add("text", last, self.at)
            self.at = match.end()
        if last.endswith("/"):
            raise NixSyntaxError(f"path '{last}' has a trailing slash", self.source.position(start))
        self.add("path_end", "", self.at)


def tokenize(source: Source) -> list[Token]:
    """Return the tokens of a source, ending with `eof`; NixSyntaxError where there is none."""
    lexer = _Lexer(source)
    lexer.run(nested=False)
    lexer.add("eof", "", len(source.text))
    return lexer.tokens
