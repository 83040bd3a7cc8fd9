"""The search path of `<name>`: entries of -I and NIX_PATH. Looks at files through EvalIO only."""

from __future__ import annotations

import os
import re

from tvix.eval.errors import Thrown
from tvix.eval.io import EvalIO
from tvix.eval.settings import Settings

CORE_PACKAGES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "corepkgs")
"""Where `<nix/…>` is, unless the search path says otherwise."""
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.\-]*://|channel:")


def split_nix_path(text: str) -> list[str]:
    """Return the entries of NIX_PATH: separated by colons, except those of URLs."""
    entries: list[str] = []
    for part in text.split(":") if text else []:
        if entries and (part.startswith("//") or re.search(r"(^|=)channel$", entries[-1])):
            entries[-1] += f":{part}"
        else:
            entries.append(part)
    return [entry for entry in entries if entry]


def split_entry(entry: str) -> tuple[str, str]:
    """Return prefix and path of an entry; the prefix is empty when none is written."""
    prefix, equals, path = entry.partition("=")
    return (prefix, path) if equals else ("", entry)


class SearchPath:
    """Finds `<name>`. `entries` are pairs of prefix and path, in order."""

    def __init__(self, entries: list[tuple[str, str]], io: EvalIO) -> None:
        self.entries = entries
        self._io = io

    def __repr__(self) -> str:
        return f"<SearchPath {len(self.entries)} entries>"

    @classmethod
    def from_settings(cls, settings: Settings, io: EvalIO) -> SearchPath:
        """Return the search path of -I and, if the settings allow, of NIX_PATH."""
        texts = list(settings.search_path)
        if settings.use_nix_path and not settings.pure:
            texts += split_nix_path(io.get_env("NIX_PATH"))
        return cls([split_entry(text) for text in texts], io)

    def find(self, entries: list[tuple[str, str]], name: str) -> str:
        """Return the path that `<name>` is; Thrown when no entry has it, which tryEval catches."""
        for prefix, path in entries:
            candidate = self._candidate(prefix, path, name)
            if candidate is not None:
                return candidate
        if name.startswith("nix/"):
            return f"{CORE_PACKAGES}/{name[4:]}"
        raise Thrown(f"file '{name}' was not found in the Nix search path (add it with -I or $NIX_PATH)")

    def _candidate(self, prefix: str, path: str, name: str) -> str | None:
        if prefix:
            if name != prefix and not name.startswith(f"{prefix}/"):
                return None
            rest = name[len(prefix) :]
        else:
            rest = f"/{name}"
        root = os.path.abspath(path)
        candidate = os.path.normpath(root + rest)
        return candidate if self._io.file_type(self._io.resolve(candidate)) is not None else None
