"""Fetching for the evaluator: files and archives by HTTP, Git repositories by `git`, with a cache folder.

    <cache>/files/<SHA-256 of the URL>          what was there; its time is when that was last asked, and beside it
                                                 `.etag`, what the server called it
    <cache>/trees/<SHA-256 of an archive>/…      unpacked
    <cache>/git/<SHA-256 of the URL>/            bare repositories
    <cache>/checkouts/<commit>[-submodules]/     trees of commits

Everything is made beside and renamed into place. A copy younger than `ttl_seconds` is not asked for again; an older
one is used, with a warning, when the server does not answer. Mirrors replace the beginning of URLs, say
`https://example.org/=file:///srv/mirror/`. Nothing here is trusted: whoever asked checks hashes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tvix.eval.errors import EvalError
from tvix.eval.io import FetchedTree
from tvix.eval.settings import log_to_stderr

if sys.version_info >= (3, 12):
    import tarfile
else:  # Debian 12's Python 3.11 has no extraction filters
    import backports.tarfile as tarfile

DEFAULT_TTL_SECONDS = 3600
_TIMEOUT_SECONDS = 60
_ATTEMPTS = 3
_BLOCK_BYTES = 1 << 20


class Cache:
    """A folder of things made once."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = str(folder)

    def __repr__(self) -> str:
        return f"<Cache {self.folder}>"

    def path(self, kind: str, name: str) -> str:
        """Return where something is, or will be."""
        os.makedirs(f"{self.folder}/{kind}", exist_ok=True)
        return f"{self.folder}/{kind}/{name}"

    @contextmanager
    def making(self, target: str) -> Iterator[str]:
        """Give a new folder; what its user makes as `made` in it is moved to `target`, unless that exists by then."""
        temporary = tempfile.mkdtemp(dir=os.path.dirname(target))
        try:
            yield temporary
            try:
                os.rename(f"{temporary}/made", target)
            except OSError:
                if not os.path.isdir(target):
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def digest_of(text: str) -> str:
    """Return a name for a text in a cache."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


class Fetcher:
    """Fetches files and archives. `now` tells the time in seconds since 1970."""

    def __init__(
        self,
        cache: Cache,
        *,
        mirrors: Sequence[tuple[str, str]] = (),
        ttl_seconds: float = DEFAULT_TTL_SECONDS,
        now: Callable[[], float] = time.time,
        log: Callable[[str], None] = log_to_stderr,
    ) -> None:
        self.cache = cache
        self._mirrors = mirrors
        self._ttl_seconds = ttl_seconds
        self._now = now
        self.log = log

    def __repr__(self) -> str:
        return f"<Fetcher {self.cache!r}>"

    def mirrored(self, url: str) -> str:
        """Return the URL to ask instead of one."""
        for prefix, replacement in self._mirrors:
            if url.startswith(prefix):
                return replacement + url[len(prefix) :]
        return url

    def file(self, url: str) -> str:
        """Return the path of a local copy of what is at a URL; EvalError names the URL."""
        asked = self.mirrored(url)
        scheme = urlsplit(asked).scheme
        if scheme == "file":
            path = unquote(urlsplit(asked).path)
            if not os.path.exists(path):
                raise EvalError(f"unable to fetch '{url}': there is no file '{path}'")
            return path
        if scheme not in ("http", "https"):
            raise EvalError(f"unable to fetch '{url}': only file, http and https URLs are supported")
        target = self.cache.path("files", digest_of(asked))
        if not self._is_fresh(target):
            self._refresh(url, asked, target)
        return target

    def _is_fresh(self, target: str) -> bool:
        try:
            return os.stat(target).st_mtime + self._ttl_seconds > self._now()
        except FileNotFoundError:
            return False

    def _refresh(self, url: str, asked: str, target: str) -> None:
        try:
            self._download(asked, target)
        except (OSError, HTTPException) as error:
            if not os.path.exists(target):
                raise EvalError(f"unable to fetch '{url}': {_reason(error)}") from error
            self.log(f"warning: unable to fetch '{url}': {_reason(error)}; using the copy of an earlier time")

    def _download(self, url: str, target: str) -> None:
        request = urllib.request.Request(url, headers={"User-Agent": "tvix"})
        etag = Path(f"{target}.etag")
        if os.path.exists(target) and etag.exists():
            request.add_header("If-None-Match", etag.read_text())
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._transfer(request, target, etag)
                return
            except urllib.error.HTTPError as error:
                with error:
                    if error.code == 304:
                        os.utime(target, (self._now(), self._now()))
                        return
                    if error.code < 500 or attempt == _ATTEMPTS:
                        raise
            except (OSError, HTTPException):
                if attempt == _ATTEMPTS:
                    raise

    def _transfer(self, request: urllib.request.Request, target: str, etag: Path) -> None:
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(target))
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response, open(handle, "wb") as file:
                length = response.headers.get("Content-Length")
                shutil.copyfileobj(response, file, _BLOCK_BYTES)
                if length is not None and file.tell() != int(length):
                    raise HTTPException(f"{file.tell()} bytes came instead of {length}")
                tag = response.headers.get("ETag")
            os.utime(temporary, (self._now(), self._now()))
            os.rename(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
        if tag:
            etag.write_text(tag)
        else:
            etag.unlink(missing_ok=True)

    def archive(self, url: str) -> FetchedTree:
        """Return the contents of the one top folder of the archive at a URL."""
        archive = self.file(url)
        with open(archive, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        target = self.cache.path("trees", digest)
        if not os.path.isdir(target):
            with self.cache.making(target) as temporary:
                made = f"{temporary}/made"
                os.mkdir(made)
                _unpack(url, archive, made)
        entries = os.listdir(target)
        if len(entries) != 1:
            raise EvalError(f"tarball '{url}' contains an unexpected number of top-level files: {len(entries)}")
        top = f"{target}/{entries[0]}"
        return FetchedTree(top, int(os.lstat(top).st_mtime))


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP error {error.code} ({error.reason})"
    return str(getattr(error, "reason", None) or error or type(error).__name__)


def _unpack(url: str, archive: str, target: str) -> None:
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, target)
        else:
            unpack_tar(archive, target)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        raise EvalError(f"failed to unpack '{url}': {error}") from error


def unpack_tar(archive: str, target: str) -> None:
    """Unpack a tar, compressed or not, into a folder; entries that lead out of it are refused."""
    with open(archive, "rb") as file:
        is_zstd = file.read(4) == b"\x28\xb5\x2f\xfd"
    if not is_zstd:
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="tar")
        return
    import zstandard

    with (
        open(archive, "rb") as file,
        zstandard.ZstdDecompressor().stream_reader(file) as plain,
        tarfile.open(fileobj=plain, mode="r|") as tar,
    ):
        tar.extractall(target, filter="tar")


def _unpack_zip(archive: str, target: str) -> None:
    """zipfile refuses to leave the folder; it forgets modes and links, which are kept here."""
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            mode = member.external_attr >> 16
            path = opened.extract(member, target)
            if mode & 0o170000 == 0o120000:
                link = Path(path).read_bytes()
                os.unlink(path)
                os.symlink(os.fsdecode(link), path)
            elif mode & 0o100 and not member.is_dir():
                os.chmod(path, 0o755)
