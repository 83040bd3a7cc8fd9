"""The cache of compiled files."""

from __future__ import annotations

import marshal
from pathlib import Path

import pytest

from tvix.eval.code_cache import CodeCache, default_folder

CODE = compile("x = 1 + 1", "a.nix", "exec")


def only_file(folder: Path) -> Path:
    (file,) = [path for path in folder.rglob("*") if path.is_file()]
    return file


def test_what_is_put_is_got(tmp_path: Path) -> None:
    cache = CodeCache(tmp_path)
    key = cache.key("1 + 1", frozenset(), "b")
    assert cache.get(key) is None
    cache.put(key, CODE)
    assert cache.get(key) == CODE
    assert CodeCache(tmp_path).get(key) == CODE


def test_keys_tell_texts_scopes_and_formats_apart(tmp_path: Path) -> None:
    cache = CodeCache(tmp_path)
    keys = {
        cache.key("a", frozenset(), "b"),
        cache.key("b", frozenset(), "b"),
        cache.key("a", frozenset({"x"}), "b"),
        cache.key("a", frozenset(), "other"),
    }
    assert len(keys) == 4


@pytest.mark.parametrize(
    "spoil", [lambda data: data[:-1], lambda data: b"", lambda data: data[:40] + b"\xff" + data[41:]]
)
def test_spoilt_entries_count_as_absent(tmp_path: Path, spoil: object) -> None:
    cache = CodeCache(tmp_path)
    key = cache.key("a", frozenset(), "b")
    cache.put(key, CODE)
    file = only_file(tmp_path)
    file.write_bytes(spoil(file.read_bytes()))  # type: ignore[operator]
    assert cache.get(key) is None
    cache.put(key, CODE)
    assert cache.get(key) == CODE


def test_entries_that_are_no_code_count_as_absent(tmp_path: Path) -> None:
    import hashlib

    cache = CodeCache(tmp_path)
    key = cache.key("a", frozenset(), "b")
    cache.put(key, CODE)
    payload = marshal.dumps("text")
    only_file(tmp_path).write_bytes(hashlib.sha256(payload).digest() + payload)
    assert cache.get(key) is None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = CodeCache(tmp_path / "file")
    cache.put(cache.key("a", frozenset(), "b"), CODE)
    assert cache.get(cache.key("a", frozenset(), "b")) is None


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVIX_STATE_DIR", "/s")
    assert default_folder() == Path("/s/eval-code")
    monkeypatch.delenv("TVIX_STATE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert default_folder() == Path("/c/tvix/eval-code")
