"""Tokens → syntax tree: recursive descent, with precedence climbing for operators. Pure.

Precedence, loosest first: `<|` (right), `|>` (left), `->` (right), `||`, `&&`, `== !=` (none),
`< <= > >=` (none), `//` (right), `!`, `+ -`, `* /`, `++` (right), `?` (none), unary `-`, application,
selection. Nested attribute paths are unfolded and merged into sets while bindings are read, as in Nix.
"""

from __future__ import annotations

from typing import NamedTuple

from tvix.eval.errors import NixSyntaxError
from tvix.eval.lexer import Token, tokenize
from tvix.eval.nodes import (
    Assert,
    AttrSet,
    Binary,
    Binding,
    Call,
    CurPos,
    DynamicBinding,
    Expr,
    Float,
    Formal,
    HasAttr,
    If,
    Int,
    Lambda,
    Let,
    List,
    Negate,
    Not,
    Path,
    SearchPath,
    Select,
    Str,
    Var,
    With,
)
from tvix.eval.source import Source

MAX_INT = 2**63 - 1
_NO_INDENT = 1_000_000


class _Operator(NamedTuple):
    level: int
    associates: str
    """`left`, `right`, or `none`."""


_OPERATORS = {
    "<|": _Operator(1, "right"),
    "|>": _Operator(2, "left"),
    "->": _Operator(3, "right"),
    "||": _Operator(4, "left"),
    "&&": _Operator(5, "left"),
    "==": _Operator(6, "none"),
    "!=": _Operator(6, "none"),
    "<": _Operator(7, "none"),
    "<=": _Operator(7, "none"),
    ">": _Operator(7, "none"),
    ">=": _Operator(7, "none"),
    "//": _Operator(8, "right"),
    "+": _Operator(10, "left"),
    "-": _Operator(10, "left"),
    "*": _Operator(11, "left"),
    "/": _Operator(11, "left"),
    "++": _Operator(12, "right"),
    "?": _Operator(13, "none"),
}
_NOT_LEVEL = 9
_NEGATE_LEVEL = 14

_STARTS_SIMPLE = frozenset(
    ["id", "int", "float", "uri", "spath", "string_start", "indented_start", "path_start", "(", "[", "{", "let", "rec"]
)  # fmt: skip
_NAMES = {
    "id": "an identifier",
    "eof": "end of file",
    "int": "an integer",
    "float": "a float",
    "string_start": "'\"'",
    "indented_start": "\"''\"",
    "path_start": "a path",
    "uri": "a URI",
    "spath": "a search path",
}


def parse(source: Source) -> Expr:
    """Return the tree of a source; NixSyntaxError names the place and what was expected."""
    parser = _Parser(source)
    expression = parser.expression()
    parser.expect("eof")
    return expression


