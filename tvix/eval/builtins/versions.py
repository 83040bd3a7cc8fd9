"""Builtins on versions of packages."""

from __future__ import annotations

import re
from functools import lru_cache

from tvix.eval.builtins.expect import expect_text
from tvix.eval.builtins.registry import Registry, Table
from tvix.eval.values import Attrs, Value

TABLE = Table()
_COMPONENT = re.compile(r"[0-9]+|[^0-9.\-]+")
_NAME_END = re.compile(r"-[^a-zA-Z]", re.DOTALL)


def register(registry: Registry) -> None:
    """Add this module's builtins."""
    registry.update(TABLE)


@lru_cache(maxsize=16_384)
def version_components(version: str) -> tuple[str, ...]:
    """Return runs of digits and of other characters; dots and dashes separate."""
    return tuple(_COMPONENT.findall(version))


def _rank(component: str) -> tuple[int, int, str]:
    """`pre` comes before the end of a version, other words after it, numbers last of all."""
    if component == "pre":
        return (0, 0, "")
    if not component:
        return (1, 0, "")
    if component.isdecimal():
        return (3, int(component), "")
    return (2, 0, component)


@lru_cache(maxsize=16_384)
def compare_versions(left: str, right: str) -> int:
    """Return -1, 0 or 1 as `left` is older than, as old as, or newer than `right`."""
    ones, others = version_components(left), version_components(right)
    for index in range(max(len(ones), len(others))):
        one = _rank(ones[index] if index < len(ones) else "")
        other = _rank(others[index] if index < len(others) else "")
        if one != other:
            return -1 if one < other else 1
    return 0


@TABLE.primop("compareVersions", "ss")
def compare_versions_builtin(left: Value, right: Value) -> int:
    return compare_versions(
        str(expect_text(left, "builtins.compareVersions")), str(expect_text(right, "builtins.compareVersions"))
    )


@TABLE.primop("splitVersion", "s")
def split_version(version: Value) -> Value:
    return list(version_components(str(expect_text(version, "builtins.splitVersion"))))


@TABLE.primop("parseDrvName", "s")
def parse_drv_name(name: Value) -> Value:
    text = str(expect_text(name, "builtins.parseDrvName"))
    match = _NAME_END.search(text)
    if match is None:
        return Attrs(name=text, version="")
    return Attrs(name=text[: match.start()], version=text[match.start() + 1 :])
