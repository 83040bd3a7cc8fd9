"""SHA256TREE against the vectors that the Remote Execution API publishes."""

import hashlib

import pytest

from tvix.cas import sha256tree
from tvix.cas.sha256tree import Sha256Tree

VECTORS = {
    1025: "36c0998b21839ef74300b9de47d96d1f62323dc81f2b4231e98ce70cd6ffe750",
    2048: "b584996386f01793751c5cf0c39561f51b7e9924b818943b3cb2f6928cea0fa9",
    2049: "7318d2029b0392edf4cf109edb5a086b4bdadbb7950f710a1483eb881d9e5d44",
    3072: "dfc61c0a041f79d55d53bfe31c6cda7df77fdc8e6fbac1143d70b7144fdf6937",
    7169: "ad729297ab36cd099665b27c4247474a5518e4cd0be443f5f31d95edda08429b",
    8192: "fcfdde6fe59178e17708c5ba647919c3b141a44c9d1970782e597e1465266932",
    16384: "a7a10149a8cb00be537000560edb83b196306b780b72fad8af218f369f75fc19",
    31744: "2cdf7662636c173d4b236f6ea03bf84c65e7f6487b53b2a61c420e26cf8a98c7",
    102400: "0668d69e5331840d2f1823d717b7b3f5d1fdc8a09504cddb692b87ff83d50e5f",
}


def sequence(length: int) -> bytes:
    return (bytes(range(251)) * (length // 251 + 1))[:length]


@pytest.mark.parametrize(("length", "expected"), VECTORS.items())
def test_published_vectors(length: int, expected: str) -> None:
    hasher = Sha256Tree()
    hasher.update(sequence(length))
    assert hasher.hexdigest() == expected


@pytest.mark.parametrize("length", [0, 1, 1023, 1024])
def test_up_to_one_leaf_is_plain_sha256(length: int) -> None:
    hasher = Sha256Tree()
    hasher.update(sequence(length))
    assert hasher.hexdigest() == hashlib.sha256(sequence(length)).hexdigest()


@pytest.mark.parametrize("step", [1, 7, 1000, 1024, 5000])
def test_result_does_not_depend_on_how_bytes_are_fed(step: int) -> None:
    data = sequence(8192)
    hasher = Sha256Tree()
    for start in range(0, len(data), step):
        hasher.update(data[start : start + step])
    assert hasher.hexdigest() == VECTORS[8192]


def test_the_cipher_in_python_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sha256tree, "_join", sha256tree.join_in_python)
    hasher = Sha256Tree()
    hasher.update(sequence(31744))
    assert hasher.hexdigest() == VECTORS[31744]
