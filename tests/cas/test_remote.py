"""A peer's limits, asked once, and modest requests to one that does not say."""

from typing import Any

import pytest

from remote_apis import remote_execution_pb2 as re_pb2
from remote_apis import remote_execution_pb2_grpc as re_grpc
from tests.cas.reapi_server import serving
from tvix.cas.connection import connect
from tvix.cas.remote import SAFE_BATCH_BYTES, ClientConfig, Remote

QUICK = ClientConfig(attempts=2, first_wait_seconds=0.001, max_wait_seconds=0.001, compress=True)


class Capabilities(re_grpc.CapabilitiesServicer):
    def __init__(self, limits: re_pb2.CacheCapabilities) -> None:
        self.limits = limits
        self.instances: list[str] = []

    async def GetCapabilities(self, request: Any, context: Any) -> re_pb2.ServerCapabilities:
        self.instances.append(request.instance_name)
        return re_pb2.ServerCapabilities(cache_capabilities=self.limits)


@pytest.mark.parametrize(("announced", "used"), [(1000, 1000), (0, SAFE_BATCH_BYTES), (2**40, SAFE_BATCH_BYTES)])
async def test_batches_are_as_large_as_announced_but_fit_a_message(announced: int, used: int) -> None:
    peer = Capabilities(re_pb2.CacheCapabilities(max_batch_total_size_bytes=announced))
    async with (
        serving(lambda server: re_grpc.add_CapabilitiesServicer_to_server(peer, server)) as url,
        connect(f"{url}/main") as connection,
    ):
        remote = Remote(connection, QUICK)
        assert [await remote.batch_bytes() for _ in range(3)] == [used] * 3
    assert peer.instances == ["main"]


async def test_zstd_is_used_where_announced() -> None:
    zstd = re_pb2.Compressor.ZSTD
    peer = Capabilities(re_pb2.CacheCapabilities(supported_compressors=[zstd]))
    async with (
        serving(lambda server: re_grpc.add_CapabilitiesServicer_to_server(peer, server)) as url,
        connect(url) as connection,
    ):
        remote = Remote(connection, QUICK)
        assert await remote.compresses(batches=False)
        assert not await remote.compresses(batches=True)
        assert not await Remote(connection, ClientConfig()).compresses(batches=False)


async def test_a_peer_without_capabilities_gets_modest_requests() -> None:
    async with serving(lambda server: None) as url, connect(url) as connection:
        remote = Remote(connection, QUICK)
        assert await remote.batch_bytes() == SAFE_BATCH_BYTES
        assert not await remote.compresses(batches=False)
