"""Store paths: `<store>/<32 digits>-<name>`, and how each kind of content gets its path. Pure.

The digits are 20 bytes in Nix's base 32, folded from a SHA-256 over `type:sha256:inner:store:name`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from tvix.errors import InvalidInput
from tvix.nix import base32
from tvix.nix.hashes import Hash, hash_of

STORE_DIR = "/nix/store"
HASH_DIGITS = 32
HASH_BYTES = 20
MAX_NAME_CHARACTERS = 211

_NAME = re.compile(r"[0-9A-Za-z+\-._?=]+").fullmatch
_HASH = re.compile(rf"[{base32.ALPHABET}]{{{HASH_DIGITS}}}").fullmatch


def check_name(name: str) -> str:
    """Return `name` if it may be the name of a store path, else InvalidInput says what is wrong."""
    if not name:
        raise InvalidInput("the name of a store path is empty")
    if len(name) > MAX_NAME_CHARACTERS:
        raise InvalidInput(f"name {name!r} has {len(name)} characters; {MAX_NAME_CHARACTERS} are allowed")
    if not _NAME(name):
        wrong = next(character for character in name if not _NAME(character))
        raise InvalidInput(f"name {name!r} contains {wrong!r}; allowed are letters, digits and +-._?=")
    if name in (".", "..") or name.startswith((".-", "..-")):
        raise InvalidInput(f"name {name!r} begins with a path component")
    return name


@dataclass(frozen=True, slots=True, order=True)
class StorePath:
    """The base name of a store path; ordered as Nix orders them."""

    digits: str
    name: str

    @property
    def hash_bytes(self) -> bytes:
        """The 20 bytes of the hash part."""
        return base32.decode(self.digits)

    @property
    def base_name(self) -> str:
        """`<digits>-<name>`."""
        return f"{self.digits}-{self.name}"

    def absolute(self, store_dir: str = STORE_DIR) -> str:
        """The path as programs see it."""
        return f"{store_dir}/{self.digits}-{self.name}"

    @property
    def is_derivation(self) -> bool:
        """Whether it names a .drv file."""
        return self.name.endswith(".drv")

    def __str__(self) -> str:
        return self.absolute()


def parse_base_name(text: str) -> StorePath:
    """Return the store path called `<digits>-<name>`; InvalidInput otherwise."""
    digits, dash, name = text[:HASH_DIGITS], text[HASH_DIGITS : HASH_DIGITS + 1], text[HASH_DIGITS + 1 :]
    if dash != "-" or not _HASH(digits):
        raise InvalidInput(f"{text!r} is not a store path: it does not begin with {HASH_DIGITS} base-32 digits and '-'")
    return StorePath(digits, check_name(name))


def parse_store_path(text: str, store_dir: str = STORE_DIR) -> StorePath:
    """Return the store path at `text`, which must be directly in the store; InvalidInput otherwise."""
    parent, slash, base_name = text.rpartition("/")
    if not slash or parent != store_dir:
        raise InvalidInput(f"path {text!r} is not in the store {store_dir}")
    return parse_base_name(base_name)


def split_store_path(text: str, store_dir: str = STORE_DIR) -> tuple[StorePath, str]:
    """Return the store path that `text` lies in, and the rest: empty, or beginning with a slash."""
    if not text.startswith(f"{store_dir}/"):
        raise InvalidInput(f"path {text!r} is not in the store {store_dir}")
    base_name, slash, rest = text[len(store_dir) + 1 :].partition("/")
    return parse_base_name(base_name), slash + rest


def compress(digest: bytes, size: int = HASH_BYTES) -> bytes:
    """Fold a digest to `size` bytes by exclusive or."""
    folded = 0
    for start in range(0, len(digest), size):
        folded ^= int.from_bytes(digest[start : start + size], "little")
    return folded.to_bytes(size, "little")


def make_path(kind: str, inner: bytes, name: str, store_dir: str = STORE_DIR) -> StorePath:
    """Return the path of something of a `kind` whose fingerprint is the SHA-256 digest `inner`."""
    check_name(name)
    fingerprint = f"{kind}:sha256:{inner.hex()}:{store_dir}:{name}"
    return StorePath(base32.encode(compress(hashlib.sha256(fingerprint.encode()).digest())), name)


def _with_references(kind: str, references: Iterable[StorePath], store_dir: str, *, to_self: bool = False) -> str:
    listed = "".join(f":{path.absolute(store_dir)}" for path in sorted(set(references)))
    return kind + listed + (":self" if to_self else "")


def text_path(
    name: str, contents: bytes, references: Iterable[StorePath] = (), store_dir: str = STORE_DIR
) -> StorePath:
    """Return the path of a text file, such as a derivation or what builtins.toFile makes."""
    return make_path(_with_references("text", references, store_dir), hash_of(contents).digest, name, store_dir)


def fixed_path(
    name: str,
    content_hash: Hash,
    *,
    recursive: bool,
    references: Iterable[StorePath] = (),
    to_self: bool = False,
    store_dir: str = STORE_DIR,
) -> StorePath:
    """Return the path of content known by its hash: of the NAR if `recursive`, else of the one file.

    Only a recursive SHA-256 may have references (InvalidInput): the others are plain fixed outputs.
    """
    if recursive and content_hash.algorithm == "sha256":
        kind = _with_references("source", references, store_dir, to_self=to_self)
        return make_path(kind, content_hash.digest, name, store_dir)
    if to_self or any(True for _ in references):
        raise InvalidInput(f"fixed output {name!r}: only recursive sha256 content may have references")
    return make_path("output:out", fixed_fingerprint(content_hash, recursive=recursive).digest, name, store_dir)


def fixed_fingerprint(content_hash: Hash, *, recursive: bool, path: str = "") -> Hash:
    """Return the hash that identifies a fixed output; with its `path`, as the modulo hash of its derivation."""
    prefix = "r:" if recursive else ""
    return hash_of(f"fixed:out:{prefix}{content_hash.algorithm}:{content_hash.base16}:{path}".encode())


def output_path(output_name: str, modulo: bytes, derivation_name: str, store_dir: str = STORE_DIR) -> StorePath:
    """Return the path of an input-addressed output, from the derivation's masked modulo hash."""
    return make_path(f"output:{output_name}", modulo, output_path_name(derivation_name, output_name), store_dir)


def output_path_name(derivation_name: str, output_name: str) -> str:
    """Return the name part of an output's path."""
    return derivation_name if output_name == "out" else f"{derivation_name}-{output_name}"
