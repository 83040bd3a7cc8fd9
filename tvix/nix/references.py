"""Scanning streams for references: which store paths' hash parts stand in the bytes. Pure.

A reference is the 32 base-32 digits of a store path's hash anywhere in the contents. Only digits of known
candidates count. Matches across the borders of chunks are found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tvix.nix.base32 import ALPHABET
from tvix.nix.store_path import HASH_DIGITS, StorePath

_RUNS = re.compile(rb"[" + ALPHABET.encode() + rb"]{32,}")


class ReferenceScanner:
    """Finds which of the candidates are referred to in the bytes fed."""

    def __init__(self, candidates: Iterable[StorePath]) -> None:
        self._wanted = {path.digits.encode(): path for path in candidates}
        self._found: set[StorePath] = set()
        self._tail = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the contents."""
        if not self._wanted:
            return
        window = self._tail + data
        for run in _RUNS.finditer(window):
            digits = run[0]
            for start in range(len(digits) - HASH_DIGITS + 1):
                path = self._wanted.pop(digits[start : start + HASH_DIGITS], None)
                if path is not None:
                    self._found.add(path)
        self._tail = window[-(HASH_DIGITS - 1) :]

    def separate(self) -> None:
        """Begin contents that do not continue the last: nothing is found across this point."""
        self._tail = b""

    @property
    def found(self) -> frozenset[StorePath]:
        """The candidates referred to so far."""
        return frozenset(self._found)


def scan(data: bytes, candidates: Iterable[StorePath]) -> frozenset[StorePath]:
    """Return which of the candidates are referred to in some bytes."""
    scanner = ReferenceScanner(candidates)
    scanner.feed(data)
    return scanner.found
