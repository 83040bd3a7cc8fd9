"""What a front serves, over connections to a running server."""

import threading
import urllib.request

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from remote_apis import remote_asset_pb2 as ra_pb2
from remote_apis import remote_asset_pb2_grpc as ra_grpc
from remote_apis import remote_execution_pb2 as re_pb2
from remote_apis import remote_execution_pb2_grpc as re_grpc
from remote_apis import remote_logstream_pb2 as log_pb2
from remote_apis import remote_logstream_pb2_grpc as log_grpc
from tests.server.running import RunningServer
from tvix.server.front import DATA_SERVICES, EXECUTION_SERVICES

SERVICES = [*DATA_SERVICES, *EXECUTION_SERVICES]


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_every_service_has_a_health(server: RunningServer, service: str) -> None:
    with server.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_a_service_that_is_none_has_no_health(server: RunningServer) -> None:
    with server.channel() as channel, pytest.raises(grpc.RpcError) as raised:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="x.Y"), timeout=20)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_lists_every_service(server: RunningServer) -> None:
    with server.channel() as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (reply,) = stub.ServerReflectionInfo(iter([request]), timeout=20)
        listed = {service.name for service in reply.list_services_response.service}
        assert listed >= {*SERVICES, "grpc.health.v1.Health"}


def test_assets_and_log_streams_are_shared_by_the_fronts(server: RunningServer) -> None:
    digest = server.put(b"an asset")
    with server.channel() as channel:
        push = ra_pb2.PushBlobRequest(uris=["urn:example:1"], blob_digest=digest)
        ra_grpc.PushStub(channel).PushBlob(push, timeout=20)
        stream = log_grpc.LogStreamServiceStub(channel).CreateLogStream(
            log_pb2.CreateLogStreamRequest(parent="here"), timeout=20
        )
        assert stream.write_resource_name.startswith(stream.name)
    for _ in range(6):
        with server.channel() as channel:
            reply = ra_grpc.FetchStub(channel).FetchBlob(ra_pb2.FetchBlobRequest(uris=["urn:example:1"]), timeout=20)
            assert reply.blob_digest == digest


def test_a_cancelled_operation_tells_its_client(server: RunningServer) -> None:
    from google.longrunning import operations_pb2, operations_pb2_grpc

    action = server.put_action("sleep 60")
    with server.channel() as channel:
        stream = re_grpc.ExecutionStub(channel).Execute(re_pb2.ExecuteRequest(action_digest=action), timeout=60)
        name = next(stream).name
        request = operations_pb2.CancelOperationRequest(name=name)
        operations_pb2_grpc.OperationsStub(channel).CancelOperation(request, timeout=20)
        *_, last = stream
    response = re_pb2.ExecuteResponse()
    last.response.Unpack(response)
    assert response.status.code == grpc.StatusCode.CANCELLED.value[0]


def test_http_and_grpc_answer_at_the_same_time(server: RunningServer) -> None:
    digest = server.put(b"\x01" * 300_000)
    results: list[int] = []

    def fetch() -> None:
        with urllib.request.urlopen(f"http://{server.http_address}/cas/{digest.hash}", timeout=30) as response:
            results.append(len(response.read()))

    threads = [threading.Thread(target=fetch) for _ in range(16)]
    for thread in threads:
        thread.start()
    assert server.get(digest) == b"\x01" * 300_000
    for thread in threads:
        thread.join()
    assert results == [300_000] * 16
