"""Builtins to and from JSON, TOML and XML."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, NoReturn

from tvix.eval.builtins.expect import expect_text
from tvix.eval.builtins.registry import Registry, Table
from tvix.eval.errors import EvalError
from tvix.eval.values import MAX_INT, MIN_INT, Attrs, Value, with_context

TABLE = Table()


def register(registry: Registry) -> None:
    """Add this module's builtins."""
    registry.update(TABLE)
    strings = registry.evaluator.strings

    @registry.primop("toJSON", "s")
    def to_json(value: Value) -> str:
        from tvix.eval.printing import JsonPrinter

        printer = JsonPrinter(strings)
        text = printer.show(value)
        return with_context(text, frozenset(printer.context))

    @registry.primop("toXML", "s")
    def to_xml(value: Value) -> str:
        from tvix.eval.printing import XmlPrinter

        printer = XmlPrinter(strict=True, location=False)
        text = printer.show(value)
        return with_context(text, frozenset(printer.context))


def _json_int(text: str) -> int | float:
    value = int(text) if len(text) < 30 else MAX_INT * 4
    return value if MIN_INT <= value <= MAX_INT else float(text)


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


@lru_cache(maxsize=1)
def _json_decoder() -> json.JSONDecoder:
    return json.JSONDecoder(object_pairs_hook=Attrs, parse_int=_json_int, parse_constant=_not_json)


@TABLE.primop("fromJSON", "s")
def from_json(text: Value) -> Value:
    expect_text(text, "builtins.fromJSON")
    try:
        return _json_decoder().decode(str(text))
    except ValueError as error:
        raise EvalError(f"error parsing JSON: {error}") from error


@TABLE.primop("fromTOML", "s")
def from_toml(text: Value) -> Value:
    import tomllib

    expect_text(text, "builtins.fromTOML")
    try:
        return _from_toml(tomllib.loads(str(text)))
    except (tomllib.TOMLDecodeError, UnicodeError) as error:
        raise EvalError(f"error parsing TOML: {error}") from error


def _from_toml(value: Any) -> Value:
    if isinstance(value, dict):
        return Attrs([(name, _from_toml(item)) for name, item in value.items()])
    if isinstance(value, list):
        return [_from_toml(item) for item in value]
    if isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        if not MIN_INT <= value <= MAX_INT:
            raise EvalError(f"integer {value} in TOML does not fit 64 bits")
        return value
    raise EvalError(f"while parsing TOML: dates and times are not supported ({value})")
