"""Resource names of the ByteStream API, and instance names. Pure.

    read    {instance/}blobs/{function/}{hash}/{size}
            {instance/}compressed-blobs/{compressor}/{function/}{hash}/{size}
    write   {instance/}uploads/{uuid}/blobs/{function/}{hash}/{size}{/metadata…}
            {instance/}uploads/{uuid}/compressed-blobs/{compressor}/{function/}{hash}/{size}{/metadata…}

`function/` is there only for functions that a hash's length does not tell (blake3, sha256tree). The
names of log streams have a grammar of their own, see logstream.py.
"""

from __future__ import annotations

import re
from typing import NamedTuple, cast

from tvix.cas.digest import FUNCTIONS, Digest, DigestFunction, function_from_wire, make_digest
from tvix.errors import InvalidDigest, InvalidResourceName

RESERVED_SEGMENTS = frozenset(
    {"blobs", "uploads", "actions", "actionResults", "operations", "capabilities", "compressed-blobs"}
)
"""What no segment of an instance name may be, so that names can be taken apart."""

COMPRESSORS = frozenset({"zstd"})
"""The compressors that we speak; the spec knows `deflate` and `brotli` besides."""

MAX_NAME_LENGTH = 4096
"""Longer names are refused unread."""

_NAMED_FUNCTIONS = {name: name for name, info in FUNCTIONS.items() if info.named_in_resources}
_HEX_LENGTHS = frozenset(info.hex_length for info in FUNCTIONS.values())
_IS_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}").fullmatch
_IS_SIZE = re.compile(r"0|[1-9][0-9]{0,18}").fullmatch


class ReadName(NamedTuple):
    """What a Read asks for."""

    instance_name: str
    digest: Digest
    compressor: str
    """`zstd`, or empty for the plain bytes."""


class WriteName(NamedTuple):
    """What a Write brings. Clients may use one uuid for many blobs, so it is never a key by itself."""

    instance_name: str
    uuid: str
    digest: Digest
    compressor: str
    """`zstd`, or empty for the plain bytes."""


_valid_instance_names: set[str] = {""}


def check_instance_name(instance_name: str, *, field: str = "instance_name") -> str:
    """Return the name if it is empty or segments joined by single slashes, none of them reserved."""
    if instance_name in _valid_instance_names:
        return instance_name
    if len(instance_name) > MAX_NAME_LENGTH:
        raise InvalidResourceName(f"{field}: longer than {MAX_NAME_LENGTH} characters", field=field)
    for segment in instance_name.split("/"):
        if not segment:
            raise InvalidResourceName(
                f"{field}: {instance_name!r} has a leading, trailing or double slash", field=field
            )
        if segment in RESERVED_SEGMENTS:
            raise InvalidResourceName(f"{field}: {instance_name!r} holds the reserved word {segment!r}", field=field)
    if len(_valid_instance_names) < 10_000:
        _valid_instance_names.add(instance_name)
    return instance_name


def parse_read_name(resource_name: str) -> ReadName:
    """Take a name to read from apart; InvalidResourceName or InvalidDigest say what is wrong with it."""
    segments = _split(resource_name)
    kind_at = _find_kind(resource_name, segments, 0)
    if "uploads" in segments[:kind_at]:
        raise _bad(resource_name, "is a name to write to")
    compressor, digest, rest = _parse_content(resource_name, segments, kind_at)
    if rest:
        raise _bad(resource_name, f"has {'/'.join(rest)!r} after the size")
    return ReadName(_parse_instance(resource_name, segments[:kind_at]), digest, compressor)


