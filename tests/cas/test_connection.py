"""URLs of peers: what they mean, and what is wrong with bad ones."""

import pytest

from tvix.cas.connection import Endpoint, connect, parse_endpoint
from tvix.errors import InvalidInput

GOOD = [
    ("grpc://host:8980", Endpoint("host:8980")),
    ("grpc://host:8980/", Endpoint("host:8980")),
    ("grpc://host:1/a/b", Endpoint("host:1", "a/b")),
    ("grpcs://host:443/x%20y", Endpoint("host:443", "x y", tls=True)),
    ("grpc://[::1]:5", Endpoint("[::1]:5")),
    ("127.0.0.1:8980", Endpoint("127.0.0.1:8980")),
    ("localhost:8980/main", Endpoint("localhost:8980", "main")),
    ("unix:/run/tvix.sock", Endpoint("unix:/run/tvix.sock")),
    ("unix:///run/tvix.sock?instance=main", Endpoint("unix:/run/tvix.sock", "main")),
]

BAD = [
    ("grpc://host", "write grpc://host:port/instance"),
    ("grpc://:80", "write grpc://host:port/instance"),
    ("grpc://host:99999", "Port out of range"),
    ("grpc://host:port", "Port could not be cast"),
    ("http://host:80", "the scheme 'http' is none of grpc, grpcs, unix"),
    ("grpc://user@host:80", "write grpc://host:port/instance"),
    ("grpc://host:80?x=y", "write grpc://host:port/instance"),
    ("unix:", "write unix:/absolute"),
    ("unix://run/tvix.sock", "write unix:/absolute"),
    ("grpc://host:80/a//b", "double slash"),
    ("grpc://host:80/blobs", "reserved word"),
]


@pytest.mark.parametrize(("url", "endpoint"), GOOD)
def test_good_urls(url: str, endpoint: Endpoint) -> None:
    assert parse_endpoint(url) == endpoint


@pytest.mark.parametrize(("url", "reason"), BAD)
def test_bad_urls_are_refused_with_advice(url: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        parse_endpoint(url)


async def test_connecting_sends_nothing_yet_and_headers_are_lowercase() -> None:
    async with connect("grpc://127.0.0.1:1/main", {"Authorization": "Bearer x"}) as connection:
        assert connection.metadata == (("authorization", "Bearer x"),)
        assert repr(connection) == "<Connection 127.0.0.1:1 instance 'main'>"
    async with connect("grpcs://127.0.0.1:1") as connection:
        assert connection.endpoint.tls
