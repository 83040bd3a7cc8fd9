"""How a worker's response is completed, and whether it may be cached. Pure."""

from __future__ import annotations

from google.rpc import status_pb2

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.errors import DeadlineExceeded, codes_of

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