def parse_write_name(resource_name: str) -> WriteName:
    """Take a name to write to apart; whatever follows the size is ignored, as the spec allows."""
    segments = _split(resource_name)
    if "uploads" not in segments:
        raise _bad(resource_name, "is not {instance/}uploads/{uuid}/blobs/… or …/compressed-blobs/…")
    uploads_at = segments.index("uploads")
    kind_at = uploads_at + 2
    if len(segments) <= kind_at or segments[kind_at] not in ("blobs", "compressed-blobs"):
        raise _bad(resource_name, "has neither 'blobs' nor 'compressed-blobs' after uploads/{uuid}")
    uuid = segments[uploads_at + 1]
    if not _IS_UUID(uuid):
        raise _bad(resource_name, f"has {uuid!r} where a UUID belongs")
    compressor, digest, _metadata = _parse_content(resource_name, segments, kind_at)
    return WriteName(_parse_instance(resource_name, segments[:uploads_at]), uuid, digest, compressor)


def format_read_name(name: ReadName) -> str:
    """Return the resource name that `parse_read_name` takes apart."""
    return f"{_prefix(name.instance_name)}{_format_content(name.digest, name.compressor)}"


def format_write_name(name: WriteName) -> str:
    """Return the resource name that `parse_write_name` takes apart."""
    return f"{_prefix(name.instance_name)}uploads/{name.uuid}/{_format_content(name.digest, name.compressor)}"


def _prefix(instance_name: str) -> str:
    return f"{instance_name}/" if instance_name else ""


def _format_content(digest: Digest, compressor: str) -> str:
    return f"compressed-blobs/{compressor}/{digest}" if compressor else f"blobs/{digest}"


def _bad(resource_name: str, reason: str) -> InvalidResourceName:
    shown = resource_name if len(resource_name) <= 400 else f"{resource_name[:400]}…"
    return InvalidResourceName(f"resource_name: {shown!r} {reason}", field="resource_name")


def _split(resource_name: str) -> list[str]:
    if not resource_name:
        raise _bad(resource_name, "is empty")
    if len(resource_name) > MAX_NAME_LENGTH:
        raise _bad(resource_name, f"is longer than {MAX_NAME_LENGTH} characters")
    return resource_name.split("/")


def _find_kind(resource_name: str, segments: list[str], start: int) -> int:
    for index in range(start, len(segments)):
        if segments[index] in ("blobs", "compressed-blobs"):
            return index
    raise _bad(resource_name, "is not {instance/}blobs/… or {instance/}compressed-blobs/…")


def _parse_instance(resource_name: str, segments: list[str]) -> str:
    instance_name = "/".join(segments)
    if segments and not instance_name:
        raise _bad(resource_name, "has a leading slash")
    return check_instance_name(instance_name, field="resource_name")


def _parse_content(resource_name: str, segments: list[str], kind_at: int) -> tuple[str, Digest, list[str]]:
    """Return the compressor, the digest and what follows."""
    index = kind_at + 1
    compressor = ""
    if segments[kind_at] == "compressed-blobs":
        compressor = segments[index] if index < len(segments) else ""
        if compressor not in COMPRESSORS:
            known = ", ".join(sorted(COMPRESSORS))
            raise _bad(resource_name, f"names the compressor {compressor!r}; supported are {known}")
        index += 1
    named_function = _NAMED_FUNCTIONS.get(cast("DigestFunction", segments[index] if index < len(segments) else ""))
    if named_function is not None:
        index += 1
    if len(segments) < index + 2:
        raise _bad(resource_name, "ends before hash and size")
    digest = _parse_digest(resource_name, named_function, segments[index], segments[index + 1])
    return compressor, digest, segments[index + 2 :]


def _parse_digest(resource_name: str, function: DigestFunction | None, hash_hex: str, size: str) -> Digest:
    if not _IS_SIZE(size):
        raise InvalidDigest(
            f"resource_name: {resource_name[:400]!r} has {size[:40]!r} where a size in bytes belongs",
            field="resource_name",
        )
    if function is None and len(hash_hex) not in _HEX_LENGTHS:
        raise InvalidDigest(
            f"resource_name: {resource_name[:400]!r} has {hash_hex[:140]!r} where a hash or digest function belongs",
            field="resource_name",
        )
    function = function or function_from_wire(0, hash_hex)
    return make_digest(function, hash_hex, int(size), field="resource_name")
