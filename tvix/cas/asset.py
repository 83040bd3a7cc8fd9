"""What URIs stand for: the records of the Remote Asset API.

A record is named by kind, instance, digest function, one URI and all qualifiers, in any order; what was
pushed is found again by exactly the same qualifiers. Records point into the CAS: one whose content, or
anything it is said to reference, is gone counts as absent, and finding it renews the life of all of it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

from tvix.cas.digest import Digest, DigestFunction
from tvix.cas.interfaces import BlobStore, RecordStore
from tvix.cas.sql import Codec
from tvix.cas.tree import TreeWalker
from tvix.errors import InvalidInput

AssetKind = Literal["blob", "directory"]
Qualifiers = tuple[tuple[str, str], ...]
"""Names and values, sorted; the names are unique."""


class AssetKey(NamedTuple):
    """Names a record."""

    kind: AssetKind
    instance_name: str
    function: DigestFunction
    uri: str
    qualifiers: Qualifiers


@dataclass(frozen=True, slots=True)
class Asset:
    """A record: what a URI stands for."""

    digest: Digest
    """The blob, or the root Directory."""
    stored_at: float
    """When it was pushed, or when its retrieval began; seconds since the epoch."""
    expires_at: float = 0.0
    """When it is no longer to be given out; 0 for never."""
    references_blobs: tuple[Digest, ...] = ()
    references_directories: tuple[Digest, ...] = ()


AssetStore = RecordStore[AssetKey, Asset]


def check_qualifiers(qualifiers: Sequence[tuple[str, str]]) -> Qualifiers:
    """Return the qualifiers sorted; InvalidInput when a name is empty or stands twice."""
    names = [name for name, _ in qualifiers]
    for name in names:
        if not name or names.count(name) > 1:
            raise InvalidInput(f"qualifiers.name: {name!r} is empty or stands twice", field="qualifiers.name")
    return tuple(sorted(qualifiers))


def check_uris(uris: Sequence[str]) -> None:
    """Raise InvalidInput unless there is a URI and all look like one."""
    if not uris:
        raise InvalidInput("uris: at least one is needed", field="uris")
    for index, uri in enumerate(uris):
        scheme, colon, rest = uri.partition(":")
        if not (colon and rest and scheme.isascii() and scheme[:1].isalpha()) or any(c in uri for c in "\r\n\0"):
            raise InvalidInput(f"uris[{index}]: {uri[:400]!r} is not a URI", field=f"uris[{index}]")


class Assets:
    """The records over one store."""

    def __init__(self, blobs: BlobStore, records: AssetStore, *, now: Callable[[], float] = time.time) -> None:
        self._blobs = blobs
        self._records = records
        self._walker = TreeWalker(blobs, strict=False)
        self._now = now

    def __repr__(self) -> str:
        return f"<Assets in {self._records!r}>"

    async def push(self, keys: Sequence[AssetKey], asset: Asset) -> None:
        """Record what URIs stand for. InvalidInput when the content itself is not in the CAS."""
        if await self._blobs.find_missing([asset.digest]):
            raise InvalidInput(
                f"{asset.digest} is not in the CAS: upload it before it is pushed",
                field="blob_digest" if keys[0].kind == "blob" else "root_directory_digest",
            )
        for key in keys:
            await self._records.put(key, asset)

    async def find(self, key: AssetKey, *, oldest_accepted: float = 0.0) -> Asset | None:
        """Return the record if it is young enough and whole; all that it keeps alive counts as used then."""
        asset = await self._records.get(key)
        if asset is None or asset.stored_at < oldest_accepted or 0 < asset.expires_at <= self._now():
            return None
        trees = [*asset.references_directories, *([asset.digest] if key.kind == "directory" else [])]
        roots = [*asset.references_blobs, asset.digest]
        if await self._walker.missing_inputs(roots, trees):
            return None
        return asset


def _encode_key(key: AssetKey) -> bytes:
    # Qualifiers may hold credentials (http_header:…), so that only a hash of them is stored.
    return hashlib.sha256(json.dumps(key).encode()).digest()


def _encode(asset: Asset) -> bytes:
    return json.dumps(
        {
            "digest": asset.digest,
            "stored_at": asset.stored_at,
            "expires_at": asset.expires_at,
            "references_blobs": asset.references_blobs,
            "references_directories": asset.references_directories,
        }
    ).encode()


def _decode(data: bytes) -> Asset:
    try:
        fields = cast("dict[str, Any]", json.loads(data))
        return Asset(
            Digest(*fields["digest"]),
            fields["stored_at"],
            fields["expires_at"],
            tuple(Digest(*digest) for digest in fields["references_blobs"]),
            tuple(Digest(*digest) for digest in fields["references_directories"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not an asset record: {error}") from error


ASSETS: Codec[AssetKey, Asset] = Codec(_encode_key, _encode, _decode)
"""For `open_records(database, "assets", ASSETS)`."""
