"""Builtins on the contexts of strings: which store paths a string came from."""

from __future__ import annotations

from tvix.eval.builtins.expect import expect_bool, expect_list, expect_set, expect_text, text_in
from tvix.eval.builtins.registry import Registry, Table
from tvix.eval.errors import EvalError
from tvix.eval.values import (
    MISSING,
    Attrs,
    Built,
    ContextElement,
    ContextString,
    DeepDerivation,
    Opaque,
    Value,
    context_of,
    force,
    with_context,
)

TABLE = Table()


def register(registry: Registry) -> None:
    """Add this module's builtins."""
    registry.update(TABLE)
    evaluator = registry.evaluator
    strings, store_dir = evaluator.strings, evaluator.settings.store_dir

    @registry.primop("unsafeDiscardStringContext", "s")
    def unsafe_discard_string_context(value: Value) -> str:
        return str(strings.coerce(value))

    @registry.primop("unsafeDiscardOutputDependency", "s")
    def unsafe_discard_output_dependency(value: Value) -> str:
        text = strings.coerce(value)
        return with_context(
            str(text),
            frozenset(
                Opaque(element.derivation) if isinstance(element, DeepDerivation) else element
                for element in context_of(text)
            ),
        )

    @registry.primop("addDrvOutputDependencies", "s")
    def add_drv_output_dependencies(value: Value) -> str:
        text = strings.coerce(value)
        return with_context(str(text), frozenset([_deep(text)]))

    @registry.primop("appendContext", "ss")
    def append_context(text: Value, additions: Value) -> str:
        expect_text(text, "builtins.appendContext")
        added: list[ContextElement] = []
        for path, lazy in expect_set(additions, "builtins.appendContext").items():
            if not path.startswith(f"{store_dir}/"):
                raise EvalError(f"context key '{path}' is not a store path, in builtins.appendContext")
            added += _elements(path, expect_set(force(lazy), "the context of a path, in builtins.appendContext"))
        return with_context(str(text), context_of(text).union(added))


def _deep(text: str) -> DeepDerivation:
    context = context_of(text)
    if len(context) != 1:
        raise EvalError(
            f"context of string '{text}' must have exactly one element, but has {len(context)}, "
            "in builtins.addDrvOutputDependencies"
        )
    (element,) = context
    if isinstance(element, DeepDerivation):
        return element
    if isinstance(element, Built):
        raise EvalError(f"'{text}' is an output of a derivation, not one, in builtins.addDrvOutputDependencies")
    if not element.path.endswith(".drv"):
        raise EvalError(f"path '{element.path}' is not a derivation, in builtins.addDrvOutputDependencies")
    return DeepDerivation(element.path)


def _elements(path: str, described: Attrs) -> list[ContextElement]:
    found: list[ContextElement] = []
    if _flag(described, "path"):
        found.append(Opaque(path))
    if _flag(described, "allOutputs"):
        _must_be_derivation(path)
        found.append(DeepDerivation(path))
    outputs = described.get("outputs", MISSING)
    if outputs is not MISSING:
        names = expect_list(force(outputs), "outputs of a context, in builtins.appendContext")
        if names:
            _must_be_derivation(path)
        found += [Built(path, str(text_in(name, "outputs of a context"))) for name in names]
    return found


def _flag(described: Attrs, name: str) -> bool:
    lazy = described.get(name, MISSING)
    return lazy is not MISSING and expect_bool(force(lazy), f"'{name}' of a context, in builtins.appendContext")


def _must_be_derivation(path: str) -> None:
    if not path.endswith(".drv"):
        raise EvalError(f"tried to add outputs of '{path}', which is not a derivation, to a string's context")


@TABLE.primop("hasContext", "s")
def has_context(text: Value) -> bool:
    return expect_text(text, "builtins.hasContext").__class__ is ContextString


@TABLE.primop("getContext", "s")
def get_context(text: Value) -> Value:
    found: dict[str, Attrs] = {}
    outputs: dict[str, list[str]] = {}
    for element in context_of(expect_text(text, "builtins.getContext")):
        if isinstance(element, Opaque):
            found.setdefault(element.path, Attrs())["path"] = True
        elif isinstance(element, DeepDerivation):
            found.setdefault(element.derivation, Attrs())["allOutputs"] = True
        else:
            found.setdefault(element.derivation, Attrs())
            outputs.setdefault(element.derivation, []).append(element.output)
    for path, names in outputs.items():
        found[path]["outputs"] = sorted(names)
    return Attrs(found)
