"""Narinfos: what a binary cache says of a store path. Pure.

Lines of `Field: value`. Required: StorePath, URL, NarHash, NarSize. A missing Compression means bzip2,
which is Nix's old default. The fingerprint is what signatures are over.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tvix.errors import InvalidInput
from tvix.nix.hashes import Hash, parse_hash
from tvix.nix.signature import Signature, parse_signature
from tvix.nix.store_path import STORE_DIR, StorePath, parse_base_name, parse_store_path

DEFAULT_COMPRESSION = "bzip2"
_UNKNOWN_DERIVER = "unknown-deriver"


class InvalidNarInfo(InvalidInput):
    """A narinfo is malformed; the message names the field."""


@dataclass(frozen=True, slots=True)
class NarInfo:
    """A parsed narinfo."""

    store_path: StorePath
    url: str
    """Where the (compressed) NAR is, relative to the cache; may have a query."""
    nar_hash: Hash
    nar_size_bytes: int
    compression: str = "none"
    file_hash: Hash | None = None
    file_size_bytes: int | None = None
    references: tuple[StorePath, ...] = ()
    deriver: StorePath | None = None
    system: str | None = None
    signatures: tuple[Signature, ...] = ()
    content_address: str | None = None

    def fingerprint(self, store_dir: str = STORE_DIR) -> bytes:
        """Return what signatures are made over."""
        return fingerprint(self.store_path, self.nar_hash, self.nar_size_bytes, self.references, store_dir)


def fingerprint(
    store_path: StorePath,
    nar_hash: Hash,
    nar_size_bytes: int,
    references: Iterable[StorePath],
    store_dir: str = STORE_DIR,
) -> bytes:
    """Return `1;<path>;<nar hash>;<nar size>;<references, sorted, comma between>`."""
    listed = ",".join(path.absolute(store_dir) for path in sorted(references))
    return f"1;{store_path.absolute(store_dir)};{nar_hash.nix};{nar_size_bytes};{listed}".encode()


def render(info: NarInfo, store_dir: str = STORE_DIR) -> str:
    """Return the text of a narinfo, fields in Nix's order."""
    lines = [
        f"StorePath: {info.store_path.absolute(store_dir)}",
        f"URL: {info.url}",
        f"Compression: {info.compression}",
    ]
    if info.file_hash is not None:
        lines.append(f"FileHash: {info.file_hash.nix}")
    if info.file_size_bytes is not None:
        lines.append(f"FileSize: {info.file_size_bytes}")
    lines.append(f"NarHash: {info.nar_hash.nix}")
    lines.append(f"NarSize: {info.nar_size_bytes}")
    lines.append(f"References: {' '.join(path.base_name for path in info.references)}")
    if info.deriver is not None:
        lines.append(f"Deriver: {info.deriver.base_name}")
    if info.system is not None:
        lines.append(f"System: {info.system}")
    lines.extend(f"Sig: {signature}" for signature in info.signatures)
    if info.content_address is not None:
        lines.append(f"CA: {info.content_address}")
    return "\n".join(lines) + "\n"


def _fields(text: str, where: str) -> tuple[dict[str, str], list[str]]:
    fields: dict[str, str] = {}
    signatures: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line:
            continue
        name, colon, value = line.partition(":")
        if not colon:
            raise InvalidNarInfo(f"{where}, line {number}: {line[:60]!r} has no colon")
        value = value.strip()
        if name == "Sig":
            signatures.append(value)
        elif name in fields:
            raise InvalidNarInfo(f"{where}, line {number}: {name} stands twice")
        else:
            fields[name] = value
    return fields, signatures


def _size(fields: dict[str, str], name: str, where: str) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if not value.isascii() or not value.isdigit():
        raise InvalidNarInfo(f"{where}: {name} {value!r} is not a number")
    return int(value)


def parse(text: str, where: str = "narinfo", store_dir: str = STORE_DIR) -> NarInfo:
    """Return the narinfo written in `text`; InvalidNarInfo names the field at fault. Unknown fields are
    skipped, as Nix skips them.
    """
    fields, signatures = _fields(text, where)
    for required in ("StorePath", "URL", "NarHash", "NarSize"):
        if not fields.get(required):
            raise InvalidNarInfo(f"{where}: {required} is missing")
    nar_size_bytes = _size(fields, "NarSize", where)
    if not nar_size_bytes:
        raise InvalidNarInfo(f"{where}: NarSize must be greater than 0")
    deriver = fields.get("Deriver", _UNKNOWN_DERIVER)
    try:
        return NarInfo(
            store_path=parse_store_path(fields["StorePath"], store_dir),
            url=fields["URL"],
            nar_hash=parse_hash(fields["NarHash"]),
            nar_size_bytes=nar_size_bytes,
            compression=fields.get("Compression") or DEFAULT_COMPRESSION,
            file_hash=parse_hash(fields["FileHash"]) if fields.get("FileHash") else None,
            file_size_bytes=_size(fields, "FileSize", where),
            references=tuple(parse_base_name(name) for name in fields.get("References", "").split()),
            deriver=None if deriver in ("", _UNKNOWN_DERIVER) else parse_base_name(deriver),
            system=fields.get("System"),
            signatures=tuple(parse_signature(value) for value in signatures),
            content_address=fields.get("CA") or None,
        )
    except InvalidNarInfo:
        raise
    except InvalidInput as error:
        raise InvalidNarInfo(f"{where}: {error}") from error
