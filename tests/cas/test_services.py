import grpc
import pytest
from grpc import aio

from remote_apis import remote_asset_pb2 as ra_pb2
from remote_apis import remote_asset_pb2_grpc as ra_grpc
from remote_apis import remote_execution_pb2 as re_pb2
from remote_apis import remote_logstream_pb2 as log_pb2
from remote_apis import remote_logstream_pb2_grpc as log_grpc
from tests.cas.grpc_server import serve


async def test_services_without_a_store_are_not_served() -> None:
    async with serve() as served:
        assert (await served.capabilities.GetCapabilities(re_pb2.GetCapabilitiesRequest())).HasField(
            "cache_capabilities"
        )
        for call in (
            ra_grpc.FetchStub(served.channel).FetchBlob(ra_pb2.FetchBlobRequest()),
            log_grpc.LogStreamServiceStub(served.channel).CreateLogStream(log_pb2.CreateLogStreamRequest(parent="x")),
        ):
            with pytest.raises(aio.AioRpcError) as caught:
                await call
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
