"""Finds blobs by hash alone, as the HTTP cache protocol names them. One dictionary, made at the first question."""

from __future__ import annotations

from tvix.cas.digest import EMPTY, Digest, DigestFunction
from tvix.cas.disk.store import DiskBlobStore


class HashLookup:
    """Which digest a hash belongs to, for the blobs of one disk store.

    Evicted blobs are still found: whoever asks the store for the digest learns that it is gone.
    """

    def __init__(self, blobs: DiskBlobStore) -> None:
        self._blobs = blobs
        self._found: dict[tuple[DigestFunction, str], Digest] | None = None

    def __repr__(self) -> str:
        return f"<HashLookup of {self._blobs!r}>"

    def find(self, function: DigestFunction, hash_hex: str) -> Digest | None:
        """Return the digest with this hash, None when no blob has it."""
        if hash_hex == EMPTY[function].hash:
            return EMPTY[function]
        if self._found is None:
            self._found = {digest[:2]: digest for digest in self._blobs.digests()}
            self._blobs.follow(self._add)
        else:
            self._blobs.catch_up()
        return self._found.get((function, hash_hex))

    def _add(self, digest: Digest) -> None:
        assert self._found is not None
        self._found[digest[:2]] = digest
