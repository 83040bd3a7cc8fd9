"""From Python exceptions to errors of Nix: where it happened, how it got there, and the text for people.

Emitted code carries Nix positions, so a Python traceback has them all: a frame whose globals hold `SOURCE` is
one of a Nix file, and the position of its current instruction is the Nix position.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import CodeType, TracebackType

from tvix.eval.errors import EvalError, NixTypeError, Position, StackOverflow
from tvix.eval.source import Source

_NOT_CALLABLE = re.compile(r"'(\w+)' object is not callable$")
_NOT_SUBSCRIPTABLE = re.compile(r"'(\w+)' object is not subscriptable$")
_WRONG_INDEX = re.compile(r"(list|string) indices must be integers")
_SHOWN = {
    "NoneType": "null",
    "bool": "a Boolean",
    "int": "an integer",
    "float": "a float",
    "str": "a string",
    "ContextString": "a string",
    "Path": "a path",
    "list": "a list",
    "Attrs": "a set",
    "function": "a function",
    "method": "a function",
    "builtin_function_or_method": "a function",
    "string": "a string",
}
_KnownPlaces = dict[CodeType, list[tuple[int | None, int | None, int | None, int | None]]]
MAX_TRACE = 40
"""Frames kept at each end of a long trace."""


def to_eval_error(error: Exception) -> EvalError:
    """Return the error of Nix that an exception is, with its position; other exceptions are raised again."""
    if isinstance(error, RecursionError):
        found: EvalError = StackOverflow("stack overflow; calls nest too deeply (possible infinite recursion)")
        found.__traceback__ = error.__traceback__
    elif isinstance(error, EvalError):
        found = error
    elif isinstance(error, TypeError):
        found = _type_error(error)
        found.__traceback__ = error.__traceback__
    else:
        raise error
    if found.position is None:
        positions = nix_frames(found.__traceback__)
        if positions:
            found.position = positions[-1]
    return found


def _type_error(error: TypeError) -> EvalError:
    """Calls and selections are plain Python on unchecked values: what Python says of them, in words of Nix."""
    text = str(error)
    match = _NOT_CALLABLE.search(text)
    if match and match[1] in _SHOWN:
        return NixTypeError(f"attempt to call something which is not a function but {_SHOWN[match[1]]}")
    match = _NOT_SUBSCRIPTABLE.search(text) or _WRONG_INDEX.match(text)
    if match and match[1] in _SHOWN:
        return NixTypeError(f"value is {_SHOWN[match[1]]} while a set was expected")
    raise error


def nix_frames(traceback: TracebackType | None) -> list[Position]:
    """Return the places in Nix files that a traceback passes, outermost first."""
    found: list[Position] = []
    known: _KnownPlaces = {}
    while traceback is not None:
        source = traceback.tb_frame.f_globals.get("SOURCE")
        if source.__class__ is Source:
            assert source is not None
            position = _position_in(traceback.tb_frame.f_code, traceback.tb_lasti, known)
            if position is not None:
                found.append(Position(source.name, *position))
        traceback = traceback.tb_next
    return found


def _position_in(code: CodeType, instruction: int, known: _KnownPlaces) -> tuple[int, int] | None:
    places = known.get(code)
    if places is None:
        places = known[code] = list(code.co_positions())
    line, _, column, _ = places[instruction // 2]
    return (line, column + 1) if line is not None and column is not None else None


def report(error: EvalError, read_line: Callable[[Position], str | None], *, show_trace: bool = False) -> str:
    """Return the message for people: what, where, the line with a caret, and, if asked for, how it got there."""
    lines = [f"error: {error.message}"]
    if error.position is not None:
        lines += _place(error.position, read_line, "at")
    contexts = error.trace if show_trace else error.trace[:3]
    for position, text in contexts:
        lines += ["", f"       … {text}"]
        if position is not None:
            lines += _place(position, read_line, "at")
    if show_trace:
        lines += _trace(error, read_line)
    elif nix_frames(error.__traceback__)[:-1] or error.trace[3:]:
        lines += ["", "       (use --show-trace to see how evaluation got there)"]
    return "\n".join(lines)


def _trace(error: EvalError, read_line: Callable[[Position], str | None]) -> list[str]:
    frames = _without_repeats(nix_frames(error.__traceback__)[::-1])
    if frames and frames[0] == error.position:
        frames = frames[1:]
    left_out = len(frames) - 2 * MAX_TRACE
    lines: list[str] = []
    for number, position in enumerate(frames):
        if left_out > 0 and MAX_TRACE <= number < MAX_TRACE + left_out:
            if number == MAX_TRACE:
                lines += ["", f"       … ({left_out} more)"]
            continue
        lines += ["", *_place(position, read_line, "… from")]
    return lines


def _without_repeats(frames: list[Position]) -> list[Position]:
    return [frame for index, frame in enumerate(frames) if index == 0 or frame != frames[index - 1]]


def _place(position: Position, read_line: Callable[[Position], str | None], word: str) -> list[str]:
    lines = [f"       {word} {position}:"]
    text = read_line(position)
    if text is not None:
        number = f"{position.line:>6}"
        before = text[: position.column - 1]
        lines += [f"       {number}| {text}", f"             | {_blank(before)}^"]
    return lines


def _blank(text: str) -> str:
    """Spaces as wide as the text, tabs kept, so that a caret below stands right."""
    return "".join("\t" if character == "\t" else " " for character in text)
