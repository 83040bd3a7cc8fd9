"""Narinfos."""

from __future__ import annotations

import pytest

from tvix.nix.hashes import hash_of
from tvix.nix.narinfo import InvalidNarInfo, NarInfo, parse, render
from tvix.nix.signature import generate_secret_key
from tvix.nix.store_path import text_path

PATH, OTHER = text_path("p", b"1"), text_path("o", b"2")
FULL = NarInfo(
    store_path=PATH,
    url="nar/x.nar.zst?y=1",
    nar_hash=hash_of(b"n"),
    nar_size_bytes=7,
    compression="zstd",
    file_hash=hash_of(b"f"),
    file_size_bytes=5,
    references=(PATH, OTHER),
    deriver=text_path("p.drv", b"3"),
    system="x86_64-linux",
    signatures=(generate_secret_key("k-1").sign(b""), generate_secret_key("k-2").sign(b"")),
    content_address="fixed:r:sha256:0000000000000000000000000000000000000000000000000000",
)


@pytest.mark.parametrize("info", [FULL, NarInfo(PATH, "nar/x.nar", hash_of(b""), 1)])
def test_parsing_undoes_rendering(info: NarInfo) -> None:
    assert parse(render(info)) == info


def test_fields_stand_in_the_order_of_nix() -> None:
    names = [line.partition(":")[0] for line in render(FULL).splitlines()]
    expected = "StorePath URL Compression FileHash FileSize NarHash NarSize References Deriver System Sig Sig CA"
    assert names == expected.split()


def test_defaults_are_those_of_nix() -> None:
    text = render(FULL).replace("Compression: zstd\n", "").replace(FULL.deriver.base_name, "unknown-deriver")  # type: ignore[union-attr]
    info = parse(text)
    assert info.compression == "bzip2"
    assert info.deriver is None


def test_the_fingerprint_names_path_hash_size_and_sorted_references() -> None:
    references = ",".join(sorted([str(PATH), str(OTHER)]))
    assert FULL.fingerprint().decode() == f"1;{PATH};{hash_of(b'n').nix};7;{references}"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("URL: ", "Url: "), "URL is missing"),
        (("NarSize: 7", "NarSize: 0"), "greater than 0"),
        (("NarSize: 7", "NarSize: -7"), "not a number"),
        (("NarSize: 7", "NarSize: 7\nNarSize: 7"), "stands twice"),
        (("NarHash: sha256:", "NarHash: sha256:0"), "wrong length"),
        (("StorePath: /nix", "StorePath: /xin"), "not in the store"),
        (("URL: ", "URL "), "has no colon|URL is missing"),
        (("Sig: k-1:", "Sig: k-1"), "name:base64"),
    ],
)
def test_broken_narinfos_name_the_field(change: tuple[str, str], reason: str) -> None:
    with pytest.raises(InvalidNarInfo, match=reason):
        parse(render(FULL).replace(*change, 1), "x.narinfo")
