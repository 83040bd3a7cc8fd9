"""What to do with what a worker reports: complete it, and see whether its blobs are there."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import Digest, DigestFunction, digest_from_proto, function_to_wire
from tvix.cas.directory import directories_from_tree
from tvix.cas.interfaces import BlobStore
from tvix.cas.tree import TreeWalker
from tvix.errors import DeadlineExceeded, TvixError, codes_of

TIMEOUT_MESSAGE = "execution timeout exceeded"
"""siso takes a DEADLINE_EXCEEDED for an action's timeout only with exactly this text."""
_DEADLINE_EXCEEDED = codes_of(DeadlineExceeded("")).grpc


def normalize(response: re_pb2.ExecuteResponse, worker_id: str, queued: re_pb2.ExecutedActionMetadata) -> None:
    """Complete a worker's response in place: text of a timeout, worker, time of queueing."""
    if response.status.code == _DEADLINE_EXCEEDED:
        response.status.message = TIMEOUT_MESSAGE
    if not response.HasField("result"):
        return
    metadata = response.result.execution_metadata
    # A result must not serialize to nothing, which would look like the empty blob.
    metadata.worker = metadata.worker or worker_id
    if not metadata.HasField("queued_timestamp"):
        metadata.queued_timestamp.CopyFrom(queued.queued_timestamp)


def is_cacheable(response: re_pb2.ExecuteResponse, action: re_pb2.Action) -> bool:
    """Tell whether the result may go into the action cache."""
    return not (
        action.do_not_cache
        or response.status.code
        or response.result.exit_code
        or response.cached_result
        or not response.HasField("result")
    )


def status_response(status: status_pb2.Status) -> re_pb2.ExecuteResponse:
    """Return the response of an execution that ended without a result."""
    return re_pb2.ExecuteResponse(status=status, message=status.message)


def _named(result: re_pb2.ActionResult) -> Iterator[tuple[str, re_pb2.Digest]]:
    for file in result.output_files:
        yield f"output file {file.path!r}", file.digest
    if result.HasField("stdout_digest"):
        yield "stdout", result.stdout_digest
    if result.HasField("stderr_digest"):
        yield "stderr", result.stderr_digest


async def missing_outputs(
    result: re_pb2.ActionResult, function: DigestFunction, blobs: BlobStore, trees: TreeWalker
) -> set[Digest]:
    """Return the blobs that a result names, in trees too, and the store lacks. A Tree that is none is missing."""
    wire = function_to_wire(function)
    needed = {digest_from_proto(message, wire, field=what) for what, message in _named(result)}
    missing: set[Digest] = set()
    for directory in result.output_directories:
        if directory.HasField("root_directory_digest"):
            root = digest_from_proto(directory.root_directory_digest, wire, field="root_directory_digest")
            missing |= await trees.missing_inputs((), (root,))
        if directory.HasField("tree_digest"):
            tree = digest_from_proto(directory.tree_digest, wire, field="tree_digest")
            files = await _tree_files(tree, blobs)
            needed |= {tree} if files is None else files
            if files is None:
                missing.add(tree)
    return missing | (await blobs.find_missing(needed) if needed else set())


async def _tree_files(tree: Digest, blobs: BlobStore) -> set[Digest] | None:
    data = (await blobs.get_many([tree]))[0]
    if data is None:
        return None
    try:
        _, directories = directories_from_tree(data, tree.function)
        wire = function_to_wire(tree.function)
        return {
            digest_from_proto(file.digest, wire)
            for encoded in directories.values()
            for file in re_pb2.Directory.FromString(encoded).files
        }
    except (TvixError, DecodeError):
        return None
