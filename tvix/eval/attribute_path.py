"""Attribute paths as people write them after `-A`: `a.b."c.d"`. Pure."""

from __future__ import annotations

from tvix.eval.errors import EvalError


def parse_attribute_path(text: str) -> list[str]:
    """Return the names of a path; an empty text has none. EvalError for an unclosed quote."""
    names: list[str] = []
    current: list[str] = []
    index = 0
    while index < len(text):
        character = text[index]
        if character == ".":
            names.append("".join(current))
            current = []
        elif character == '"':
            end = text.find('"', index + 1)
            if end < 0:
                raise EvalError(f"missing closing quote in attribute path '{text}'")
            current.append(text[index + 1 : end])
            index = end
        else:
            current.append(character)
        index += 1
    if text:
        names.append("".join(current))
    return names
