"""Errors of evaluation, with places in the source and a trace of how evaluation got there.

EvalError                   ends the evaluation; tryEval does not catch it
├── NixSyntaxError          the source is not Nix
├── UndefinedVariable
├── MissingAttribute
├── NixTypeError            a value of another type was needed
├── InfiniteRecursion
├── StackOverflow           calls nest deeper than allowed
├── Aborted                 builtins.abort
└── CatchableError          tryEval catches these, and nothing else
    ├── Thrown              builtins.throw
    └── AssertionFailed
"""

from __future__ import annotations

from dataclasses import dataclass

from tvix.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a source: 1-based line and column; `file` is a path or a name in «»."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class EvalError(InvalidInput):
    """Evaluation cannot go on. `position` is where, `trace` how it got there, innermost first."""

    def __init__(self, message: str, position: Position | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.position = position
        self.trace: list[tuple[Position | None, str]] = []

    def add_trace(self, text: str, position: Position | None = None) -> None:
        """Say what was being done around what failed."""
        self.trace.append((position, text))


class NixSyntaxError(EvalError):
    """The source is not Nix."""


class UndefinedVariable(EvalError):
    """A name is bound nowhere."""


class MissingAttribute(EvalError):
    """A set does not have the attribute."""


class NixTypeError(EvalError):
    """A value has another type than the one needed."""


class InfiniteRecursion(EvalError):
    """A value depends on itself."""


class StackOverflow(EvalError):
    """Calls nest deeper than allowed."""


class Aborted(EvalError):
    """The program called builtins.abort."""


class CatchableError(EvalError):
    """What builtins.tryEval catches."""


class Thrown(CatchableError):
    """The program called builtins.throw."""


class AssertionFailed(CatchableError):
    """An `assert` did not hold."""
