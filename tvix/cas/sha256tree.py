"""SHA256TREE: SHA-256 over 1 KiB leaves, joined by a binary tree. Pure.

A blob of up to 1024 bytes hashes as plain SHA-256. A longer one is cut at the largest power of two
(times 1024) below its length; the hashes of both parts go once through the SHA-256 block cipher with
another initial state and without the closing addition. Reference: DigestFunction.SHA256TREE in the
Remote Execution API; its published test vectors are in tests/cas/test_sha256tree.py.

hashlib offers no bare block cipher, so OpenSSL's SHA256_Transform is called through ctypes, and the
addition it ends with is taken back. Where that symbol is missing, a Python cipher does the same.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import struct
from collections.abc import Callable

LEAF_BYTES = 1024
_STATE = (0xCBBB9D5D, 0x629A292A, 0x9159015A, 0x152FECD8, 0x67332667, 0x8EB44A87, 0xDB0C2E0D, 0x47B5481D)
_MASK = 0xFFFFFFFF


def _primes(count: int) -> list[int]:
    found: list[int] = []
    candidate = 2
    while len(found) < count:
        if all(candidate % prime for prime in found):
            found.append(candidate)
        candidate += 1
    return found


_K = tuple(int((prime ** (1 / 3)) % 1 * 2**32) for prime in _primes(64))
"""The round constants: leading fractional bits of the cube roots of the first 64 primes."""


def _rotate(word: int, count: int) -> int:
    return (word >> count | word << (32 - count)) & _MASK


def join_in_python(left: bytes, right: bytes) -> bytes:
    """Return the hash of a node from its children's, by the cipher written out (FIPS 180-4, 6.2.2)."""
    schedule = list(struct.unpack(">16I", left + right))
    for i in range(16, 64):
        w15, w2 = schedule[i - 15], schedule[i - 2]
        s0 = _rotate(w15, 7) ^ _rotate(w15, 18) ^ w15 >> 3
        s1 = _rotate(w2, 17) ^ _rotate(w2, 19) ^ w2 >> 10
        schedule.append((schedule[i - 16] + s0 + schedule[i - 7] + s1) & _MASK)
    a, b, c, d, e, f, g, h = _STATE
    for k, w in zip(_K, schedule, strict=True):
        s1 = _rotate(e, 6) ^ _rotate(e, 11) ^ _rotate(e, 25)
        t1 = h + s1 + (e & f ^ ~e & g) + k + w
        s0 = _rotate(a, 2) ^ _rotate(a, 13) ^ _rotate(a, 22)
        t2 = s0 + (a & b ^ a & c ^ b & c)
        a, b, c, d, e, f, g, h = (t1 + t2) & _MASK, a, b, c, (d + t1) & _MASK, e, f, g
    return struct.pack(">8I", a, b, c, d, e, f, g, h)


class _Sha256Context(ctypes.Structure):
    """OpenSSL's SHA256_CTX; only `h` is used."""

    _fields_ = [
        ("h", ctypes.c_uint32 * 8),
        ("nl", ctypes.c_uint32),
        ("nh", ctypes.c_uint32),
        ("data", ctypes.c_uint32 * 16),
        ("num", ctypes.c_uint),
        ("md_len", ctypes.c_uint),
    ]


def _openssl_join() -> Callable[[bytes, bytes], bytes] | None:
    try:
        transform = ctypes.CDLL(ctypes.util.find_library("crypto") or "libcrypto.so.3").SHA256_Transform
    except (OSError, AttributeError):
        return None
    transform.argtypes = [ctypes.POINTER(_Sha256Context), ctypes.c_char_p]
    transform.restype = None
    pack = struct.Struct(">8I").pack

    def join(left: bytes, right: bytes) -> bytes:
        context = _Sha256Context()
        context.h[:] = _STATE
        transform(context, left + right)
        return pack(*[(word - start) & _MASK for word, start in zip(context.h, _STATE, strict=True)])

    return join if join(bytes(32), bytes(32)) == join_in_python(bytes(32), bytes(32)) else None


_join = _openssl_join() or join_in_python


class Sha256Tree:
    """A streaming SHA256TREE hasher with hashlib's interface."""

    def __init__(self) -> None:
        self._tail = bytearray()
        self._subtrees: list[bytes] = []
        """Hashes of complete subtrees, larger ones first; the set bits of `_leaves` give their sizes."""
        self._leaves = 0

    def update(self, data: bytes | memoryview, /) -> None:
        """Feed bytes. A leaf is only closed when more bytes follow, for the last one may be the root."""
        self._tail += data
        whole = max(0, (len(self._tail) - 1) // LEAF_BYTES)
        if not whole:
            return
        with memoryview(self._tail) as view:
            for start in range(0, whole * LEAF_BYTES, LEAF_BYTES):
                self._push(hashlib.sha256(view[start : start + LEAF_BYTES]).digest())
        del self._tail[: whole * LEAF_BYTES]

    def _push(self, leaf: bytes) -> None:
        # Equal-sized neighbours are joined only once something follows them, which holds here.
        count = self._leaves
        while count & 1:
            leaf = _join(self._subtrees.pop(), leaf)
            count >>= 1
        self._subtrees.append(leaf)
        self._leaves += 1

    def digest(self) -> bytes:
        """Return the 32-byte hash of all bytes fed so far."""
        node = hashlib.sha256(self._tail).digest()
        for subtree in reversed(self._subtrees):
            node = _join(subtree, node)
        return node

    def hexdigest(self) -> str:
        """Return the hash as 64 lowercase hex digits."""
        return self.digest().hex()
