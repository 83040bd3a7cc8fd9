"""Paths beside the plain functions of tvix.nix.derivation, which real derivations are tested with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvix.errors import InvalidInput
from tvix.nix.derivation import (
    IMPURE,
    Derivation,
    Output,
    derivation_path,
    hash_modulo,
    parse_aterm,
    to_aterm,
    with_output_paths,
)
from tvix.nix.derivation_hashes import DerivationHashes, downstream_placeholder, fixed_output_path, placeholder

EMPTY_HEX = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def unread(path: str) -> Derivation:
    raise AssertionError(f"{path} was read")


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


@given(
    names=st.sets(st.sampled_from(["out", "dev", "lib"]), min_size=1),
    environment=st.dictionaries(TEXT, TEXT, max_size=6),
    arguments=st.lists(TEXT, max_size=3),
    builder=TEXT,
)
def test_the_same_as_step_by_step(
    names: set[str], environment: dict[str, str], arguments: list[str], builder: str
) -> None:
    hashes = DerivationHashes(unread)
    source = hashes.instantiate("s", Derivation({"out": Output("", "sha256", EMPTY_HEX)}, builder="b", system="x"))
    derivation = Derivation(
        outputs={name: Output() for name in names},
        input_derivations={source.path: frozenset(["out"])},
        input_sources=frozenset([f"/nix/store/{'0' * 32}-x"]),
        system="x",
        builder=builder,
        arguments=tuple(arguments),
        environment={**environment, **dict.fromkeys(names, "")},
    )
    made = hashes.instantiate("n", derivation)

    def modulo_of(path: str) -> bytes:
        return hash_modulo(source.derivation, modulo_of)

    expected = with_output_paths(derivation, "n", modulo_of)
    assert made.derivation.outputs == expected.outputs
    assert made.contents == to_aterm(expected)
    assert made.path == derivation_path(expected, "n").absolute()
    assert hashes.modulo(made.path).digest_hex == hash_modulo(expected, modulo_of).hex()


@pytest.mark.parametrize(
    "output", [Output(), Output("", "r:sha256"), Output("", "sha256", IMPURE), Output("", "r:sha1", "0" * 40)]
)
def test_modulo_of_a_derivation_that_was_read_is_that_of_one_just_made(output: Output) -> None:
    made = DerivationHashes(unread).instantiate("n", Derivation({"out": output}, builder="b", system="x"))
    asked: list[str] = []

    def read(path: str) -> Derivation:
        asked.append(path)
        return parse_aterm(made.contents)

    first, later = DerivationHashes(unread), DerivationHashes(read)
    first.instantiate("n", Derivation({"out": output}, builder="b", system="x"))
    assert later.modulo(made.path) == later.modulo(made.path) == first.modulo(made.path)
    assert asked == [made.path]


def test_placeholders() -> None:
    assert placeholder("out") == "/1rz4g4znpzjwh1xymhjpm42vipw92pr73vdgl6xs1hycac8kf2n9"
    drv_path = "/nix/store/xl56ynqx54wih6nnn09fag6drd0yk8sv-a.drv"
    assert downstream_placeholder(drv_path, "out") == "/12zg42if67659p1411z826v9lbmif16w04zzds6b5hmxp6nvppzq"


def test_text_outputs_have_the_paths_of_text_files() -> None:
    assert fixed_output_path("x", Output("", "text:sha256", EMPTY_HEX)).endswith("-x")
    with pytest.raises(InvalidInput, match="needs sha256, not sha1"):
        fixed_output_path("x", Output("", "text:sha1", "0" * 40))


def test_names_that_make_no_path_are_refused() -> None:
    with pytest.raises(InvalidInput, match="contains ' '"):
        DerivationHashes(unread).instantiate("a b", Derivation({"out": Output()}))
