"""The error tree and its table."""

import pytest

from tvix import errors
from tvix.cas.digest import digest_of
from tvix.errors import CODES, MissingBlobs, TvixError, codes_of


def all_kinds(kind: type[TvixError] = TvixError) -> list[type[TvixError]]:
    """Return the whole tree below and with `kind`."""
    return [kind, *(below for child in kind.__subclasses__() for below in all_kinds(child))]


@pytest.mark.parametrize("kind", [kind for kind in all_kinds() if kind.__module__ == "tvix.errors"])
def test_every_error_has_codes_and_stands_in_the_drawing(kind: type[TvixError]) -> None:
    error = kind.__new__(kind)
    assert codes_of(error) in CODES.values()
    assert kind.__name__ in (errors.__doc__ or "")


def test_an_error_without_codes_of_its_own_has_its_parents() -> None:
    assert codes_of(errors.BlobNotFound(digest_of(b""))) == CODES[errors.NotFound]
    assert codes_of(errors.InvalidDigest("x")) == CODES[errors.InvalidInput]


def test_grpc_codes_are_not_used_twice_for_things_that_differ() -> None:
    codes = [codes.grpc for kind, codes in CODES.items() if kind is not TvixError]
    assert len(set(codes)) == len(codes)


def test_exit_codes_leave_0_for_success() -> None:
    assert all(0 < codes.exit < 256 and 400 <= codes.http < 600 for codes in CODES.values())


def test_all_missing_blobs_are_carried_though_few_are_shown() -> None:
    digests = [digest_of(bytes([number])) for number in range(5)]
    error = MissingBlobs(reversed(digests))
    assert error.digests == tuple(sorted(digests))
    assert str(error).startswith("5 blob(s) missing from the store: ")
    assert str(error).endswith(" and 2 more")
