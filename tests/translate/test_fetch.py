"""Fetching from a server on this machine."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import zstandard

from tvix.eval.errors import EvalError
from tvix.translate.fetch import Cache, Fetcher


class Site:
    """What a server answers, and what it was asked."""

    def __init__(self) -> None:
        self.body = b"first"
        self.status = 200
        self.etag = ""
        self.asked: list[str | None] = []
        self.url = ""


@pytest.fixture
def site() -> Iterator[Site]:
    served = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.append(self.headers.get("If-None-Match"))
            unchanged = bool(served.etag) and served.asked[-1] == served.etag
            self.send_response(304 if unchanged else served.status)
            body = b"" if unchanged else served.body
            self.send_header("Content-Length", str(len(body)))
            if served.etag:
                self.send_header("ETag", served.etag)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        served.url = f"http://127.0.0.1:{server.server_address[1]}/file"
        yield served
        server.shutdown()
        thread.join()


class Clock:
    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def logged() -> list[str]:
    return []


@pytest.fixture
def fetcher(tmp_path: Path, clock: Clock, logged: list[str]) -> Fetcher:
    return Fetcher(Cache(tmp_path / "cache"), ttl_seconds=100, now=clock, log=logged.append)


def read(path: str) -> bytes:
    return Path(path).read_bytes()


def test_a_copy_is_used_while_it_is_fresh(site: Site, fetcher: Fetcher, clock: Clock) -> None:
    assert read(fetcher.file(site.url)) == b"first"
    site.body = b"second"
    clock.seconds += 99
    assert read(fetcher.file(site.url)) == b"first"
    clock.seconds += 2
    assert read(fetcher.file(site.url)) == b"second"
    assert len(site.asked) == 2


def test_unchanged_files_are_not_sent_again(site: Site, fetcher: Fetcher, clock: Clock) -> None:
    site.etag = '"v1"'
    fetcher.file(site.url)
    clock.seconds += 101
    assert read(fetcher.file(site.url)) == b"first"
    clock.seconds += 50  # it counts as fresh again
    fetcher.file(site.url)
    assert site.asked == [None, '"v1"']


def test_old_copies_serve_when_the_server_fails(site: Site, fetcher: Fetcher, clock: Clock, logged: list[str]) -> None:
    fetcher.file(site.url)
    clock.seconds += 101
    site.status = 500
    assert read(fetcher.file(site.url)) == b"first"
    assert "HTTP error 500" in logged[0]


def test_errors_name_the_url_and_are_tried_again_only_if_that_may_help(site: Site, fetcher: Fetcher) -> None:
    site.status = 404
    with pytest.raises(EvalError, match=f"unable to fetch '{site.url}': HTTP error 404"):
        fetcher.file(site.url)
    assert len(site.asked) == 1
    site.status = 503
    with pytest.raises(EvalError, match="HTTP error 503"):
        fetcher.file(site.url)
    assert len(site.asked) == 4


def test_mirrors_replace_the_beginning(site: Site, tmp_path: Path) -> None:
    mirrors = [("https://a.example/", "https://b.example/"), ("https://c.example/", site.url.removesuffix("file"))]
    fetcher = Fetcher(Cache(tmp_path), mirrors=mirrors)
    assert fetcher.mirrored("https://a.example/x") == "https://b.example/x"
    assert read(fetcher.file("https://c.example/file")) == b"first"


def tar_bytes(mode: str, names: tuple[str, ...] = ("top/f",)) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name in names:
            member = tarfile.TarInfo(name)
            member.size, member.mode = 2, 0o755
            tar.addfile(member, io.BytesIO(b"hi"))
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zstd", "zip"])
def test_archives_of_all_kinds(mode: str, tmp_path: Path, fetcher: Fetcher) -> None:
    if mode == "zip":
        with zipfile.ZipFile(tmp_path / "archive", "w") as opened:
            entry = zipfile.ZipInfo("top/f")
            entry.external_attr = 0o100755 << 16
            opened.writestr(entry, b"hi")
    elif mode == "zstd":
        (tmp_path / "archive").write_bytes(zstandard.compress(tar_bytes("w")))
    else:
        (tmp_path / "archive").write_bytes(tar_bytes(mode))
    found = Path(fetcher.archive(f"file://{tmp_path}/archive").path)
    assert (found / "f").read_bytes() == b"hi"
    assert (found / "f").stat().st_mode & 0o100


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (b"no archive", "failed to unpack"),
        (tar_bytes("w:gz")[:40], "failed to unpack"),
        (tar_bytes("w", ("a/x", "b/x")), "unexpected number of top-level files: 2"),
        (tar_bytes("w", ("../out",)), "failed to unpack"),
    ],
)
def test_bad_archives(contents: bytes, reason: str, tmp_path: Path, fetcher: Fetcher) -> None:
    (tmp_path / "archive").write_bytes(contents)
    with pytest.raises(EvalError, match=reason):
        fetcher.archive(f"file://{tmp_path}/archive")
    assert not (tmp_path / "cache" / "out").exists()
