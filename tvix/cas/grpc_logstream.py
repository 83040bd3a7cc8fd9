"""The LogStream service. Streams are written and read through ByteStream, see grpc_bytestream.py."""

from __future__ import annotations

from typing import Any

from remote_apis import remote_logstream_pb2 as log_pb2
from remote_apis import remote_logstream_pb2_grpc as log_grpc
from tvix.cas.logstream import LogStreams
from tvix.errors import InvalidInput
from tvix.rpc import handled


class LogStreamService(log_grpc.LogStreamServiceServicer):
    """Makes streams for clients."""

    def __init__(self, streams: LogStreams) -> None:
        self._streams = streams

    @handled
    async def CreateLogStream(self, request: log_pb2.CreateLogStreamRequest, context: Any) -> log_pb2.LogStream:
        """Return the names of a new stream."""
        if not request.parent:
            raise InvalidInput("parent: empty", field="parent")
        names = await self._streams.create(request.parent)
        return log_pb2.LogStream(name=names.name, write_resource_name=names.write_name)


def register_logstream(server: Any, streams: LogStreams) -> None:
    """Add the service to a server that was not started yet."""
    log_grpc.add_LogStreamServiceServicer_to_server(LogStreamService(streams), server)
