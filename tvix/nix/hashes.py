"""Hashes as Nix writes them: base 16, base 32, base 64 and SRI, with and without the algorithm. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

from tvix.errors import InvalidInput
from tvix.nix import base32

Algorithm = Literal["md5", "sha1", "sha256", "sha512"]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
SIZES: dict[Algorithm, int] = {"md5": 16, "sha1": 20, "sha256": 32, "sha512": 64}
"""Bytes of a digest."""


def parse_algorithm(name: str) -> Algorithm:
    """Return the algorithm called `name`; InvalidInput lists those that are known."""
    for algorithm in ALGORITHMS:
        if name == algorithm:
            return algorithm
    raise InvalidInput(f"unknown hash algorithm {name!r}; known are {', '.join(ALGORITHMS)}")


@dataclass(frozen=True, slots=True, order=True)
class Hash:
    """A digest and its algorithm."""

    algorithm: Algorithm
    digest: bytes

    def __post_init__(self) -> None:
        if len(self.digest) != SIZES[self.algorithm]:
            raise InvalidInput(
                f"a {self.algorithm} digest has {SIZES[self.algorithm]} bytes, this one {len(self.digest)}"
            )

    @property
    def base16(self) -> str:
        """Lowercase hex."""
        return self.digest.hex()

    @property
    def base32(self) -> str:
        """Nix's base 32."""
        return base32.encode(self.digest)

    @property
    def base64(self) -> str:
        """Base 64 with padding."""
        return base64.b64encode(self.digest).decode()

    @property
    def sri(self) -> str:
        """`sha256-<base 64>`, as in Subresource Integrity."""
        return f"{self.algorithm}-{self.base64}"

    @property
    def nix(self) -> str:
        """`sha256:<base 32>`, as in narinfos and content addresses."""
        return f"{self.algorithm}:{self.base32}"

    def __str__(self) -> str:
        return self.nix


def hash_of(data: bytes, algorithm: Algorithm = "sha256") -> Hash:
    """Return the hash of bytes in memory."""
    return Hash(algorithm, hashlib.new(algorithm, data, usedforsecurity=False).digest())


def zero(algorithm: Algorithm) -> Hash:
    """Return the hash of all zero bits, which stands for "not known yet"."""
    return Hash(algorithm, bytes(SIZES[algorithm]))


def _decode_digits(text: str, algorithm: Algorithm) -> bytes:
    size = SIZES[algorithm]
    try:
        if len(text) == size * 2:
            return bytes.fromhex(text)
        if len(text) == base32.encoded_length(size):
            return base32.decode(text)
        if len(text) == (size + 2) // 3 * 4:
            return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error, InvalidInput) as error:
        raise InvalidInput(f"hash {text!r} has digits that its encoding does not: {error}") from error
    raise InvalidInput(f"hash {text!r} has the wrong length for {algorithm}")


def parse_hash(text: str, algorithm: Algorithm | None = None) -> Hash:
    """Return the hash written as `algo:digits`, `algo-base64` (SRI), or bare digits if `algorithm` is given.

    Base 16, 32 and 64 are told apart by length. InvalidInput when `text` names another algorithm than the
    one given, or none at all.
    """
    for separator in (":", "-"):
        name, found, digits = text.partition(separator)
        if not found or name not in ALGORITHMS:
            continue
        named = parse_algorithm(name)
        if algorithm not in (None, named):
            raise InvalidInput(f"hash {text!r} should have algorithm {algorithm}")
        if separator == "-":
            return _parse_sri(text, named, digits)
        return Hash(named, _decode_digits(digits, named))
    if algorithm is None:
        raise InvalidInput(f"hash {text!r} does not say its algorithm")
    return Hash(algorithm, _decode_digits(text, algorithm))


def _parse_sri(text: str, algorithm: Algorithm, digits: str) -> Hash:
    # Nix stops at the first "=" and does without padding; real package sets have such hashes.
    bare = digits.partition("=")[0].replace("\n", "")
    bare = bare[: len(bare) - (len(bare) % 4 == 1)]
    try:
        return Hash(algorithm, base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True))
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(f"SRI hash {text!r} is not base 64: {error}") from error
