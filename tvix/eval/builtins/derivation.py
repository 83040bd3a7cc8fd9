"""`derivationStrict`, and `derivation` around it: sets of attributes become derivations in the store.

What lands in a derivation decides its path, so the order of things follows Nix to the letter: attributes by name,
each coerced to a string, its context collected; then inputs from the contexts, then outputs. Where versions of Nix
differ in that, this is 2.8's way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NoReturn

from tvix.errors import InvalidInput
from tvix.eval.builtins.expect import expect_bool, expect_list, expect_set, expect_text, text_in
from tvix.eval.builtins.registry import Registry
from tvix.eval.errors import EvalError
from tvix.eval.operators import Formals
from tvix.eval.printing import JsonPrinter
from tvix.eval.strings import without_context
from tvix.eval.values import (
    MISSING,
    NO_CONTEXT,
    Attrs,
    Built,
    Context,
    ContextString,
    DeepDerivation,
    Lazy,
    Opaque,
    Thunk,
    Value,
    force,
    positions_of,
    with_context,
)
from tvix.nix.derivation import DRV_SUFFIX, IMPURE, Derivation, Output, parse_aterm
from tvix.nix.derivation_hashes import DerivationHashes, downstream_placeholder
from tvix.nix.hashes import ALGORITHMS, Algorithm, Hash, parse_hash, zero

_METHODS = {"flat": "", "recursive": "r:", "nar": "r:", "text": "text:", "git": "git:"}
"""Prefix in a derivation of each outputHashMode."""
_DEFAULT_OUTPUTS = ("out",)

K_formals_derivation = Formals(("outputs", True), True, (), "drvAttrs")
"""The pattern of `derivation`; tvix.eval.runtime.formals_of finds it by its name."""


def register(registry: Registry) -> None:
    """Add this module's builtins."""
    derivations = Derivations(registry)
    registry.add("derivationStrict", "s", derivations.strict)
    registry.constant("derivation", _wrapper(derivations.strict))


@dataclass(slots=True)
class _Parts:
    """What the attributes of a derivation add up to."""

    name: str
    builder: str = ""
    system: str = ""
    arguments: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    contexts: list[Context] = field(default_factory=list)
    outputs: Iterable[str] = _DEFAULT_OUTPUTS
    output_hash: str | None = None
    output_hash_algorithm: str = ""
    output_hash_method: str | None = None
    is_content_addressed: bool = False
    is_impure: bool = False