class _Parser:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.tokens = tokenize(source)
        self.index = 0
        self.kind = self.tokens[0].kind

    # Tokens.

    def advance(self) -> Token:
        token = self.tokens[self.index]
        if token.kind != "eof":
            self.index += 1
            self.kind = self.tokens[self.index].kind
        return token

    def peek(self, ahead: int) -> str:
        index = self.index + ahead
        return self.tokens[index].kind if index < len(self.tokens) else "eof"

    @property
    def at(self) -> int:
        return self.tokens[self.index].at

    def fail(self, message: str, at: int) -> NixSyntaxError:
        return NixSyntaxError(message, self.source.position(at))

    def unexpected(self, *expected: str) -> NixSyntaxError:
        shown = _NAMES.get(self.kind, f"'{self.kind}'")
        wanted = f", expecting {' or '.join(_NAMES.get(kind, repr(kind)) for kind in expected)}" if expected else ""
        return self.fail(f"syntax error, unexpected {shown}{wanted}", self.at)

    def expect(self, kind: str) -> Token:
        if self.kind != kind:
            raise self.unexpected(kind)
        return self.advance()

    # Functions and what binds as loosely.

    def expression(self) -> Expr:
        kind, at = self.kind, self.at
        if kind == "id":
            following = self.peek(1)
            if following == ":":
                name = self.advance().text
                self.advance()
                return Lambda(at, name, None, False, self.expression())
            if following == "@":
                name = self.advance().text
                self.advance()
                return self.pattern_lambda(at, name)
        elif kind == "{":
            if self.is_pattern():
                return self.pattern_lambda(at, None)
        elif kind == "assert":
            self.advance()
            condition = self.expression()
            self.expect(";")
            return Assert(at, condition, self.expression())
        elif kind == "with":
            self.advance()
            subject = self.expression()
            self.expect(";")
            return With(at, subject, self.expression())
        elif kind == "let" and self.peek(1) != "{":
            return self.let_in(at)
        elif kind == "if":
            self.advance()
            condition = self.expression()
            self.expect("then")
            then = self.expression()
            self.expect("else")
            return If(at, condition, then, self.expression())
        return self.operation(0)

    def let_in(self, at: int) -> Expr:
        self.advance()
        bindings = self.bindings(at, "in", recursive=True)
        if bindings.dynamic:
            raise self.fail("dynamic attributes not allowed in let", bindings.dynamic[0].at)
        self.expect("in")
        return Let(at, bindings, self.expression())

    def is_pattern(self) -> bool:
        first, second = self.peek(1), self.peek(2)
        if first == "...":
            return True
        if first == "}":
            return second in (":", "@")
        if first == "id":
            return second in (",", "?") or (second == "}" and self.peek(3) in (":", "@"))
        return False

    def pattern_lambda(self, at: int, name: str | None) -> Expr:
        self.expect("{")
        formals: list[Formal] = []
        ellipsis = False
        while self.kind != "}":
            if self.kind == "...":
                self.advance()
                ellipsis = True
                break
            formals.append(self.formal())
            if self.kind != ",":
                break
            self.advance()
        self.expect("}")
        if self.kind == "@" and name is None:
            self.advance()
            name = self.expect("id").text
        self.check_formals(formals, name)
        self.expect(":")
        return Lambda(at, name, formals, ellipsis, self.expression())

    def formal(self) -> Formal:
        if self.kind != "id":
            raise self.unexpected("id", "...", "}")
        token = self.advance()
        default = None
        if self.kind == "?":
            self.advance()
            default = self.expression()
        return Formal(token.at, token.text, default)

    def check_formals(self, formals: list[Formal], name: str | None) -> None:
        seen = {name} if name is not None else set()
        for formal in formals:
            if formal.name in seen:
                raise self.fail(f"duplicate formal function argument '{formal.name}'", formal.at)
            seen.add(formal.name)

    # Operators.

    def operation(self, lowest: int) -> Expr:
        left = self.prefix()
        while True:
            operator = _OPERATORS.get(self.kind)
            if operator is None or operator.level < lowest:
                return left
            token = self.advance()
            if token.kind == "?":
                left = HasAttr(token.at, left, self.attribute_path())
            else:
                next_lowest = operator.level + (operator.associates != "right")
                left = Binary(token.at, token.kind, left, self.operation(next_lowest))
            if operator.associates == "none":
                following = _OPERATORS.get(self.kind)
                if following is not None and following.level == operator.level:
                    raise self.unexpected()

    def prefix(self) -> Expr:
        if self.kind == "!":
            at = self.advance().at
            return Not(at, self.operation(_NOT_LEVEL + 1))
        if self.kind == "-":
            at = self.advance().at
            return Negate(at, self.operation(_NEGATE_LEVEL))
        return self.application()

    def application(self) -> Expr:
        at = self.at
        function = self.selection()
        if self.kind not in _STARTS_SIMPLE:
            return function
        arguments = []
        while self.kind in _STARTS_SIMPLE:
            arguments.append(self.selection())
        return Call(at, function, arguments)

    def selection(self) -> Expr:
        at = self.at
        subject = self.simple()
        if self.kind == ".":
            self.advance()
            path = self.attribute_path()
            default = None
            if self.kind == "or":
                self.advance()
                default = self.selection()
            return Select(at, subject, path, default)
        if self.kind == "or":  # `f or` applies f to a variable called `or`
            token = self.advance()
            return Call(at, subject, [Var(token.at, "or")])
        return subject

    def attribute_path(self) -> list[str | Expr]:
        path = [self.attribute_name()]
        while self.kind == ".":
            self.advance()
            path.append(self.attribute_name())
        return path

    def attribute_name(self) -> str | Expr:
        if self.kind in ("id", "or"):
            return self.advance().text
        if self.kind == "string_start":
            string = self.string()
            return _constant(string)
        if self.kind == "${":
            self.advance()
            expression = self.expression()
            self.expect("}")
            return _constant(expression)
        raise self.unexpected("id", "or", "${", "string_start")

    # Simple expressions.

    def simple(self) -> Expr:
        kind, at = self.kind, self.at
        if kind == "id":
            name = self.advance().text
            return CurPos(at) if name == "__curPos" else Var(at, name)
        if kind == "string_start":
            return self.string()
        if kind == "indented_start":
            return self.indented_string()
        if kind == "{":
            self.advance()
            return self.attribute_set(at, recursive=False)
        if kind == "(":
            self.advance()
            inner = self.expression()
            self.expect(")")
            return inner
        if kind == "[":
            return self.list_literal(at)
        if kind == "path_start":
            return self.path()
        if kind == "int":
            return self.integer()
        if kind == "rec":
            self.advance()
            self.expect("{")
            return self.attribute_set(at, recursive=True)
        return self.rare(kind, at)

    def rare(self, kind: str, at: int) -> Expr:
        if kind == "let":  # `let { …; body = …; }`
            self.advance()
            self.expect("{")
            return Select(at, self.attribute_set(at, recursive=True), ["body"], None)
        if kind == "spath":
            return SearchPath(at, self.advance().text[1:-1])
        if kind == "uri":
            return Str(at, [self.advance().text])
        if kind == "float":
            return Float(at, float(self.advance().text))
        raise self.unexpected()

    def integer(self) -> Int:
        token = self.advance()
        value = int(token.text) if len(token.text) < 30 else MAX_INT + 1
        if value > MAX_INT:
            raise self.fail(f"invalid integer '{token.text}'", token.at)
        return Int(token.at, value)

    def list_literal(self, at: int) -> List:
        self.advance()
        items = []
        while self.kind != "]":
            if self.kind not in _STARTS_SIMPLE:
                raise self.unexpected("]")
            items.append(self.selection())
        self.advance()
        return List(at, items)

    def parts(self, end: str) -> list[str | Expr]:
        """Read text and interpolations up to the token `end`."""
        parts: list[str | Expr] = []
        while self.kind != end:
            if self.kind == "${":
                parts.append(self.interpolation())
            else:
                parts.append(self.advance().text)
        self.advance()
        return parts

    def interpolation(self) -> Expr:
        self.advance()
        expression = self.expression()
        self.expect("}")
        return expression

    def string(self) -> Str:
        at = self.advance().at
        return Str(at, self.parts("string_end"))

    def path(self) -> Path:
        at = self.advance().at
        return Path(at, self.parts("path_end"))

    def indented_string(self) -> Str:
        at = self.advance().at
        pieces: list[tuple[str, bool] | Expr] = []
        while self.kind != "indented_end":
            if self.kind == "${":
                pieces.append(self.interpolation())
            else:
                token = self.advance()
                pieces.append((token.text, token.kind == "indented_text"))
        self.advance()
        return Str(at, strip_indentation(pieces))

    # Sets.

    def attribute_set(self, at: int, *, recursive: bool) -> AttrSet:
        bindings = self.bindings(at, "}", recursive=recursive)
        self.expect("}")
        return bindings

    def bindings(self, at: int, end: str, *, recursive: bool) -> AttrSet:
        result = AttrSet(at, recursive)
        while self.kind != end:
            if self.kind == "inherit":
                self.inherit(result)
            elif self.kind in ("id", "or", "string_start", "${"):
                self.binding(result)
            else:
                raise self.unexpected("inherit" if end == "}" else end)
        return result

    def binding(self, result: AttrSet) -> None:
        at = self.at
        path = self.attribute_path()
        self.expect("=")
        value = self.expression()
        self.expect(";")
        self.add_attribute(result, path, value, at)

    def inherit(self, result: AttrSet) -> None:
        self.advance()
        source: int | None = None
        if self.kind == "(":
            self.advance()
            result.inherit_sources.append(self.expression())
            self.expect(")")
            source = len(result.inherit_sources) - 1
        while self.kind != ";":
            at = self.at
            name = self.attribute_name() if self.kind != ";" else ""
            if not isinstance(name, str):
                raise self.fail("dynamic attributes not allowed in inherit", at)
            if name in result.bindings:
                raise self.duplicate(name, result.bindings[name].at, at)
            result.bindings[name] = Binding(at, Var(at, name), inherited=source is None, inherit_from=source)
        self.advance()

    def duplicate(self, name: str, first_at: int, at: int) -> NixSyntaxError:
        first = self.source.position(first_at)
        return self.fail(f"attribute '{name}' already defined at {first}", at)

    def add_attribute(self, target: AttrSet, path: list[str | Expr], value: Expr, at: int) -> None:
        """Bind `value` at `path` below `target`, making and merging sets on the way."""
        for depth, name in enumerate(path[:-1]):
            if not isinstance(name, str):
                inner = AttrSet(at, False)
                target.dynamic.append(DynamicBinding(at, name, inner))
                target = inner
                continue
            existing = target.bindings.get(name)
            if existing is None:
                inner = AttrSet(at, False)
                target.bindings[name] = Binding(at, inner)
                target = inner
            elif isinstance(existing.value, AttrSet) and not existing.inherited and existing.inherit_from is None:
                target = existing.value
            else:
                shown = ".".join(part if isinstance(part, str) else "${…}" for part in path[: depth + 1])
                raise self.duplicate(shown, existing.at, at)
        name = path[-1]
        if not isinstance(name, str):
            target.dynamic.append(DynamicBinding(at, name, value))
            return
        existing = target.bindings.get(name)
        if existing is None:
            target.bindings[name] = Binding(at, value)
        else:
            self.merge(existing, value, path, at)

    def merge(self, existing: Binding, value: Expr, path: list[str | Expr], at: int) -> None:
        """Merge a set literal into one bound before (`a.b = 1; a = { c = 2; };`)."""
        shown = ".".join(part if isinstance(part, str) else "${…}" for part in path)
        old = existing.value
        mergeable = isinstance(old, AttrSet) and not existing.inherited and existing.inherit_from is None
        if not mergeable or not isinstance(old, AttrSet) or not isinstance(value, AttrSet):
            raise self.duplicate(shown, existing.at, at)
        shift = len(old.inherit_sources)
        old.inherit_sources.extend(value.inherit_sources)
        for name, binding in value.bindings.items():
            if name in old.bindings:
                raise self.duplicate(name, old.bindings[name].at, binding.at)
            if binding.inherit_from is not None:
                binding.inherit_from += shift
            old.bindings[name] = binding
        old.dynamic.extend(value.dynamic)


