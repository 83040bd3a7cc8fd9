"""Nix's base 32. Pure.

The alphabet leaves out e, o, u and t. Digits are taken from the least significant five bits of the
bytes read as a little-endian number, and written most significant first.
"""

from __future__ import annotations

from tvix.errors import InvalidInput

ALPHABET = "0123456789abcdfghijklmnpqrsvwxyz"
_PAIRS = [high + low for high in ALPHABET for low in ALPHABET]
_VALUES = {digit: value for value, digit in enumerate(ALPHABET)}


def encoded_length(count: int) -> int:
    """Return how many digits `count` bytes take."""
    return (count * 8 + 4) // 5


def encode(data: bytes) -> str:
    """Return the digits of some bytes."""
    number = int.from_bytes(data, "little")
    count = encoded_length(len(data))
    first = ALPHABET[number >> (count - 1) * 5] if count % 2 else ""
    return first + "".join([_PAIRS[number >> shift & 1023] for shift in range((count // 2 - 1) * 10, -1, -10)])


def decode(text: str) -> bytes:
    """Return the bytes of some digits; InvalidInput for a foreign digit or bits that no byte holds."""
    number = 0
    for digit in text:
        value = _VALUES.get(digit)
        if value is None:
            raise InvalidInput(f"{text!r} is not Nix base 32: {digit!r} is not one of its digits")
        number = number << 5 | value
    count = len(text) * 5 // 8
    if encoded_length(count) != len(text) or number >> count * 8:
        raise InvalidInput(f"{text!r} is not Nix base 32: {len(text)} digits that no whole number of bytes gives")
    return number.to_bytes(count, "little")
