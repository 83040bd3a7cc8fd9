"""Instantiating derivations: output paths, the path and the contents of the .drv file. Pure but for a memo.

One pass makes all three texts that are hashed (the masked and the final form over hashed inputs, and the file
itself): they differ in inputs, outputs and the environment's output variables only, so the rest is written once.
About 130 µs for 60 variables, 20 inputs and 3 outputs, most of it hashing and escaping.

Kinds of outputs, told by the fields that the caller fills in (`path` is filled in here):
    Output()                        input-addressed; "deferred" when an input's own paths are not known yet
    Output("", "r:sha256", hex)     fixed; methods are none (flat), `r:`, `text:` and `git:`
    Output("", "r:sha256")          content-addressed, known once built
    Output("", "r:sha256", IMPURE)  as before, and never the same
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from tvix.errors import InvalidInput
from tvix.nix import base32
from tvix.nix.derivation import DRV_SUFFIX, IMPURE, Derivation, Output
from tvix.nix.store_path import HASH_DIGITS, STORE_DIR, make_path, output_path, output_path_name

ReadDerivation = Callable[[str], Derivation]
"""Reads the .drv file at a path."""


class Modulo(NamedTuple):
    """What a derivation makes, whatever its inputs' own paths; the same for all its outputs."""

    digest_hex: str
    is_deferred: bool
    """Whether its output paths are unknown until something is built."""


@dataclass(frozen=True, slots=True)
class Instantiated:
    """A derivation with all that can be known of its outputs, and its file."""

    path: str
    derivation: Derivation
    contents: bytes


def placeholder(output_name: str) -> str:
    """Return what stands for an output's own path where that is not known: 53 bytes, replaced at build time."""
    return _hashed(f"nix-output:{output_name}")


def downstream_placeholder(drv_path: str, output_name: str) -> str:
    """Return what stands in other derivations for an output whose path is not known."""
    digits, name = _split_drv_path(drv_path)
    return _hashed(f"nix-upstream-output:{digits}:{output_path_name(name, output_name)}")


def _hashed(text: str) -> str:
    return f"/{base32.encode(hashlib.sha256(text.encode()).digest())}"


def _split_drv_path(drv_path: str) -> tuple[str, str]:
    base_name = drv_path.rpartition("/")[2]
    return base_name[:HASH_DIGITS], base_name[HASH_DIGITS + 1 : -len(DRV_SUFFIX)]


