"""Cases on Remote Asset and BuildStream's probes (m), LogStream, health and reflection."""

from __future__ import annotations

import threading

import grpc
from google.protobuf import timestamp_pb2
from google.rpc import error_details_pb2
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from conformance.reapi.cases import case
from conformance.reapi.client import (
    CALL_SECONDS,
    Endpoint,
    check,
    details_of,
    digest_of,
    directory_of,
    fresh,
    key,
    metadata_of,
    refused,
    shell,
    status_name,
)
from conformance.results import Failed, Skipped
from remote_apis import bytestream_pb2 as bs_pb2
from remote_apis import remote_asset_pb2 as ra_pb2
from remote_apis import remote_execution_pb2 as re_pb2
from remote_apis import remote_logstream_pb2 as ls_pb2


def _implemented(error: grpc.RpcError, service: str) -> None:
    if error.code() == StatusCode.UNIMPLEMENTED:
        raise Skipped(f"no {service} service") from error


def _uri() -> str:
    return f"urn:fdc:conformance:2026:{fresh().hex()}"


def _push(server: Endpoint, uri: str, blob: re_pb2.Digest, *qualifiers: ra_pb2.Qualifier, **fields: object) -> None:
    request = ra_pb2.PushBlobRequest(
        instance_name=server.instance,
        uris=[uri],
        blob_digest=blob,
        qualifiers=qualifiers,
        **fields,  # type: ignore[arg-type]
    )
    try:
        server.push.PushBlob(request, timeout=CALL_SECONDS)
    except grpc.RpcError as error:
        _implemented(error, "Remote Asset")
        raise


def _fetch(server: Endpoint, uri: str, *qualifiers: ra_pb2.Qualifier) -> ra_pb2.FetchBlobResponse | None:
    """Fetch a blob; None when the server says NOT_FOUND in either place."""
    request = ra_pb2.FetchBlobRequest(instance_name=server.instance, uris=[uri], qualifiers=qualifiers)
    try:
        reply = server.fetch.FetchBlob(request, timeout=CALL_SECONDS)
    except grpc.RpcError as error:
        if error.code() == StatusCode.NOT_FOUND:
            return None
        raise
    return None if reply.status.code == 5 else reply