class Derivations:
    """Makes the derivations of one evaluation."""

    def __init__(self, registry: Registry) -> None:
        evaluator = registry.evaluator
        self._io = evaluator.io
        self._strings = evaluator.strings
        self._log = evaluator.settings.log
        self._hashes = DerivationHashes(self.read, evaluator.settings.store_dir)
        self._closures: dict[str, frozenset[str]] = {}

    def __repr__(self) -> str:
        return f"<Derivations {self._hashes!r}>"

    def read(self, drv_path: str) -> Derivation:
        """Return a derivation that is in the store."""
        try:
            return parse_aterm(self._io.read_file(drv_path), drv_path)
        except EvalError:
            raise
        except InvalidInput as error:
            raise EvalError(str(error)) from error

    def strict(self, argument: Value) -> Attrs:
        """builtins.derivationStrict: put a derivation into the store; return `drvPath` and the outputs' paths."""
        attributes = expect_set(argument, "builtins.derivationStrict")
        name_value = attributes.get("name", MISSING)
        if name_value is MISSING:
            raise EvalError("derivation name missing")
        name = _plain(force(name_value), "as the name of a derivation")
        try:
            parts = self._collect(name, attributes)
            derivation = self._derivation(parts)
            made = self._hashes.instantiate(name, derivation)
        except EvalError as error:
            error.add_trace(f"while evaluating the derivation '{name}'")
            raise
        except InvalidInput as error:
            raise EvalError(f"{error}, in derivation '{name}'") from error
        self._io.add_derivation(made.path, made.derivation, made.contents)
        return self._result(made.path, made.derivation)

    # Attributes.

    def _collect(self, name: str, attributes: Attrs) -> _Parts:
        parts = _Parts(name)
        is_structured = _flag(attributes, "__structuredAttrs")
        ignore_nulls = _flag(attributes, "__ignoreNulls")
        json = JsonPrinter(self._strings) if is_structured else None
        members: list[str] = []
        for key in sorted(attributes):
            if key == "__ignoreNulls":
                continue
            lazy = attributes[key]
            try:
                if ignore_nulls and force(lazy) is None:
                    continue
                special = _SPECIAL.get(key)
                if special is not None:
                    special(self, parts, force(lazy))
                elif json is None:
                    self._add_variable(parts, key, force(lazy))
                elif key != "__structuredAttrs":
                    members.append(f"{json.show(key)}:{json.show(lazy)}")
                    _add_structured(parts, key, force(lazy))
            except EvalError as error:
                error.add_trace(f"while evaluating the attribute '{key}' of the derivation '{name}'")
                raise
        if json is not None:
            parts.environment["__json"] = "{" + ",".join(members) + "}"
            parts.contexts.append(frozenset(json.context))
        return parts

    def _add_variable(self, parts: _Parts, key: str, value: Value) -> None:
        kind = value.__class__
        text = value if kind is str or kind is ContextString else self._strings.coerce(value, more=True)
        if text.__class__ is ContextString:
            parts.contexts.append(text.context)
        parts.environment[key] = text
        setter = _SETTERS.get(key)
        if setter is not None:
            setter(parts, text)

    def _add_arguments(self, parts: _Parts, value: Value) -> None:
        for item in expect_list(value, "as the arguments of a derivation's builder"):
            text = self._strings.coerce(force(item), more=True)
            if text.__class__ is ContextString:
                parts.contexts.append(text.context)
            parts.arguments.append(text)

    def _set_content_addressed(self, parts: _Parts, value: Value) -> None:
        parts.is_content_addressed = expect_bool(value, "__contentAddressed")

    def _set_impure(self, parts: _Parts, value: Value) -> None:
        parts.is_impure = expect_bool(value, "__impure")

    # The derivation.

    def _derivation(self, parts: _Parts) -> Derivation:
        if not parts.builder:
            raise EvalError("required attribute 'builder' missing")
        if not parts.system:
            raise EvalError("required attribute 'system' missing")
        if parts.name.endswith(DRV_SUFFIX) and parts.output_hash_method != "text:":
            raise EvalError(f"derivation names are not allowed to end in '{DRV_SUFFIX}'")
        input_derivations, input_sources = self._inputs(parts.contexts)
        return Derivation(
            outputs=dict.fromkeys(parts.outputs, self._output(parts)),
            input_derivations=input_derivations,
            input_sources=input_sources,
            system=parts.system,
            builder=parts.builder,
            arguments=tuple(parts.arguments),
            environment=parts.environment,
        )

    def _output(self, parts: _Parts) -> Output:
        """Return what each output of the derivation is like."""
        if parts.output_hash is not None:
            if tuple(parts.outputs) != _DEFAULT_OUTPUTS:
                raise EvalError("multiple outputs are not supported in fixed-output derivations")
            expected = self._expected_hash(parts.output_hash, parts.output_hash_algorithm)
            return Output("", f"{parts.output_hash_method or ''}{expected.algorithm}", expected.base16)
        if parts.is_content_addressed and parts.is_impure:
            raise EvalError("derivation cannot be both content-addressed and impure")
        if not (parts.is_content_addressed or parts.is_impure):
            return Output()
        method = "r:" if parts.output_hash_method is None else parts.output_hash_method
        algorithm = _known_algorithm(parts.output_hash_algorithm) or "sha256"
        return Output("", f"{method}{algorithm}", IMPURE if parts.is_impure else "")

    def _expected_hash(self, text: str, algorithm_name: str) -> Hash:
        return hash_or_placeholder(text, _known_algorithm(algorithm_name), self._log)

    def _inputs(self, contexts: list[Context]) -> tuple[dict[str, frozenset[str]], frozenset[str]]:
        outputs: dict[str, set[str]] = {}
        sources: set[str] = set()
        for element in NO_CONTEXT.union(*contexts):
            if isinstance(element, Built):
                outputs.setdefault(element.derivation, set()).add(element.output)
            elif isinstance(element, Opaque):
                sources.add(element.path)
            else:
                for path in self._closure(element.derivation):
                    sources.add(path)
                    if path.endswith(DRV_SUFFIX):
                        outputs.setdefault(path, set()).update(self.read(path).outputs)
        return {path: frozenset(names) for path, names in outputs.items()}, frozenset(sources)

    def _closure(self, path: str) -> frozenset[str]:
        """Return a store path with all that it refers to, directly or not."""
        found = self._closures.get(path)
        if found is not None:
            return found
        if path.endswith(DRV_SUFFIX):
            derivation = self.read(path)
            references = derivation.input_sources.union(derivation.input_derivations)
        else:
            references = frozenset(self._io.references(path))
        closure = {path}
        for reference in references:
            if reference not in closure:
                closure |= self._closure(reference)
        found = self._closures[path] = frozenset(closure)
        return found

    def _result(self, drv_path: str, derivation: Derivation) -> Attrs:
        result = Attrs(drvPath=with_context(drv_path, frozenset([DeepDerivation(drv_path)])))
        for output_name, output in derivation.outputs.items():
            result[output_name] = output_string(drv_path, output_name, output)
        return result


def output_string(drv_path: str, output_name: str, output: Output) -> str:
    """Return an output's path, or what stands for it while unknown, with its context."""
    path = output.path or downstream_placeholder(drv_path, output_name)
    return with_context(path, frozenset([Built(drv_path, output_name)]))


def hash_or_placeholder(text: str, algorithm: Algorithm | None, log: Callable[[str], None]) -> Hash:
    """Return the hash in any of its spellings; an empty one is all zeros, with a warning, so that a build tells
    the right one. InvalidInput if it is malformed or its algorithm is not known.
    """
    if text:
        return parse_hash(text, algorithm)
    if algorithm is None:
        raise InvalidInput("empty hash requires explicit hash type")
    placeholder = zero(algorithm)
    log(f"warning: found empty hash, assuming '{placeholder.sri}'")
    return placeholder