def _sha256_hex(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


_IMPURE_MODULO = Modulo(_sha256_hex("impure"), True)


# Writing.


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'


def _escaped_each(texts: list[str]) -> list[str]:
    """Escape many strings at once, as if they were one."""
    pieces = _escaped("\0".join(texts)).split("\0")
    return pieces if len(pieces) == len(texts) else [_escaped(text) for text in texts]


def _strings(items: Iterable[str]) -> str:
    return ",".join([_quoted(item) for item in items])


@lru_cache(maxsize=4096)
def _sorted_strings(items: frozenset[str]) -> str:
    return _strings(sorted(items))


def _inputs(inputs: Mapping[str, frozenset[str]]) -> str:
    return ",".join([f'("{key}",[{_sorted_strings(inputs[key])}])' for key in sorted(inputs)])


def _outputs(outputs: Mapping[str, Output], paths: Mapping[str, str]) -> str:
    return ",".join(
        [
            f'({_quoted(name)},"{paths.get(name, "")}","{outputs[name].method_algorithm}","{outputs[name].hash_hex}")'
            for name in sorted(outputs)
        ]
    )


class _Environment:
    """A derivation's environment as text, in which the values of its outputs change."""

    def __init__(self, environment: Mapping[str, str], outputs: Iterable[str]) -> None:
        names = sorted(environment)
        if not "".join(names).isascii():
            names.sort(key=lambda name: name.encode("utf-8", "surrogateescape"))
        escaped = _escaped_each([*names, *[environment[name] for name in names]]) if names else []
        count = len(names)
        self._entries = [f'("{escaped[index]}","{escaped[count + index]}")' for index in range(count)]
        self._places = [(name, names.index(name)) for name in outputs]

    def text(self, values: Mapping[str, str]) -> str:
        """Return it with these values of outputs, which are paths, placeholders or empty."""
        for name, place in self._places:
            self._entries[place] = f'({_quoted(name)},"{values.get(name, "")}")'
        return ",".join(self._entries)


# Hashing.


class DerivationHashes:
    """Instantiates derivations, remembering the modulo hash of each. `read_derivation` is asked for inputs that
    were not instantiated here.
    """

    def __init__(self, read_derivation: ReadDerivation, store_dir: str = STORE_DIR) -> None:
        self._read_derivation = read_derivation
        self._store_dir = store_dir
        self._known: dict[str, Modulo] = {}

    def __repr__(self) -> str:
        return f"<DerivationHashes {len(self._known)} known>"

    def instantiate(self, name: str, derivation: Derivation) -> Instantiated:
        """Return the derivation with its outputs' paths and variables. InvalidInput when `name` makes no path."""
        outputs = derivation.outputs
        environment = _Environment({**derivation.environment, **dict.fromkeys(outputs, "")}, outputs)
        middle = (
            f"],[{_strings(sorted(derivation.input_sources))}],{_quoted(derivation.system)},"
            f"{_quoted(derivation.builder)},[{_strings(derivation.arguments)}],["
        )
        hashed_inputs, is_deferred = self._hashed_inputs(derivation)

        def aterm(inputs: str, paths: Mapping[str, str], variables: Mapping[str, str]) -> str:
            return f"Derive([{_outputs(outputs, paths)}],[{inputs}{middle}{environment.text(variables)}])"

        if not any(output.method_algorithm for output in outputs.values()):
            paths = {} if is_deferred else self._output_paths(name, outputs, aterm(hashed_inputs, {}, {}))
            variables = paths or dict.fromkeys(outputs, "")
            modulo = Modulo(_sha256_hex(aterm(hashed_inputs, paths, variables)), is_deferred)
        elif derivation.fixed_output is not None:
            paths = variables = {"out": self._fixed_path(name, derivation.fixed_output)}
            modulo = self._fixed_modulo(derivation.fixed_output, paths["out"])
        else:
            paths, variables = {}, {output_name: placeholder(output_name) for output_name in outputs}
            is_impure = any(output.hash_hex == IMPURE for output in outputs.values())
            text = "" if is_impure else aterm(hashed_inputs, paths, variables)
            modulo = _IMPURE_MODULO if is_impure else Modulo(_sha256_hex(text), True)
        contents = aterm(_inputs(derivation.input_derivations), paths, variables).encode("utf-8", "surrogateescape")
        path = self._drv_path(name, derivation, contents)
        self._known[path] = modulo
        return Instantiated(path, _filled(derivation, paths, variables), contents)

    def modulo(self, drv_path: str) -> Modulo:
        """Return the modulo hash of the derivation at a path, reading it if it was not instantiated here."""
        found = self._known.get(drv_path)
        if found is None:
            found = self._known[drv_path] = self._modulo_of(self._read_derivation(drv_path))
        return found

    def _modulo_of(self, derivation: Derivation) -> Modulo:
        fixed = derivation.fixed_output
        if fixed is not None:
            return self._fixed_modulo(fixed, fixed.path)
        outputs = derivation.outputs
        if any(output.hash_hex == IMPURE for output in outputs.values()):
            return _IMPURE_MODULO
        hashed_inputs, is_deferred = self._hashed_inputs(derivation)
        environment = _Environment(derivation.environment, ()).text({})
        text = (
            f"Derive([{_outputs(outputs, {name: output.path for name, output in outputs.items()})}],[{hashed_inputs}],"
            f"[{_strings(sorted(derivation.input_sources))}],{_quoted(derivation.system)},"
            f"{_quoted(derivation.builder)},[{_strings(derivation.arguments)}],[{environment}])"
        )
        is_floating = any(output.method_algorithm for output in outputs.values())
        return Modulo(_sha256_hex(text), is_deferred or is_floating)

    def _hashed_inputs(self, derivation: Derivation) -> tuple[str, bool]:
        """Return the inputs as text, under their modulo hashes, and whether any is deferred."""
        inputs: dict[str, frozenset[str]] = {}
        is_deferred = False
        for drv_path, names in derivation.input_derivations.items():
            key, input_is_deferred = self.modulo(drv_path)
            is_deferred = is_deferred or input_is_deferred
            inputs[key] = inputs[key] | names if key in inputs else names
        return _inputs(inputs), is_deferred

    def _output_paths(self, name: str, outputs: Iterable[str], masked: str) -> dict[str, str]:
        digest = hashlib.sha256(masked.encode("utf-8", "surrogateescape")).digest()
        return {
            output_name: output_path(output_name, digest, name, self._store_dir).absolute(self._store_dir)
            for output_name in outputs
        }

    def _fixed_path(self, name: str, output: Output) -> str:
        return fixed_output_path(name, output, self._store_dir)

    def _fixed_modulo(self, output: Output, path: str) -> Modulo:
        return Modulo(_sha256_hex(f"fixed:out:{output.method_algorithm}:{output.hash_hex}:{path}"), False)

    def _drv_path(self, name: str, derivation: Derivation, contents: bytes) -> str:
        references = sorted({*derivation.input_derivations, *derivation.input_sources})
        kind = ":".join(["text", *references])
        path = make_path(kind, hashlib.sha256(contents).digest(), name + DRV_SUFFIX, self._store_dir)
        return path.absolute(self._store_dir)


def fixed_output_path(name: str, output: Output, store_dir: str = STORE_DIR) -> str:
    """Return the path of a fixed output. InvalidInput for `text:` with anything but sha256."""
    method, _, algorithm = output.method_algorithm.rpartition(":")
    digest = bytes.fromhex(output.hash_hex)
    if method == "r" and algorithm == "sha256":
        path = make_path("source", digest, name, store_dir)
    elif method == "text":
        if algorithm != "sha256":
            raise InvalidInput(f"fixed output '{name}': outputHashMode 'text' needs sha256, not {algorithm}")
        path = make_path("text", digest, name, store_dir)
    else:
        inner = hashlib.sha256(f"fixed:out:{output.method_algorithm}:{output.hash_hex}:".encode()).digest()
        path = make_path("output:out", inner, name, store_dir)
    return path.absolute(store_dir)


def _filled(derivation: Derivation, paths: Mapping[str, str], variables: Mapping[str, str]) -> Derivation:
    outputs = derivation.outputs
    return Derivation(
        outputs={
            name: Output(paths.get(name, ""), outputs[name].method_algorithm, outputs[name].hash_hex)
            for name in sorted(outputs)
        },
        input_derivations=derivation.input_derivations,
        input_sources=derivation.input_sources,
        system=derivation.system,
        builder=derivation.builder,
        arguments=derivation.arguments,
        environment={**derivation.environment, **variables},
    )
