"""Compressed messages and their limits."""

import gzip

import pytest

from tvix.http2.stream import BadMessage, MessageTooLarge, decompress


def test_messages_are_inflated_up_to_the_limit_and_no_further() -> None:
    assert decompress(gzip.compress(b"a" * 1000), "gzip", 1000) == b"a" * 1000
    with pytest.raises(MessageTooLarge):
        decompress(gzip.compress(b"a" * 1001), "gzip", 1000)
    with pytest.raises(BadMessage):
        decompress(gzip.compress(b"a" * 100)[:-9], "gzip", 1000)
    with pytest.raises(BadMessage):
        decompress(b"plain", "gzip", 1000)
    with pytest.raises(BadMessage):
        decompress(b"", "brotli", 1000)
