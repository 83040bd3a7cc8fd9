"""Compiled files on disk, shared by processes.

Key: SHA-256 over this module's format, the Python version, the builtins, the names that
scopedImport binds, and the text.
Value: a marshalled code object behind the SHA-256 of its bytes, in `<folder>/<2 hex>/<rest>`. Written to a
temporary name and renamed, so readers see whole entries; an entry that does not read back is ignored and
written again. Nothing is ever deleted here; the folder may be, at any time.
"""

from __future__ import annotations

import hashlib
import marshal
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import CodeType

FORMAT = 2
"""Raised with every change of what the compiler emits or the runtime expects."""
_DIGEST_BYTES = 32


def default_folder() -> Path:
    """Return where the cache lives unless told otherwise: below TVIX_STATE_DIR, or the user's cache folder."""
    state = os.environ.get("TVIX_STATE_DIR")
    if state:
        return Path(state) / "eval-code"
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "tvix" / "eval-code"


class CodeCache:
    """A folder of compiled files. Failing to write is no error: the next process compiles again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._prefix = f"{FORMAT}\0{sys.version}\0".encode()

    def __repr__(self) -> str:
        return f"<CodeCache {self._folder}>"

    def key(self, text: str, scoped: frozenset[str], builtins: str) -> str:
        """Return the key of a source, in hex; `builtins` tells which builtins it is compiled for."""
        digest = hashlib.sha256(self._prefix)
        digest.update("\0".join([builtins, *sorted(scoped)]).encode("utf-8", "surrogateescape"))
        digest.update(b"\0\0")
        digest.update(text.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def _path(self, key: str) -> str:
        return f"{self._folder}/{key[:2]}/{key[2:]}"

    def get(self, key: str) -> CodeType | None:
        """Return the code kept under a key, None if there is none or it does not read back."""
        try:
            with open(self._path(key), "rb", buffering=0) as file:
                data = file.read()
        except OSError:
            return None
        payload = data[_DIGEST_BYTES:]
        if hashlib.sha256(payload).digest() != data[:_DIGEST_BYTES]:
            return None
        try:
            code = marshal.loads(payload)
        except (EOFError, ValueError, TypeError):
            return None
        return code if isinstance(code, CodeType) else None

    def put(self, key: str, code: CodeType) -> None:
        """Keep code under a key."""
        payload = marshal.dumps(code)
        path = self._path(key)
        with suppress(OSError):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            temporary = f"{path}.{os.getpid()}.{time.monotonic_ns()}"
            try:
                with open(temporary, "xb") as file:
                    file.write(hashlib.sha256(payload).digest() + payload)
                os.replace(temporary, path)
            except OSError:
                os.unlink(temporary)
                raise
