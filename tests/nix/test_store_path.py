"""Store paths; the expected ones were made by Nix 2.8."""

import pytest

from tvix.errors import InvalidInput
from tvix.nix.hashes import Hash, hash_of, zero
from tvix.nix.store_path import (
    StorePath,
    check_name,
    fixed_path,
    parse_store_path,
    split_store_path,
    text_path,
)


def test_text_file() -> None:
    # builtins.toFile "t.txt" "text"
    assert str(text_path("t.txt", b"text")) == "/nix/store/q1nj8wpb1lvcbnb5xfpxv2vqh190s68g-t.txt"


def test_flat_fixed_output() -> None:
    path = fixed_path("src.tar", zero("sha256"), recursive=False)
    assert str(path) == "/nix/store/dfva10slcws8bl39xj4qvsgn23ranhyi-src.tar"


def test_references_change_the_path_and_their_order_does_not() -> None:
    one, two = text_path("a", b"1"), text_path("b", b"2")
    assert text_path("c", b"", [one, two]) == text_path("c", b"", [two, one, two])
    assert text_path("c", b"", [one]) != text_path("c", b"")


def test_only_recursive_sha256_may_have_references() -> None:
    reference = text_path("a", b"")
    assert fixed_path("x", hash_of(b""), recursive=True, references=[reference], to_self=True).name == "x"
    with pytest.raises(InvalidInput, match="only recursive sha256"):
        fixed_path("x", Hash("sha1", bytes(20)), recursive=True, references=[reference])


def test_paths_are_read_back() -> None:
    text = "/nix/store/vr354l3ilha8li147iwgjrgr1q315q3y-b"
    path = parse_store_path(text)
    assert path == StorePath("vr354l3ilha8li147iwgjrgr1q315q3y", "b")
    assert str(path) == text
    assert len(path.hash_bytes) == 20
    assert split_store_path(text + "/bin/sh") == (path, "/bin/sh")


@pytest.mark.parametrize(
    "text",
    [
        "/nix/store",
        "/nix/store/x",
        "/nix/store/vr354l3ilha8li147iwgjrgr1q315q3y",
        "/nix/store/vr354l3ilha8li147iwgjrgr1q315q3e-b",
        "/nix/store/vr354l3ilha8li147iwgjrgr1q315q3y-",
        "/nix/store/vr354l3ilha8li147iwgjrgr1q315q3y-b/c",
        "/other/vr354l3ilha8li147iwgjrgr1q315q3y-b",
    ],
)
def test_what_is_no_store_path_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_store_path(text)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ü", ".", "..", ".-x", "x" * 212])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_name(name)


@pytest.mark.parametrize("name", ["a", ".hidden", "x" * 211, "a+b-c._?=9"])
def test_good_names_pass(name: str) -> None:
    assert check_name(name) == name