def _constant(expression: Expr) -> str | Expr:
    """Return the text of a string without interpolations, else the expression itself."""
    if isinstance(expression, Str):
        if not expression.parts:
            return ""
        if len(expression.parts) == 1 and isinstance(expression.parts[0], str):
            return expression.parts[0]
    return expression


def strip_indentation(pieces: list[tuple[str, bool] | Expr]) -> list[str | Expr]:
    """Return the parts of an indented string without the indentation common to its lines.

    A piece of text comes with whether it may indent: escapes may not, they end a line's indentation just
    as interpolations do. The last line goes if it is only spaces.
    """
    least = _least_indentation(pieces)
    parts: list[str | Expr] = []
    at_line_start = True
    dropped = 0
    for number, piece in enumerate(pieces):
        if not isinstance(piece, tuple):
            at_line_start, dropped = False, 0
            parts.append(piece)
            continue
        out: list[str] = []
        for character in piece[0]:
            if not at_line_start:
                out.append(character)
                at_line_start = character == "\n"
            elif character == " ":
                if dropped >= least:
                    out.append(character)
                dropped += 1
            else:
                dropped = 0
                out.append(character)
                at_line_start = character == "\n"
        text = "".join(out)
        if number == len(pieces) - 1:
            head, newline, tail = text.rpartition("\n")
            if newline and not tail.strip(" "):
                text = head + newline
        if parts and isinstance(parts[-1], str):
            parts[-1] += text
        elif text:
            parts.append(text)
    return parts


def _least_indentation(pieces: list[tuple[str, bool] | Expr]) -> int:
    least = _NO_INDENT
    at_line_start = True
    current = 0
    for piece in pieces:
        if not isinstance(piece, tuple) or not piece[1]:
            if at_line_start:
                at_line_start = False
                least = min(least, current)
            continue
        for character in piece[0]:
            if at_line_start:
                if character == " ":
                    current += 1
                elif character == "\n":
                    current = 0
                else:
                    at_line_start = False
                    least = min(least, current)
            elif character == "\n":
                at_line_start = True
                current = 0
    return least
