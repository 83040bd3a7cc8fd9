"""Derivations: ATerm and JSON both ways, hashes modulo, output paths. Pure.

Text is `str` in which bytes that are not UTF-8 stand as surrogates (PEP 383), so that every byte a
derivation holds survives. Reference: a derivation file is
`Derive([outputs],[inputDrvs],[inputSrcs],"system","builder",[args],[env])`, lists sorted by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tvix.errors import InvalidInput
from tvix.nix.hashes import Hash, hash_of, parse_algorithm
from tvix.nix.store_path import (
    STORE_DIR,
    StorePath,
    fixed_fingerprint,
    fixed_path,
    output_path,
    output_path_name,
    parse_store_path,
    text_path,
)

DRV_SUFFIX = ".drv"
IMPURE = "impure"
"""Stands in place of the hash of an output that is never the same."""


class InvalidDerivation(InvalidInput):
    """A derivation's text or its fields are malformed."""


@dataclass(frozen=True, slots=True)
class Output:
    """One output. `path` is empty while unknown; `method_algorithm` (`sha256`, `r:sha256`, `text:sha256`)
    and `hash_hex` are empty but for fixed and content-addressed outputs.
    """

    path: str = ""
    method_algorithm: str = ""
    hash_hex: str = ""

    @property
    def is_fixed(self) -> bool:
        """Whether the content's hash is known beforehand."""
        return bool(self.method_algorithm and self.hash_hex) and self.hash_hex != IMPURE

    @property
    def is_recursive(self) -> bool:
        """Whether the hash is over the NAR rather than a flat file."""
        return self.method_algorithm.startswith("r:")

    @property
    def hash(self) -> Hash:
        """The hash of a fixed output."""
        algorithm = parse_algorithm(self.method_algorithm.rpartition(":")[2])
        return Hash(algorithm, bytes.fromhex(self.hash_hex))


@dataclass(frozen=True, slots=True)
class Derivation:
    """A build step. Mappings are in sorted order when made by `parse_aterm`; writing sorts anyway."""

    outputs: Mapping[str, Output]
    input_derivations: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Path of each .drv this one needs, and the names of its outputs that it needs."""
    input_sources: frozenset[str] = frozenset()
    system: str = ""
    builder: str = ""
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def fixed_output(self) -> Output | None:
        """The one output of a fixed-output derivation, else None."""
        output = self.outputs.get("out")
        return output if len(self.outputs) == 1 and output is not None and output.is_fixed else None


# ATerm.

_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})
_UNESCAPED = {"n": "\n", "r": "\r", "t": "\t"}
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)


def _quoted(text: str) -> str:
    return f'"{text.translate(_ESCAPES)}"'


def _list(items: Iterator[str]) -> str:
    return f"[{','.join(items)}]"


def to_aterm(derivation: Derivation) -> bytes:
    """Return the contents of the .drv file."""
    outputs = (
        f'("{name}",{_quoted(output.path)},"{output.method_algorithm}","{output.hash_hex}")'
        for name, output in sorted(derivation.outputs.items())
    )
    inputs = (
        f"({_quoted(path)},{_list(map(_quoted, sorted(names)))})"
        for path, names in sorted(derivation.input_derivations.items())
    )
    environment = (
        f"({_quoted(name)},{_quoted(value)})" for name, value in sorted(derivation.environment.items(), key=_by_bytes)
    )
    text = (
        f"Derive({_list(outputs)},{_list(inputs)},{_list(map(_quoted, sorted(derivation.input_sources)))},"
        f"{_quoted(derivation.system)},{_quoted(derivation.builder)},{_list(map(_quoted, derivation.arguments))},"
        f"{_list(environment)})"
    )
    return text.encode("utf-8", "surrogateescape")


def _by_bytes(item: tuple[str, str]) -> bytes:
    return item[0].encode("utf-8", "surrogateescape")


class _Reader:
    """A cursor over an ATerm."""

    def __init__(self, text: str, where: str) -> None:
        self.text = text
        self.at = 0
        self.where = where

    def fail(self, expected: str) -> InvalidDerivation:
        found = self.text[self.at : self.at + 20] or "the end"
        return InvalidDerivation(f"{self.where}: expected {expected} at byte {self.at}, found {found!r}")

    def expect(self, token: str) -> None:
        if not self.text.startswith(token, self.at):
            raise self.fail(repr(token))
        self.at += len(token)

    def string(self) -> str:
        match = _STRING.match(self.text, self.at)
        if match is None:
            raise self.fail("a string")
        self.at = match.end()
        raw = match[1]
        if "\\" not in raw:
            return raw
        return _ESCAPED.sub(lambda escape: _UNESCAPED.get(escape[1], escape[1]), raw)

    def items(self) -> Iterator[None]:
        """Step through `[item,item]`; the caller reads each item."""
        self.expect("[")
        if self.text.startswith("]", self.at):
            self.at += 1
            return
        while True:
            yield
            if self.text.startswith(",", self.at):
                self.at += 1
                continue
            self.expect("]")
            return

    def strings(self) -> list[str]:
        return [self.string() for _ in self.items()]

    def tuple_of_strings(self, count: int) -> list[str]:
        self.expect("(")
        out = [self.string()]
        for _ in range(count - 1):
            self.expect(",")
            out.append(self.string())
        self.expect(")")
        return out


def parse_aterm(data: bytes, where: str = "derivation") -> Derivation:
    """Return the derivation of a .drv file's contents; InvalidDerivation tells `where` and at which byte."""
    reader = _Reader(data.decode("utf-8", "surrogateescape"), where)
    reader.expect("Derive(")
    outputs: dict[str, Output] = {}
    for _ in reader.items():
        name, path, method_algorithm, hash_hex = reader.tuple_of_strings(4)
        outputs[name] = Output(path, method_algorithm, hash_hex)
    reader.expect(",")
    inputs: dict[str, frozenset[str]] = {}
    for _ in reader.items():
        reader.expect("(")
        path = reader.string()
        reader.expect(",")
        inputs[path] = frozenset(reader.strings())
        reader.expect(")")
    reader.expect(",")
    sources = frozenset(reader.strings())
    reader.expect(",")
    system = reader.string()
    reader.expect(",")
    builder = reader.string()
    reader.expect(",")
    arguments = tuple(reader.strings())
    reader.expect(",")
    environment: dict[str, str] = {}
    for _ in reader.items():
        name, value = reader.tuple_of_strings(2)
        environment[name] = value
    reader.expect(")")
    if reader.at != len(reader.text):
        raise reader.fail("the end")
    return Derivation(outputs, inputs, sources, system, builder, arguments, environment)