def _known_algorithm(name: str) -> Algorithm | None:
    """Return the algorithm called `name`; None for any other name, as the hash itself may say its algorithm."""
    for algorithm in ALGORITHMS:
        if name == algorithm:
            return algorithm
    return None


def _plain(value: Value, what: str) -> str:
    return str(without_context(expect_text(value, what), what))


def _flag(attributes: Attrs, name: str) -> bool:
    lazy = attributes.get(name, MISSING)
    return lazy is not MISSING and expect_bool(force(lazy), f"the attribute '{name}' of a derivation")


# Attributes that mean something.


def _set_builder(parts: _Parts, text: str) -> None:
    parts.builder = text


def _set_system(parts: _Parts, text: str) -> None:
    parts.system = text


def _set_output_hash(parts: _Parts, text: str) -> None:
    parts.output_hash = text


def _set_output_hash_algorithm(parts: _Parts, text: str) -> None:
    parts.output_hash_algorithm = text


def _set_output_hash_mode(parts: _Parts, text: str) -> None:
    method = _METHODS.get(text)
    if method is None:
        raise EvalError(f"invalid value '{text}' for 'outputHashMode' attribute; known are {', '.join(_METHODS)}")
    parts.output_hash_method = method


def _set_outputs(parts: _Parts, text: str) -> None:
    _set_output_names(parts, text.split())


def _set_output_names(parts: _Parts, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise EvalError(f"duplicate derivation output '{name}'")
        if name == "drv":  # there is an attribute `drvPath` already
            raise EvalError("invalid derivation output name 'drv'")
        seen.add(name)
    if not names:
        raise EvalError("derivation cannot have an empty set of outputs")
    parts.outputs = [str(name) for name in names]


def _add_structured(parts: _Parts, key: str, value: Value) -> None:
    """Take what an attribute means, when it is passed in JSON: no coercion of values then."""
    if key == "builder":
        text = expect_text(value, "as a derivation's builder")
        if text.__class__ is ContextString:
            parts.contexts.append(text.context)
        parts.builder = text
    elif key == "outputs":
        items = expect_list(value, "as a derivation's outputs")
        names = [text_in(item, "as an output's name") for item in items]
        _set_output_names(parts, [str(without_context(name, "as an output's name")) for name in names])
    elif key in _SETTERS:
        _SETTERS[key](parts, _plain(value, f"as '{key}' of a derivation"))


_SETTERS: dict[str, Callable[[_Parts, str], None]] = {
    "builder": _set_builder,
    "system": _set_system,
    "outputHash": _set_output_hash,
    "outputHashAlgo": _set_output_hash_algorithm,
    "outputHashMode": _set_output_hash_mode,
    "outputs": _set_outputs,
}
_SPECIAL: dict[str, Callable[[Derivations, _Parts, Value], None]] = {
    "args": Derivations._add_arguments,
    "__contentAddressed": Derivations._set_content_addressed,
    "__impure": Derivations._set_impure,
}
"""Attributes that are not passed to the builder."""


# The wrapper.


def _wrapper(strict: Callable[[Value], Attrs]) -> Callable[[Lazy], Attrs]:
    """Return the function `derivation`: `derivationStrict` when a path is needed, the attributes at once."""

    def derivation(argument: Lazy) -> Attrs:
        attributes = expect_set(force(argument), "the argument of 'derivation'")
        made = Thunk(lambda: strict(attributes))
        outputs = attributes.get("outputs", MISSING)
        names = list(_DEFAULT_OUTPUTS) if outputs is MISSING else _output_names(force(outputs))
        common = Attrs(attributes)
        common.positions = positions_of(attributes)
        values: list[Lazy] = [_later(common, made, name) for name in names]
        for index in range(len(names) - 1, -1, -1):  # the first of equal names wins
            common[names[index]] = values[index]
        common["all"] = values
        common["drvAttrs"] = attributes
        first: Attrs = force(values[0])
        return first

    derivation.__name__ = "K_formals_derivation_x"
    return derivation


def _output_names(outputs: Value) -> list[str]:
    names = [str(text_in(name, "as an output's name")) for name in expect_list(outputs, "as a derivation's outputs")]
    if not names:
        _no_outputs()
    return names


def _no_outputs() -> NoReturn:
    raise EvalError("derivation cannot have an empty set of outputs")


def _later(common: Attrs, made: Thunk, name: str) -> Thunk:
    """Return the set that stands for one output, computed when used."""

    def value() -> Attrs:
        found = Attrs(common)
        found.positions = common.positions
        found["outPath"] = Thunk(lambda: force(force(made)[name]))
        found["drvPath"] = Thunk(lambda: force(made)["drvPath"])
        found["type"] = "derivation"
        found["outputName"] = name
        return found

    return Thunk(value)
