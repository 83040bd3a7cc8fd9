"""Keys and signatures; the key pair was made by Nix 2.8."""

import pytest

from tvix.errors import InvalidInput
from tvix.nix.signature import (
    generate_secret_key,
    parse_public_key,
    parse_secret_key,
    parse_signature,
    signed_by_any,
)

SECRET = "test-1:TBTn10f57TAT+6+YbfcxT5HdSX6JtyrUKlM96ha9WtvEobjUzFyT6UdIDZQJuJ4bltm2IzC7kzQkyPOIz2iiaQ=="
PUBLIC = "test-1:xKG41Mxck+lHSA2UCbieG5bZtiMwu5M0JMjziM9oomk="


def test_a_pair_by_nix_belongs_together() -> None:
    secret = parse_secret_key(SECRET)
    assert str(secret.public_key) == PUBLIC
    assert str(secret) == SECRET
    signature = secret.sign(b"message")
    assert parse_public_key(PUBLIC).verifies(b"message", signature)
    assert not parse_public_key(PUBLIC).verifies(b"other", signature)
    assert parse_signature(str(signature)) == signature


def test_the_name_is_part_of_the_key() -> None:
    secret = parse_secret_key(SECRET)
    renamed = parse_public_key(PUBLIC.replace("test-1", "test-2"))
    assert not renamed.verifies(b"m", secret.sign(b"m"))


def test_one_trusted_signature_is_enough() -> None:
    mine, foreign = generate_secret_key("mine-1"), generate_secret_key("foreign-1")
    signatures = [foreign.sign(b"m"), mine.sign(b"m")]
    assert signed_by_any(b"m", signatures, [mine.public_key])
    assert not signed_by_any(b"m", signatures[:1], [mine.public_key])
    assert not signed_by_any(b"m", [], [mine.public_key])


def test_the_secret_is_not_shown() -> None:
    assert "TBTn" not in repr(parse_secret_key(SECRET))
    with pytest.raises(InvalidInput) as caught:
        parse_secret_key(SECRET[:-8])
    assert "TBTn" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "x", ":AAAA", "n:!", "n:AAAA"])
def test_broken_keys_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_public_key(text)


@pytest.mark.parametrize("name", ["", "a:b", "a b"])
def test_broken_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        generate_secret_key(name)