@case("m.probes", "BuildStream's probes: FetchBlob and PushBlob without a URI are INVALID_ARGUMENT")
def probes(server: Endpoint) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, why="FetchBlob without a URI"):
        try:
            server.fetch.FetchBlob(ra_pb2.FetchBlobRequest(instance_name=server.instance), timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            _implemented(error, "Remote Asset")
            raise
    with refused(StatusCode.INVALID_ARGUMENT, why="PushBlob without a URI"):
        server.push.PushBlob(ra_pb2.PushBlobRequest(instance_name=server.instance), timeout=CALL_SECONDS)
    with refused(StatusCode.INVALID_ARGUMENT, why="FetchDirectory without a URI"):
        server.fetch.FetchDirectory(ra_pb2.FetchDirectoryRequest(instance_name=server.instance), timeout=CALL_SECONDS)


@case("m.probe-execute", "BuildStream's probe: Execute without a digest is INVALID_ARGUMENT", "execution")
def probe_execute(server: Endpoint) -> None:
    request = re_pb2.ExecuteRequest(instance_name=server.instance)
    with refused(StatusCode.INVALID_ARGUMENT, why="Execute without a digest"):
        list(server.execution.Execute(request, timeout=CALL_SECONDS))


@case("asset.blob", "what was pushed under a URI can be fetched; another URI is NOT_FOUND")
def asset_blob(server: Endpoint) -> None:
    uri, blob = _uri(), server.put(fresh())
    _push(server, uri, blob)
    reply = _fetch(server, uri)
    if reply is None:
        raise Failed("NOT_FOUND after the push")
    check(reply.status.code == 0, f"status {status_name(reply.status.code)}: {reply.status.message}")
    check(key(reply.blob_digest) == key(blob) and reply.uri == uri, "another blob or URI comes back")
    check(_fetch(server, _uri()) is None, "an unknown URI is found")


@case("asset.directory", "PushDirectory and FetchDirectory")
def asset_directory(server: Endpoint) -> None:
    uri = _uri()
    root = server.put(directory_of({"f": server.put(fresh())}).SerializeToString())
    push = ra_pb2.PushDirectoryRequest(instance_name=server.instance, uris=[uri], root_directory_digest=root)
    try:
        server.push.PushDirectory(push, timeout=CALL_SECONDS)
    except grpc.RpcError as error:
        _implemented(error, "Remote Asset")
        raise
    fetch = ra_pb2.FetchDirectoryRequest(instance_name=server.instance, uris=[uri])
    reply = server.fetch.FetchDirectory(fetch, timeout=CALL_SECONDS)
    check(key(reply.root_directory_digest) == key(root), "another directory comes back")


@case("asset.qualifiers", "a push with qualifiers is found with the same ones, in any order, and not with others")
def asset_qualifiers(server: Endpoint) -> None:
    uri, blob = _uri(), server.put(fresh())
    branch = ra_pb2.Qualifier(name="vcs.branch", value="main")
    kind = ra_pb2.Qualifier(name="resource_type", value="application/x-git")
    _push(server, uri, blob, branch, kind)
    check(_fetch(server, uri, kind, branch) is not None, "not found with the same qualifiers in another order")
    other = ra_pb2.Qualifier(name="vcs.branch", value="other")
    check(_fetch(server, uri, other, kind) is None, "found with another qualifier value")


@case("asset.several-uris", "one push under several URIs; one fetch with several tries them")
def asset_several(server: Endpoint) -> None:
    uris, blob = [_uri(), _uri()], server.put(fresh())
    request = ra_pb2.PushBlobRequest(instance_name=server.instance, uris=uris, blob_digest=blob)
    try:
        server.push.PushBlob(request, timeout=CALL_SECONDS)
    except grpc.RpcError as error:
        _implemented(error, "Remote Asset")
        raise
    check(all(_fetch(server, uri) for uri in uris), "not found under every URI")
    both = ra_pb2.FetchBlobRequest(instance_name=server.instance, uris=[_uri(), uris[1]])
    reply = server.fetch.FetchBlob(both, timeout=CALL_SECONDS)
    check(reply.status.code == 0 and reply.uri == uris[1], f"fetch of two URIs: {reply.status.message} {reply.uri!r}")


@case("asset.expired", "a pushed asset is not served after its expire_at")
def asset_expired(server: Endpoint) -> None:
    uri = _uri()
    _push(server, uri, server.put(fresh()), expire_at=timestamp_pb2.Timestamp(seconds=1_000_000_000))
    check(_fetch(server, uri) is None, "served after its end")


@case("asset.gone", "an asset whose blob is not in the store is not served")
def asset_gone(server: Endpoint) -> None:
    uri = _uri()
    try:
        _push(server, uri, digest_of(fresh()))
    except grpc.RpcError as error:
        code = error.code()
        check(code in (StatusCode.FAILED_PRECONDITION, StatusCode.NOT_FOUND, StatusCode.INVALID_ARGUMENT), code.name)
    check(_fetch(server, uri) is None, "served though its blob is absent")


@case(
    "asset.unknown-qualifier",
    "a qualifier that cannot be honoured when fetching is INVALID_ARGUMENT naming it, or a miss",
)
def asset_unknown_qualifier(server: Endpoint) -> str:
    qualifier = ra_pb2.Qualifier(name="nonsense.qualifier", value="x")
    try:
        reply = _fetch(server, _uri(), qualifier)
    except grpc.RpcError as error:
        _implemented(error, "Remote Asset")
        check(error.code() == StatusCode.INVALID_ARGUMENT, f"{error.code()}")
        bad_request = error_details_pb2.BadRequest()
        details = details_of(error)  # type: ignore[arg-type]
        check(details and details[0].Unpack(bad_request), "no BadRequest detail")
        check("qualifiers.name" in bad_request.field_violations[0].field, f"{bad_request.field_violations[0].field}")
        return "INVALID_ARGUMENT"
    check(reply is None, "found")
    return "a miss"


@case("asset.bad-digest", "a push with a malformed digest is INVALID_ARGUMENT")
def asset_bad_digest(server: Endpoint) -> None:
    with refused(StatusCode.INVALID_ARGUMENT, why="PushBlob with a malformed digest"):
        _push(server, _uri(), re_pb2.Digest(hash="xyz", size_bytes=1))


def _create_log(server: Endpoint) -> ls_pb2.LogStream:
    try:
        return server.logstream.CreateLogStream(
            ls_pb2.CreateLogStreamRequest(parent=server.instance or "conformance"), timeout=CALL_SECONDS
        )
    except grpc.RpcError as error:
        _implemented(error, "LogStream")
        raise


@case("log.tail", "a reader of a log stream sees what is written while it is written, and its end")
def log_tail(server: Endpoint) -> None:
    log = _create_log(server)
    check(log.name and log.write_resource_name and log.name != log.write_resource_name, f"names {log}")
    seen: list[bytes] = []
    first, ended = threading.Event(), threading.Event()

    def follow() -> None:
        for reply in server.bytestream.Read(bs_pb2.ReadRequest(resource_name=log.name), timeout=CALL_SECONDS):
            seen.append(reply.data)
            first.set()
        ended.set()

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()

    def write() -> object:
        yield bs_pb2.WriteRequest(resource_name=log.write_resource_name, data=b"one ")
        check(first.wait(5), "the reader sees nothing while it is written")
        yield bs_pb2.WriteRequest(write_offset=4, data=b"two", finish_write=True)

    server.bytestream.Write(write(), timeout=CALL_SECONDS)  # type: ignore[arg-type]
    check(ended.wait(5), "the reader does not see the end")
    check(b"".join(seen) == b"one two", f"the reader saw {b''.join(seen)!r}")
    check(server.read(log.name) == b"one two", "reading again differs")
    check(server.read(log.name, offset=4) == b"two", "reading from an offset differs")


@case("log.names", "reading by the write name and writing by the read name are errors")
def log_names(server: Endpoint) -> None:
    log = _create_log(server)
    with refused(StatusCode.INVALID_ARGUMENT, why="Read of write_resource_name"):
        server.read(log.write_resource_name)
    with refused(StatusCode.INVALID_ARGUMENT, StatusCode.PERMISSION_DENIED, StatusCode.NOT_FOUND, why="Write to name"):
        server.write(log.name, [b"x"])


@case("log.live", "stdout can be followed while the action runs", "execution")
def log_live(server: Endpoint) -> str:
    stream = server.start(server.put_action(shell("echo early; sleep 2; echo late")))
    name = ""
    for operation in stream:
        name = metadata_of(operation).stdout_stream_name
        if name or operation.done:
            break
    if not name:
        list(stream)
        raise Skipped("no stdout_stream_name")
    replies = server.bytestream.Read(bs_pb2.ReadRequest(resource_name=name), timeout=CALL_SECONDS)
    first = next(iter(replies)).data
    check(first.startswith(b"early"), f"first bytes {first!r}")
    live = b"late" not in first
    rest = b"".join(reply.data for reply in replies)
    check((first + rest) == b"early\nlate\n", f"stream {first + rest!r}")
    check(live, "the stream came only at the end")
    list(stream)
    return name


@case("health", "grpc.health.v1: the server is SERVING; an unknown service is NOT_FOUND")
def health(server: Endpoint) -> None:
    stub = health_pb2_grpc.HealthStub(server.channel)
    try:
        reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=CALL_SECONDS)
    except grpc.RpcError as error:
        _implemented(error, "health")
        raise
    check(reply.status == health_pb2.HealthCheckResponse.SERVING, f"status {reply.status}")
    with refused(StatusCode.NOT_FOUND, why="an unknown service"):
        stub.Check(health_pb2.HealthCheckRequest(service="nonsense"), timeout=CALL_SECONDS)


@case("reflection", "server reflection lists the services")
def reflection(server: Endpoint) -> str:
    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    try:
        (reply,) = stub.ServerReflectionInfo(iter([request]), timeout=CALL_SECONDS)
    except grpc.RpcError as error:
        _implemented(error, "reflection")
        raise
    names = {service.name for service in reply.list_services_response.service}
    check("build.bazel.remote.execution.v2.ContentAddressableStorage" in names, f"services {sorted(names)}")
    return f"{len(names)} services"
