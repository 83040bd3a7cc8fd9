"""Derivations; the expected files and paths were made by Nix 2.8."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvix.nix.derivation import (
    Derivation,
    InvalidDerivation,
    Output,
    derivation_path,
    from_json,
    hash_modulo,
    parse_aterm,
    to_aterm,
    to_json,
    with_output_paths,
)

A_PATH = "/nix/store/ihq4hfn3xy4xh7kmm2icavyih26w69d6-a.drv"
A = (
    rb"""Derive([("out","/nix/store/hvpnxwy19k9wsykbix05ym100cs7876f-a","","")],[],[],"x86_64-linux","/bin/sh","""
    rb"""["-c","echo \"hi\"\n\t$x > $out"],[("builder","/bin/sh"),("name","a"),"""
    rb"""("out","/nix/store/hvpnxwy19k9wsykbix05ym100cs7876f-a"),("system","x86_64-linux"),"""
    rb"""("x","multi\nline \\ \"q\"")])"""
)
SRC_PATH = "/nix/store/5pcfsf7x3swkq9m4nw9sgcggs8vwyg7s-src.tar.drv"
SRC = Derivation(
    outputs={"out": Output("", "sha256", "0" * 64)},
    system="builtin",
    builder="builtin:fetchurl",
    environment={
        "builder": "builtin:fetchurl",
        "name": "src.tar",
        "out": "",
        "outputHash": "0" * 52,
        "outputHashAlgo": "sha256",
        "outputHashMode": "flat",
        "system": "builtin",
        "url": "http://example.org/x",
    },
)
B_PATH = "/nix/store/abijfkij0y2pk63zz0am9pgf8ws3sk22-b.drv"
B = Derivation(
    outputs={"out": Output(), "dev": Output()},
    input_derivations={SRC_PATH: frozenset({"out"}), A_PATH: frozenset({"out"})},
    input_sources=frozenset({"/nix/store/q1nj8wpb1lvcbnb5xfpxv2vqh190s68g-t.txt"}),
    system="x86_64-linux",
    builder="/bin/sh",
    environment={
        "a": "/nix/store/hvpnxwy19k9wsykbix05ym100cs7876f-a",
        "builder": "/bin/sh",
        "dev": "",
        "f": "/nix/store/dfva10slcws8bl39xj4qvsgn23ranhyi-src.tar",
        "name": "b",
        "out": "",
        "outputs": "out dev",
        "src": "/nix/store/q1nj8wpb1lvcbnb5xfpxv2vqh190s68g-t.txt",
        "system": "x86_64-linux",
    },
)


def no_inputs(path: str) -> bytes:
    raise AssertionError(f"{path} was asked for")


def test_a_file_by_nix_is_read_and_written_back() -> None:
    derivation = parse_aterm(A)
    assert derivation.arguments == ("-c", 'echo "hi"\n\t$x > $out')
    assert derivation.environment["x"] == 'multi\nline \\ "q"'
    assert to_aterm(derivation) == A
    assert str(derivation_path(derivation, "a")) == A_PATH


def test_output_paths_are_those_of_nix() -> None:
    source = with_output_paths(SRC, "src.tar", no_inputs)
    assert source.outputs["out"].path == "/nix/store/dfva10slcws8bl39xj4qvsgn23ranhyi-src.tar"
    assert str(derivation_path(source, "src.tar")) == SRC_PATH
    inputs = {SRC_PATH: source, A_PATH: parse_aterm(A)}
    built = with_output_paths(B, "b", lambda path: hash_modulo(inputs[path], no_inputs))
    assert built.outputs["out"].path == "/nix/store/vr354l3ilha8li147iwgjrgr1q315q3y-b"
    assert built.outputs["dev"].path == "/nix/store/53fb2iwvig6ialkx7bmkvdv7s04phk43-b-dev"
    assert built.environment["dev"] == built.outputs["dev"].path
    assert str(derivation_path(built, "b")) == B_PATH


def test_a_fixed_output_counts_by_its_content_alone() -> None:
    source = with_output_paths(SRC, "src.tar", no_inputs)
    other = Derivation(source.outputs, system="other", builder="/bin/other")
    assert hash_modulo(source, no_inputs) == hash_modulo(other, no_inputs)


names = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=8)
texts = st.binary(max_size=30).map(lambda data: data.decode("utf-8", "surrogateescape"))
derivations = st.builds(
    Derivation,
    outputs=st.dictionaries(names, st.builds(Output, path=names), min_size=1, max_size=3),
    input_derivations=st.dictionaries(names, st.frozensets(names, min_size=1), max_size=3),
    input_sources=st.frozensets(names, max_size=3),
    system=names,
    builder=texts,
    arguments=st.lists(texts, max_size=4).map(tuple),
    environment=st.dictionaries(names, texts, max_size=4),
)


@given(derivations)
def test_any_bytes_survive_both_ways(derivation: Derivation) -> None:
    again = parse_aterm(to_aterm(derivation))
    assert again == derivation
    assert to_aterm(again) == to_aterm(derivation)
    assert from_json(to_json(derivation)) == derivation


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "expected 'Derive\\('"),
        (A[:-1], r"expected '\)'"),
        (A + b"x", "expected the end"),
        (A.replace(b'"-c"', b"-c"), "expected a string at byte"),
        (A.replace(b'","","")]', b'","")]'), "expected ','"),
    ],
)
def test_broken_files_say_what_and_where(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidDerivation, match=reason):
        parse_aterm(data, "x.drv")


def test_broken_json_names_the_field() -> None:
    value = to_json(parse_aterm(A))
    del value["builder"]
    with pytest.raises(InvalidDerivation, match="builder"):
        from_json(value)
    with pytest.raises(InvalidDerivation, match="wrong type"):
        from_json([])
