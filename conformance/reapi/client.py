"""The suite's view of a server: stubs, and the few compound calls that many cases need.

Nothing of tvix is imported here: what is tested must not test itself. Digests are computed with hashlib.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from conformance.results import Failed, Skipped
from remote_apis import (
    bytestream_pb2 as bs_pb2,
)
from remote_apis import (
    bytestream_pb2_grpc,
    remote_asset_pb2_grpc,
    remote_execution_pb2_grpc,
    remote_logstream_pb2_grpc,
)
from remote_apis import (
    remote_execution_pb2 as re_pb2,
)

CALL_SECONDS = 30.0
OPTIONS = [
    ("grpc.max_receive_message_length", 128 * 1024 * 1024),
    ("grpc.max_send_message_length", 128 * 1024 * 1024),
    ("grpc.use_local_subchannel_pool", 1),
]
EMPTY = re_pb2.Digest(hash=hashlib.sha256(b"").hexdigest(), size_bytes=0)


def digest_of(data: bytes) -> re_pb2.Digest:
    """Return the SHA-256 digest of bytes."""
    return re_pb2.Digest(hash=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def key(digest: re_pb2.Digest) -> str:
    """Return HASH/SIZE, for resource names, sets and messages."""
    return f"{digest.hash}/{digest.size_bytes}"


def fresh(size_bytes: int = 40) -> bytes:
    """Return bytes that no server has seen before: hex digits when few, so that scripts can hold them."""
    if size_bytes <= 32:
        return uuid.uuid4().hex[:size_bytes].encode()
    noise = hashlib.shake_128(uuid.uuid4().bytes)
    return noise.hexdigest(size_bytes)[:size_bytes].encode() if size_bytes < 1000 else noise.digest(size_bytes)


def check(condition: object, message: str) -> None:
    """Fail the case with `message` unless the condition holds."""
    if not condition:
        raise Failed(message)


@contextlib.contextmanager
def refused(*codes: StatusCode, why: str) -> Iterator[list[grpc.Call]]:
    """Expect the body to fail with one of `codes`; the error is put into the list yielded."""
    caught: list[grpc.Call] = []
    try:
        yield caught
    except grpc.RpcError as raised:
        error = cast("grpc.Call", raised)
        if error.code() not in codes:
            wanted = "/".join(code.name for code in codes)
            raise Failed(f"{why}: {error.code().name} ({error.details()!r:.200}), not {wanted}") from raised
        caught.append(error)
    else:
        raise Failed(f"{why}: accepted, not {'/'.join(code.name for code in codes)}")


def details_of(error: grpc.Call) -> list[any_pb2.Any]:
    """Return the google.rpc.Status details that came with a failed call."""
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            return list(status_pb2.Status.FromString(cast("bytes", value)).details)
    return []


def missing_subjects(details: Sequence[any_pb2.Any]) -> set[str]:
    """Return the subjects of the one PreconditionFailure that a FAILED_PRECONDITION must carry."""
    check(len(details) == 1, f"{len(details)} details with FAILED_PRECONDITION, not exactly one")
    failure = error_details_pb2.PreconditionFailure()
    check(details[0].Unpack(failure), f"the detail is a {details[0].type_url}, not a PreconditionFailure")
    for violation in failure.violations:
        check(violation.type == "MISSING", f"violation of type {violation.type!r}, not MISSING")
    return {violation.subject for violation in failure.violations}


@dataclass(frozen=True, slots=True)
class Executed:
    """What one Execute call brought."""

    operations: list[operations_pb2.Operation]
    response: re_pb2.ExecuteResponse

    @property
    def result(self) -> re_pb2.ActionResult:
        """The action result."""
        return self.response.result


@dataclass(slots=True)
class Endpoint:
    """One server, one instance name."""

    address: str
    instance: str = ""
    channel: grpc.Channel = field(init=False)
    _capabilities: re_pb2.ServerCapabilities | None = None

    def __post_init__(self) -> None:
        self.channel = grpc.insecure_channel(self.address, options=OPTIONS)

    def close(self) -> None:
        """Close the connection."""
        self.channel.close()

    # The stubs are cheap to make; having them as properties keeps the object small.
    @property
    def cas(self) -> remote_execution_pb2_grpc.ContentAddressableStorageStub:
        """ContentAddressableStorage."""
        return remote_execution_pb2_grpc.ContentAddressableStorageStub(self.channel)

    @property
    def bytestream(self) -> bytestream_pb2_grpc.ByteStreamStub:
        """ByteStream."""
        return bytestream_pb2_grpc.ByteStreamStub(self.channel)

    @property
    def actions(self) -> remote_execution_pb2_grpc.ActionCacheStub:
        """ActionCache."""
        return remote_execution_pb2_grpc.ActionCacheStub(self.channel)

    @property
    def execution(self) -> remote_execution_pb2_grpc.ExecutionStub:
        """Execution."""
        return remote_execution_pb2_grpc.ExecutionStub(self.channel)

    @property
    def operations(self) -> Any:
        """google.longrunning.Operations (its package carries no types)."""
        return operations_pb2_grpc.OperationsStub(self.channel)

    @property
    def fetch(self) -> remote_asset_pb2_grpc.FetchStub:
        """Remote Asset, reading."""
        return remote_asset_pb2_grpc.FetchStub(self.channel)

    @property
    def push(self) -> remote_asset_pb2_grpc.PushStub:
        """Remote Asset, writing."""
        return remote_asset_pb2_grpc.PushStub(self.channel)

    @property
    def logstream(self) -> remote_logstream_pb2_grpc.LogStreamServiceStub:
        """LogStream."""
        return remote_logstream_pb2_grpc.LogStreamServiceStub(self.channel)

    @property
    def capabilities(self) -> re_pb2.ServerCapabilities:
        """What the server announces for this instance, asked once."""
        if self._capabilities is None:
            stub = remote_execution_pb2_grpc.CapabilitiesStub(self.channel)
            request = re_pb2.GetCapabilitiesRequest(instance_name=self.instance)
            self._capabilities = stub.GetCapabilities(request, timeout=CALL_SECONDS)
        return self._capabilities

    @property
    def batch_limit(self) -> int:
        """Announced limit of batch calls; gRPC's own default when the server says 0."""
        return self.capabilities.cache_capabilities.max_batch_total_size_bytes or 4 * 1024 * 1024 - 64 * 1024

    def require_zstd(self) -> None:
        """Skip the case unless zstd is announced for ByteStream."""
        if re_pb2.Compressor.ZSTD not in self.capabilities.cache_capabilities.supported_compressors:
            raise Skipped("zstd is not announced")

    def require_function(self, value: re_pb2.DigestFunction.Value.ValueType) -> None:
        """Skip the case unless the digest function is announced."""
        if value not in self.capabilities.cache_capabilities.digest_functions:
            raise Skipped(f"{re_pb2.DigestFunction.Value.Name(value)} is not announced")

    # Blobs

    def resource(self, rest: str) -> str:
        """Return a resource name below the instance name."""
        return f"{self.instance}/{rest}" if self.instance else rest

    def upload_name(self, digest: re_pb2.Digest, upload_id: str = "") -> str:
        """Return the resource name for writing a blob as it is."""
        return self.resource(f"uploads/{upload_id or uuid.uuid4()}/blobs/{key(digest)}")

    def write(
        self, name: str, pieces: Iterable[bytes], *, offset: int = 0, finish: bool = True, step: int | None = None
    ) -> int:
        """Write pieces under a resource name; return the committed size. `step` overrides the offsets' growth."""

        def requests() -> Iterator[bs_pb2.WriteRequest]:
            position, first = offset, True
            ahead = [*pieces]
            for index, piece in enumerate(ahead):
                yield bs_pb2.WriteRequest(
                    resource_name=name if first else "",
                    write_offset=position,
                    data=piece,
                    finish_write=finish and index == len(ahead) - 1,
                )
                position, first = position + (len(piece) if step is None else step), False

        return int(self.bytestream.Write(requests(), timeout=CALL_SECONDS).committed_size)

    def read(self, name: str, *, offset: int = 0, limit: int = 0) -> bytes:
        """Read a resource to its end."""
        request = bs_pb2.ReadRequest(resource_name=name, read_offset=offset, read_limit=limit)
        return b"".join(reply.data for reply in self.bytestream.Read(request, timeout=CALL_SECONDS))

    def read_blob(self, digest: re_pb2.Digest, *, offset: int = 0, limit: int = 0) -> bytes:
        """Read a blob by ByteStream."""
        return self.read(self.resource(f"blobs/{key(digest)}"), offset=offset, limit=limit)

    def put(self, data: bytes) -> re_pb2.Digest:
        """Store a blob and return its digest."""
        digest = digest_of(data)
        if len(data) > self.batch_limit // 2:
            pieces = [data[start : start + 1024 * 1024] for start in range(0, len(data), 1024 * 1024)]
            self.write(self.upload_name(digest), pieces)
        elif data:
            self.put_many([data])
        return digest

    def put_many(self, blobs: Sequence[bytes]) -> list[re_pb2.Digest]:
        """Store small blobs in one call and return their digests."""
        digests = [digest_of(data) for data in blobs]
        requests = [
            re_pb2.BatchUpdateBlobsRequest.Request(digest=digest, data=data)
            for digest, data in zip(digests, blobs, strict=True)
            if data
        ]
        request = re_pb2.BatchUpdateBlobsRequest(instance_name=self.instance, requests=requests)
        for reply in self.cas.BatchUpdateBlobs(request, timeout=CALL_SECONDS).responses:
            check(reply.status.code == 0, f"upload of {key(reply.digest)}: {reply.status.message}")
        return digests

    def missing(self, digests: Iterable[re_pb2.Digest]) -> set[str]:
        """Return the keys of those digests that the server lacks."""
        request = re_pb2.FindMissingBlobsRequest(instance_name=self.instance, blob_digests=digests)
        reply = self.cas.FindMissingBlobs(request, timeout=CALL_SECONDS)
        return {key(digest) for digest in reply.missing_blob_digests}

    def batch_read(self, digests: Iterable[re_pb2.Digest], *compressors: Any) -> re_pb2.BatchReadBlobsResponse:
        """Read blobs in one call."""
        request = re_pb2.BatchReadBlobsRequest(
            instance_name=self.instance, digests=digests, acceptable_compressors=compressors
        )
        return self.cas.BatchReadBlobs(request, timeout=CALL_SECONDS)

    # Actions

    def put_action(
        self,
        command: re_pb2.Command,
        root: re_pb2.Directory | None = None,
        *,
        timeout_seconds: float | None = None,
        do_not_cache: bool = False,
        platform: re_pb2.Platform | None = None,
        salt: bytes = b"",
    ) -> re_pb2.Digest:
        """Store command, root directory and action; return the action's digest."""
        action = re_pb2.Action(
            command_digest=digest_of(command.SerializeToString()),
            input_root_digest=digest_of((root or re_pb2.Directory()).SerializeToString()),
            do_not_cache=do_not_cache,
            salt=salt or fresh(),
            platform=platform,
        )
        if timeout_seconds is not None:
            action.timeout.CopyFrom(duration_pb2.Duration(nanos=0))
            action.timeout.FromNanoseconds(int(timeout_seconds * 1e9))
        blobs = [command, root or re_pb2.Directory(), action]
        return self.put_many([blob.SerializeToString(deterministic=True) for blob in blobs])[-1]

    def start(
        self, action_digest: re_pb2.Digest, *, skip_cache: bool = False, seconds: float = 60.0, **fields: Any
    ) -> Any:
        """Start Execute and return the stream of operations."""
        request = re_pb2.ExecuteRequest(
            instance_name=self.instance, action_digest=action_digest, skip_cache_lookup=skip_cache, **fields
        )
        return self.execution.Execute(request, timeout=seconds)

    def execute(self, action_digest: re_pb2.Digest, **options: Any) -> Executed:
        """Run an action to its end."""
        return finish(self.start(action_digest, **options))

    def run(self, *arguments: str, root: re_pb2.Directory | None = None, **options: Any) -> Executed:
        """Run a command with the given output paths in a fresh action; fails the case unless it exits 0."""
        action_options = {
            name: options.pop(name)
            for name in ("timeout_seconds", "do_not_cache", "platform", "salt")
            if name in options
        }
        command = command_of(*arguments, **options)
        done = self.execute(self.put_action(command, root, **action_options))
        check_ran(done, stderr=lambda: self.stderr(done.result))
        return done

    def stdout(self, result: re_pb2.ActionResult) -> bytes:
        """Return a result's standard output, inline or stored."""
        return self._log(result.stdout_raw, result.stdout_digest)

    def stderr(self, result: re_pb2.ActionResult) -> bytes:
        """Return a result's standard error, inline or stored."""
        return self._log(result.stderr_raw, result.stderr_digest)

    def _log(self, raw: bytes, digest: re_pb2.Digest) -> bytes:
        return raw if raw or not digest.size_bytes else self.read_blob(digest)

    def tree(self, output: re_pb2.OutputDirectory) -> re_pb2.Tree:
        """Return an output directory's Tree."""
        return re_pb2.Tree.FromString(self.read_blob(output.tree_digest))

    def directory(self, digest: re_pb2.Digest) -> re_pb2.Directory:
        """Return a stored Directory."""
        return re_pb2.Directory.FromString(self.read_blob(digest) if digest.size_bytes else b"")

    def cached(self, action_digest: re_pb2.Digest, **fields: Any) -> re_pb2.ActionResult | None:
        """Return the cached result of an action, or None."""
        request = re_pb2.GetActionResultRequest(instance_name=self.instance, action_digest=action_digest, **fields)
        try:
            return self.actions.GetActionResult(request, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            if cast("grpc.Call", error).code() == StatusCode.NOT_FOUND:
                return None
            raise

    def cache(self, action_digest: re_pb2.Digest, result: re_pb2.ActionResult) -> re_pb2.ActionResult:
        """Store an action result."""
        request = re_pb2.UpdateActionResultRequest(
            instance_name=self.instance, action_digest=action_digest, action_result=result
        )
        return self.actions.UpdateActionResult(request, timeout=CALL_SECONDS)


def command_of(*arguments: str, env: dict[str, str] | None = None, **fields: Any) -> re_pb2.Command:
    """Return a Command; the environment is sorted as the spec wants it."""
    variables = [
        re_pb2.Command.EnvironmentVariable(name=name, value=value) for name, value in sorted((env or {}).items())
    ]
    return re_pb2.Command(arguments=arguments, environment_variables=variables, **fields)


def shell(script: str, **fields: Any) -> re_pb2.Command:
    """Return a Command that runs a shell script."""
    return command_of("/bin/sh", "-c", script, **fields)


def directory_of(
    files: dict[str, re_pb2.Digest] | None = None,
    directories: dict[str, re_pb2.Digest] | None = None,
    symlinks: dict[str, str] | None = None,
    executable: Iterable[str] = (),
) -> re_pb2.Directory:
    """Return a canonical Directory."""
    runnable = set(executable)
    return re_pb2.Directory(
        files=[
            re_pb2.FileNode(name=name, digest=digest, is_executable=name in runnable)
            for name, digest in sorted((files or {}).items())
        ],
        directories=[
            re_pb2.DirectoryNode(name=name, digest=digest) for name, digest in sorted((directories or {}).items())
        ],
        symlinks=[re_pb2.SymlinkNode(name=name, target=target) for name, target in sorted((symlinks or {}).items())],
    )


def metadata_of(operation: operations_pb2.Operation) -> re_pb2.ExecuteOperationMetadata:
    """Return an operation's metadata."""
    metadata = re_pb2.ExecuteOperationMetadata()
    check(operation.metadata.Unpack(metadata), f"operation metadata is {operation.metadata.type_url!r}")
    return metadata


def response_of(operation: operations_pb2.Operation) -> re_pb2.ExecuteResponse:
    """Return a finished operation's response."""
    check(operation.done, "the last operation of the stream is not done")
    check(not operation.HasField("error"), f"Operation.error is set: {operation.error.message!r}")
    response = re_pb2.ExecuteResponse()
    check(operation.response.Unpack(response), f"operation response is {operation.response.type_url!r}")
    return response


def finish(stream: Iterable[operations_pb2.Operation]) -> Executed:
    """Read a stream of operations to its end."""
    operations = list(stream)
    check(operations, "the stream of operations is empty")
    return Executed(operations, response_of(operations[-1]))


def check_ran(done: Executed, *, stderr: Callable[[], bytes] = lambda: b"") -> None:
    """Fail the case unless the action ran and exited 0."""
    status = done.response.status
    check(status.code == 0, f"status {status_name(status.code)}: {status.message}")
    if done.result.exit_code:
        raise Failed(f"exit code {done.result.exit_code}: {stderr().decode(errors='replace')[-300:]}")


def status_name(code: int) -> str:
    """Return the name of a google.rpc.Code."""
    return next((status.name for status in StatusCode if status.value[0] == code), str(code))


def code_of(error: grpc.RpcError) -> int:
    """Return the google.rpc.Code of a failed call."""
    return int(cast("grpc.Call", error).code().value[0])


def unary(channel: grpc.Channel, method: str, data: bytes) -> bytes:
    """Call a method with bytes that may be no message at all."""
    call: Any = channel.unary_unary(method)
    return cast("bytes", call(data, timeout=CALL_SECONDS))


def seconds_of(work: Callable[[], object]) -> float:
    """Return how long a call took."""
    started = time.monotonic()
    work()
    return time.monotonic() - started
