"""The search path."""

from __future__ import annotations

import pytest

from tvix.eval.search_path import split_entry, split_nix_path


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("", []),
        ("/a:/b", ["/a", "/b"]),
        ("nixpkgs=/a:/b", ["nixpkgs=/a", "/b"]),
        ("n=https://x.org/a.tar.gz:/b", ["n=https://x.org/a.tar.gz", "/b"]),
        ("n=channel:nixos-22.05:/b", ["n=channel:nixos-22.05", "/b"]),
        ("/a::/b", ["/a", "/b"]),
    ],
)
def test_nix_path_is_split_at_colons_that_are_not_of_urls(text: str, entries: list[str]) -> None:
    assert split_nix_path(text) == entries


def test_entries_may_have_a_prefix() -> None:
    assert split_entry("n=/a=b") == ("n", "/a=b")
    assert split_entry("/a") == ("", "/a")
