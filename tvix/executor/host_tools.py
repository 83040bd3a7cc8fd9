"""What commands see of this machine when they use its tools: system folders and a little of /etc."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

BUILD_DIRECTORY = "/build"
"""Where the input root is then; the same for every action and worker."""

SYSTEM_DIRECTORIES = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/nix/store")
SYSTEM_FILES = (
    "alternatives",
    "ca-certificates",
    "ca-certificates.conf",
    "group",
    "host.conf",
    "hosts",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "nsswitch.conf",
    "passwd",
    "perl",
    "pki",
    "protocols",
    "services",
    "ssl",
    "timezone",
)
"""Of /etc."""
NETWORK_FILES = ("/etc/resolv.conf",)
"""On top when the network is on."""


class Shown(NamedTuple):
    """One path of the host to be shown, read-only."""

    path: str
    link_target: str | None
    """Where it leads, when it is a symlink that is to be made anew, as /bin is on merged systems."""


def shown_paths(extra: Iterable[str] = ()) -> Iterator[Shown]:
    """Yield what of the host is shown, as far as it is there."""
    for path in (*SYSTEM_DIRECTORIES, *extra):
        if os.path.islink(path):
            yield Shown(path, os.readlink(path))
        elif os.path.exists(path):
            yield Shown(path, None)
    for name in SYSTEM_FILES:
        if os.path.exists(f"/etc/{name}"):
            yield Shown(f"/etc/{name}", None)
