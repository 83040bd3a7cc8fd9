"""Digests: the names of blobs. Pure.

A digest is (function, hash, size). Two blobs whose 64 hex digits agree but whose function or size
differ are different blobs. Everything inside the program works on `Digest` values that were checked
once, where they came in; reference: Digest and DigestFunction in remote_apis/remote_execution.proto.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, Protocol

import blake3

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.sha256tree import Sha256Tree
from tvix.errors import InvalidDigest

DigestFunction = Literal["sha256", "blake3", "sha1", "sha384", "sha512", "md5", "sha256tree"]
"""The functions we compute, spelled as in resource names."""

MAX_SIZE_BYTES = 2**63 - 1


class Hasher(Protocol):
    """The part of hashlib's interface that we use."""

    def update(self, data: bytes | memoryview, /) -> object:
        """Feed bytes."""

    def hexdigest(self) -> str:
        """Return the lowercase hex hash of all bytes fed so far."""


class FunctionInfo(NamedTuple):
    """What there is to know of a digest function."""

    wire: re_pb2.DigestFunction.Value.ValueType
    hex_length: int
    new: Callable[[], Hasher]
    named_in_resources: bool
    """Whether resource names must spell the function out because its length does not tell."""


FUNCTIONS: dict[DigestFunction, FunctionInfo] = {
    "sha256": FunctionInfo(re_pb2.DigestFunction.SHA256, 64, hashlib.sha256, False),
    "blake3": FunctionInfo(re_pb2.DigestFunction.BLAKE3, 64, blake3.blake3, True),
    "sha1": FunctionInfo(re_pb2.DigestFunction.SHA1, 40, hashlib.sha1, False),
    "sha384": FunctionInfo(re_pb2.DigestFunction.SHA384, 96, hashlib.sha384, False),
    "sha512": FunctionInfo(re_pb2.DigestFunction.SHA512, 128, hashlib.sha512, False),
    "md5": FunctionInfo(re_pb2.DigestFunction.MD5, 32, hashlib.md5, False),
    "sha256tree": FunctionInfo(re_pb2.DigestFunction.SHA256TREE, 64, Sha256Tree, True),
}
"""Every supported function, the preferred one first."""

_BY_WIRE: dict[int, DigestFunction] = {info.wire: name for name, info in FUNCTIONS.items()}
_BY_HEX_LENGTH: dict[int, DigestFunction] = {
    info.hex_length: name for name, info in FUNCTIONS.items() if not info.named_in_resources
}
_IS_HASH: dict[DigestFunction, Callable[[str], object]] = {
    name: re.compile(rf"[0-9a-f]{{{info.hex_length}}}").fullmatch for name, info in FUNCTIONS.items()
}


class Digest(NamedTuple):
    """The name of a blob. Made by `make_digest` and its kin, which check it; ordered, hashable."""

    function: DigestFunction
    hash: str
    size_bytes: int

    def __str__(self) -> str:
        prefix = f"{self.function}/" if FUNCTIONS[self.function].named_in_resources else ""
        return f"{prefix}{self.hash}/{self.size_bytes}"


def make_digest(function: DigestFunction, hash_hex: str, size_bytes: int, *, field: str = "digest") -> Digest:
    """Return the checked digest; InvalidDigest names `field` and what is wrong with it."""
    if not _IS_HASH[function](hash_hex):
        shown = hash_hex if len(hash_hex) <= 140 else f"{hash_hex[:140]}…"
        raise InvalidDigest(
            f"{field}.hash: {shown!r} is not a {function} hash ({FUNCTIONS[function].hex_length} lowercase hex digits)",
            field=f"{field}.hash",
        )
    if not 0 <= size_bytes <= MAX_SIZE_BYTES:
        raise InvalidDigest(f"{field}.size_bytes: {size_bytes} is negative or too large", field=f"{field}.size_bytes")
    return Digest(function, hash_hex, size_bytes)


def function_from_wire(value: int, hash_hex: str, *, field: str = "digest_function") -> DigestFunction:
    """Return the function of a request field; when unset (0), infer it from the hash's length.

    BLAKE3 and SHA256TREE are never inferred: their length is SHA-256's.
    """
    if value:
        function = _BY_WIRE.get(value)
        if function is None:
            known = ", ".join(FUNCTIONS)
            name = re_pb2.DigestFunction.Value.Name(value) if value in re_pb2.DigestFunction.Value.values() else value  # type: ignore[arg-type]
            raise InvalidDigest(f"{field}: {name} is not supported; supported are {known}", field=field)
        return function
    function = _BY_HEX_LENGTH.get(len(hash_hex))
    if function is None:
        raise InvalidDigest(
            f"{field} is unset and no function has hashes of {len(hash_hex)} hex digits: {hash_hex[:140]!r}",
            field=field,
        )
    return function


def function_to_wire(function: DigestFunction) -> re_pb2.DigestFunction.Value.ValueType:
    """Return the enum value of a function."""
    return FUNCTIONS[function].wire


def digest_from_proto(message: re_pb2.Digest, function_value: int = 0, *, field: str = "digest") -> Digest:
    """Return the checked digest of a wire message; `function_value` is the request's digest_function."""
    function = function_from_wire(function_value, message.hash)
    return make_digest(function, message.hash, message.size_bytes, field=field)


def digest_to_proto(digest: Digest) -> re_pb2.Digest:
    """Return the wire form; the function travels beside it, in the request's own field."""
    return re_pb2.Digest(hash=digest.hash, size_bytes=digest.size_bytes)


def digest_of(data: bytes, function: DigestFunction = "sha256") -> Digest:
    """Return the digest of bytes in memory."""
    hasher = FUNCTIONS[function].new()
    hasher.update(data)
    return Digest(function, hasher.hexdigest(), len(data))


def digest_of_chunks(chunks: Iterable[bytes], function: DigestFunction) -> Digest:
    """Return the digest of the concatenation of `chunks`."""
    hasher = FUNCTIONS[function].new()
    size_bytes = 0
    for chunk in chunks:
        hasher.update(chunk)
        size_bytes += len(chunk)
    return Digest(function, hasher.hexdigest(), size_bytes)


EMPTY: dict[DigestFunction, Digest] = {name: digest_of(b"", name) for name in FUNCTIONS}
"""The digest of the empty blob under each function; it is always present in every store."""