# Hashes and paths.

ModuloOf = Callable[[str], bytes]
"""The modulo hash of the derivation at a path."""


def hash_modulo(derivation: Derivation, modulo_of: ModuloOf, *, mask_outputs: bool = False) -> bytes:
    """Return the SHA-256 digest that identifies what the derivation makes, whatever its inputs' own paths.

    A fixed output counts by its content's hash and path alone. `mask_outputs` blanks the derivation's own
    output paths: the form from which these paths are made.
    """
    fixed = derivation.fixed_output
    if fixed is not None and not mask_outputs:
        return fixed_fingerprint(fixed.hash, recursive=fixed.is_recursive, path=fixed.path).digest
    inputs: dict[str, frozenset[str]] = {}
    for path, names in derivation.input_derivations.items():
        key = modulo_of(path).hex()
        inputs[key] = inputs.get(key, frozenset()) | names
    masked = derivation
    if mask_outputs:
        outputs = {name: replace(output, path="") for name, output in derivation.outputs.items()}
        environment = {name: "" if name in outputs else value for name, value in derivation.environment.items()}
        masked = replace(derivation, outputs=outputs, environment=environment)
    return hash_of(to_aterm(replace(masked, input_derivations=inputs))).digest


def with_output_paths(derivation: Derivation, name: str, modulo_of: ModuloOf, store_dir: str = STORE_DIR) -> Derivation:
    """Return the derivation with the paths of its outputs filled in, also in its environment.

    Outputs must be all input-addressed, or one fixed `out`.
    """
    fixed = derivation.fixed_output
    paths: dict[str, str] = {}
    if fixed is not None:
        path_name = output_path_name(name, "out")
        path = fixed_path(path_name, fixed.hash, recursive=fixed.is_recursive, store_dir=store_dir)
        paths["out"] = path.absolute(store_dir)
    else:
        modulo = hash_modulo(derivation, modulo_of, mask_outputs=True)
        for output_name in derivation.outputs:
            paths[output_name] = output_path(output_name, modulo, name, store_dir).absolute(store_dir)
    outputs = {key: replace(output, path=paths[key]) for key, output in derivation.outputs.items()}
    environment = {key: paths.get(key, value) for key, value in derivation.environment.items()}
    return replace(derivation, outputs=outputs, environment=environment)


def derivation_path(derivation: Derivation, name: str, store_dir: str = STORE_DIR) -> StorePath:
    """Return the path of the .drv file itself."""
    references = [parse_store_path(path, store_dir) for path in derivation.input_derivations]
    references += [parse_store_path(path, store_dir) for path in derivation.input_sources]
    return text_path(name + DRV_SUFFIX, to_aterm(derivation), references, store_dir)


# JSON, as `nix show-derivation` of 2.8 writes it.


def to_json(derivation: Derivation) -> dict[str, Any]:
    """Return the JSON object of a derivation."""
    return {
        "outputs": {name: _output_to_json(output) for name, output in sorted(derivation.outputs.items())},
        "inputSrcs": sorted(derivation.input_sources),
        "inputDrvs": {path: sorted(names) for path, names in sorted(derivation.input_derivations.items())},
        "system": derivation.system,
        "builder": derivation.builder,
        "args": list(derivation.arguments),
        "env": dict(sorted(derivation.environment.items())),
    }


def _output_to_json(output: Output) -> dict[str, str]:
    fields = {"path": output.path, "hashAlgo": output.method_algorithm, "hash": output.hash_hex}
    return {key: value for key, value in fields.items() if value}


def from_json(value: Any, where: str = "derivation") -> Derivation:
    """Return the derivation of a JSON object; InvalidDerivation names the field at fault."""
    try:
        return Derivation(
            outputs={
                name: Output(entry.get("path", ""), entry.get("hashAlgo", ""), entry.get("hash", ""))
                for name, entry in value["outputs"].items()
            },
            input_derivations={path: frozenset(names) for path, names in value["inputDrvs"].items()},
            input_sources=frozenset(value["inputSrcs"]),
            system=value["system"],
            builder=value["builder"],
            arguments=tuple(value["args"]),
            environment=dict(value["env"]),
        )
    except KeyError as error:
        raise InvalidDerivation(f"{where}: field {error} is missing") from error
    except (AttributeError, TypeError) as error:
        raise InvalidDerivation(f"{where}: a field has the wrong type: {error}") from error
