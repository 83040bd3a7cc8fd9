"""The syntax tree of Nix. Pure.

Every node has `at`, the offset of its first character in the source (of the operator, for binary
operators, as Nix reports them). Operators stay operators here: what they desugar to is the compiler's
business.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Int:
    """A decimal integer."""

    at: int
    value: int


@dataclass(slots=True)
class Float:
    """A decimal with a point."""

    at: int
    value: float


@dataclass(slots=True)
class Str:
    """A string, indented string or URL; parts are literal text and interpolated expressions.

    A single literal part, or none, is a constant.
    """

    at: int
    parts: list[str | Expr]


@dataclass(slots=True)
class Path:
    """A path literal. `parts[0]` is text; relative ones are not resolved here, `~/` not expanded."""

    at: int
    parts: list[str | Expr]


@dataclass(slots=True)
class SearchPath:
    """`<name/rest>`: sugar for `__findFile __nixPath "name/rest"`."""

    at: int
    name: str


@dataclass(slots=True)
class Var:
    """A name."""

    at: int
    name: str


@dataclass(slots=True)
class Select:
    """`subject.path or default`. Names of the path are text when static."""

    at: int
    subject: Expr
    path: list[str | Expr]
    default: Expr | None


@dataclass(slots=True)
class HasAttr:
    """`subject ? path`."""

    at: int
    subject: Expr
    path: list[str | Expr]


@dataclass(slots=True)
class Call:
    """`function argument …`: all arguments written one after another."""

    at: int
    function: Expr
    arguments: list[Expr]


@dataclass(slots=True)
class Formal:
    """A named parameter of a set pattern."""

    at: int
    name: str
    default: Expr | None


@dataclass(slots=True)
class Lambda:
    """`parameter: body`, or `{ formals }: body`, or both joined by `@`."""

    at: int
    parameter: str | None
    formals: list[Formal] | None
    ellipsis: bool
    body: Expr


@dataclass(slots=True)
class Let:
    """`let bindings in body`."""

    at: int
    bindings: AttrSet
    body: Expr


@dataclass(slots=True)
class With:
    """`with subject; body`."""

    at: int
    subject: Expr
    body: Expr


@dataclass(slots=True)
class Assert:
    """`assert condition; body`."""

    at: int
    condition: Expr
    body: Expr


@dataclass(slots=True)
class If:
    """`if condition then … else …`."""

    at: int
    condition: Expr
    then: Expr
    otherwise: Expr


@dataclass(slots=True)
class Not:
    """`!operand`."""

    at: int
    operand: Expr


@dataclass(slots=True)
class Negate:
    """`-operand`: sugar for `__sub 0 operand`."""

    at: int
    operand: Expr


@dataclass(slots=True)
class Binary:
    """A binary operator: `-> || && == != < <= > >= // + - * / ++`, `|>` and `<|`."""

    at: int
    operator: str
    left: Expr
    right: Expr


@dataclass(slots=True)
class List:
    """`[ … ]`."""

    at: int
    items: list[Expr]


@dataclass(slots=True)
class Binding:
    """One static attribute. For `inherit x`, `value` is the variable, looked up outside the set; for
    `inherit (e) x`, `inherit_from` is e's index in the set and `value` is unused.
    """

    at: int
    value: Expr
    inherited: bool = False
    inherit_from: int | None = None


@dataclass(slots=True)
class DynamicBinding:
    """`${name} = value`."""

    at: int
    name: Expr
    value: Expr


@dataclass(slots=True)
class AttrSet:
    """`{ … }` or `rec { … }`, with paths like `a.b.c = …` already unfolded and merged."""

    at: int
    recursive: bool
    bindings: dict[str, Binding] = field(default_factory=dict)
    dynamic: list[DynamicBinding] = field(default_factory=list)
    inherit_sources: list[Expr] = field(default_factory=list)


@dataclass(slots=True)
class CurPos:
    """`__curPos`: the place where it stands."""

    at: int


Expr = (
    Int
    | Float
    | Str
    | Path
    | SearchPath
    | Var
    | Select
    | HasAttr
    | Call
    | Lambda
    | Let
    | With
    | Assert
    | If
    | Not
    | Negate
    | Binary
    | List
    | AttrSet
    | CurPos
)
