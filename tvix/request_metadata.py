"""The header in which clients say who they are and what for: RequestMetadata of the Remote Execution API.

It is optional and for logs, metrics, fairness and quirks only: a malformed one counts as absent and
never fails a call.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError

from remote_apis import remote_execution_pb2 as re_pb2

HEADER = "build.bazel.remote.execution.v2.requestmetadata-bin"


def request_metadata(context: Any) -> re_pb2.RequestMetadata:
    """Return what the caller of this RPC said about itself; empty when it said nothing readable."""
    value = header(context, HEADER)
    if isinstance(value, bytes):
        try:
            return re_pb2.RequestMetadata.FromString(value)
        except DecodeError:
            pass
    return re_pb2.RequestMetadata()


def header(context: Any, name: str) -> str | bytes | None:
    """Return the first value of a request header, None when it is not there. `context` is an RPC's."""
    for key, value in context.invocation_metadata() or ():
        if key == name:
            return value  # type: ignore[no-any-return]
    return None
