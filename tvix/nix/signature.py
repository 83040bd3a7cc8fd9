"""Ed25519 keys and signatures in Nix's format: `name:<base 64>`. Pure.

A secret key's 64 bytes are the 32-byte seed and the 32-byte public key; a public key has 32 bytes, a
signature 64. Names say who signs (`cache.example.org-1`).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tvix.errors import InvalidInput


def _split(text: str, what: str, size: int) -> tuple[str, bytes]:
    name, colon, encoded = text.strip().partition(":")
    if not colon or not name:
        raise InvalidInput(f"{what} {_shortened(text)!r} is not of the form name:base64")
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(f"{what} {name!r} is not base 64: {error}") from error
    if len(data) != size:
        raise InvalidInput(f"{what} {name!r} has {len(data)} bytes; {size} are due")
    return name, data


def _shortened(text: str) -> str:
    return text if len(text) < 20 else text[:12] + "…"


@dataclass(frozen=True, slots=True)
class Signature:
    """Who signed, and the 64 bytes."""

    key_name: str
    data: bytes

    def __str__(self) -> str:
        return f"{self.key_name}:{base64.b64encode(self.data).decode()}"


def parse_signature(text: str) -> Signature:
    """Return the signature written `name:base64`; InvalidInput otherwise."""
    return Signature(*_split(text, "signature", 64))


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key to verify with."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return f"{self.name}:{base64.b64encode(self.data).decode()}"

    def verifies(self, message: bytes, signature: Signature) -> bool:
        """Whether this key signed exactly this message."""
        if signature.key_name != self.name:
            return False
        try:
            Ed25519PublicKey.from_public_bytes(self.data).verify(signature.data, message)
        except InvalidSignature:
            return False
        return True


def parse_public_key(text: str) -> PublicKey:
    """Return the public key written `name:base64`; InvalidInput otherwise."""
    return PublicKey(*_split(text, "public key", 32))


@dataclass(frozen=True, slots=True)
class SecretKey:
    """A key to sign with; its representation does not show the secret."""

    name: str
    data: bytes = field(repr=False)

    def __str__(self) -> str:
        return f"{self.name}:{base64.b64encode(self.data).decode()}"

    @property
    def public_key(self) -> PublicKey:
        """The key that verifies what this one signs."""
        return PublicKey(self.name, self.data[32:])

    def sign(self, message: bytes) -> Signature:
        """Return the signature of a message."""
        return Signature(self.name, Ed25519PrivateKey.from_private_bytes(self.data[:32]).sign(message))


def parse_secret_key(text: str) -> SecretKey:
    """Return the secret key written `name:base64`; InvalidInput otherwise, without showing it."""
    return SecretKey(*_split(text, "secret key", 64))


def generate_secret_key(name: str) -> SecretKey:
    """Return a fresh key; InvalidInput for a name that is empty or holds a colon or white space."""
    if not name or ":" in name or any(character.isspace() for character in name):
        raise InvalidInput(f"key name {name!r} must not be empty or hold a colon or white space")
    private = Ed25519PrivateKey.generate()
    raw = serialization.Encoding.Raw
    seed = private.private_bytes(raw, serialization.PrivateFormat.Raw, serialization.NoEncryption())
    return SecretKey(name, seed + private.public_key().public_bytes(raw, serialization.PublicFormat.Raw))


def signed_by_any(message: bytes, signatures: Iterable[Signature], trusted: Iterable[PublicKey]) -> bool:
    """Whether one of the trusted keys made one of the signatures."""
    keys = {key.name: key for key in trusted}
    for signature in signatures:
        key = keys.get(signature.key_name)
        if key is not None and key.verifies(message, signature):
            return True
    return False
