"""Builtins that hash."""

from __future__ import annotations

from tvix.errors import InvalidInput
from tvix.eval.builtins.expect import expect_set, expect_text
from tvix.eval.builtins.registry import Registry, Table
from tvix.eval.errors import EvalError
from tvix.eval.values import MISSING, Value, force
from tvix.nix.hashes import ALGORITHMS, Algorithm, Hash, hash_of, parse_hash

TABLE = Table()


def register(registry: Registry) -> None:
    """Add this module's builtins."""
    registry.update(TABLE)
    evaluator = registry.evaluator

    @registry.primop("hashFile", "ss")
    def hash_file(algorithm: Value, path: Value) -> str:
        kind = _algorithm(algorithm, "builtins.hashFile")
        return hash_of(evaluator.io.read_file(evaluator.to_path(path, "builtins.hashFile")), kind).base16


def _algorithm(name: Value, what: str) -> Algorithm:
    expect_text(name, what)
    for algorithm in ALGORITHMS:
        if name == algorithm:
            return algorithm
    raise EvalError(f"unknown hash algorithm '{name}', in {what}: known are {', '.join(ALGORITHMS)}")


@TABLE.primop("hashString", "ss")
def hash_string(algorithm: Value, text: Value) -> str:
    kind = _algorithm(algorithm, "builtins.hashString")
    return hash_of(expect_text(text, "builtins.hashString").encode("utf-8", "surrogateescape"), kind).base16


@TABLE.primop("convertHash", "s")
def convert_hash(argument: Value) -> str:
    what = "builtins.convertHash"
    given = expect_set(argument, what)
    text = str(expect_text(force(given["hash"]), what))
    algorithm = given.get("hashAlgo", MISSING)
    try:
        parsed = parse_hash(text, None if algorithm is MISSING else _algorithm(force(algorithm), what))
    except InvalidInput as error:
        raise EvalError(f"{error}, in {what}") from error
    return _formatted(parsed, str(expect_text(force(given["toHashFormat"]), what)))


def _formatted(parsed: Hash, hash_format: str) -> str:
    if hash_format == "base16":
        return parsed.base16
    if hash_format in ("base32", "nix32"):
        return parsed.base32
    if hash_format == "base64":
        return parsed.base64
    if hash_format == "sri":
        return parsed.sri
    raise EvalError(f"unknown hash format '{hash_format}', expect 'base16', 'base32', 'base64', or 'sri'")
