"""google.longrunning.Operations over the scheduler, and operations as wire messages."""

from __future__ import annotations

import base64
from typing import Any

from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import empty_pb2

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import digest_to_proto, function_to_wire
from tvix.errors import InvalidInput
from tvix.executor.interfaces import Stage
from tvix.executor.operation import Operation
from tvix.executor.scheduler import Scheduler
from tvix.rpc import handled

MAX_PAGE_SIZE = 1000
DEFAULT_PAGE_SIZE = 100


def operation_to_proto(operation: Operation) -> operations_pb2.Operation:
    """Return the wire form. `error` is never set: how an execution ended stands in its response."""
    metadata = re_pb2.ExecuteOperationMetadata(
        stage=int(operation.stage),  # type: ignore[arg-type]
        action_digest=digest_to_proto(operation.action_digest),
        digest_function=function_to_wire(operation.action_digest.function),
        stdout_stream_name=operation.stdout_stream_name,
        stderr_stream_name=operation.stderr_stream_name,
        partial_execution_metadata=operation.metadata,
    )
    message = operations_pb2.Operation(name=operation.name, done=operation.done)
    message.metadata.Pack(metadata)
    if operation.response is not None:
        message.response.Pack(operation.response)
    return message


class OperationsService(operations_pb2_grpc.OperationsServicer):  # type: ignore[misc]  # untyped package
    """Get, List, Cancel, Delete and Wait."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    @handled
    async def GetOperation(self, request: operations_pb2.GetOperationRequest, context: Any) -> operations_pb2.Operation:
        return operation_to_proto(await self._scheduler.get(_name(request.name)))

    @handled
    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, context: Any
    ) -> operations_pb2.ListOperationsResponse:
        """List by name. `name` is an instance, with or without `/operations`; empty lists all.

        Filters: terms joined by AND, of `done=true|false`, `stage=QUEUED|…`, `name=PREFIX`.
        """
        if request.page_size < 0:
            raise InvalidInput(f"page_size: {request.page_size} is negative", field="page_size")
        size = min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        after = _after_from_token(request.page_token)
        wanted = _Filter(request.name, request.filter)
        # In flight and finished are two sorted lists; one more than a page tells whether there is another.
        found = [item for item in self._scheduler.operations_in_flight() if item.name > after and wanted.matches(item)]
        if wanted.may_be_done:
            found += await self._done(wanted, after, size + 1)
        page = sorted(found, key=lambda item: item.name)[: size + 1]
        token = _token(page[size - 1].name) if len(page) > size else ""
        return operations_pb2.ListOperationsResponse(
            operations=[operation_to_proto(item) for item in page[:size]], next_page_token=token
        )

    async def _done(self, wanted: _Filter, after: str, count: int) -> list[Operation]:
        found: list[Operation] = []
        while len(found) < count:
            page = await self._scheduler.done_page(wanted.prefix, after, MAX_PAGE_SIZE)
            found += [item for item in page if wanted.matches(item)]
            if len(page) < MAX_PAGE_SIZE:
                break
            after = page[-1].name
        return found[:count]

    @handled
    async def CancelOperation(self, request: operations_pb2.CancelOperationRequest, context: Any) -> empty_pb2.Empty:
        await self._scheduler.cancel(_name(request.name))
        return empty_pb2.Empty()

    @handled
    async def DeleteOperation(self, request: operations_pb2.DeleteOperationRequest, context: Any) -> empty_pb2.Empty:
        await self._scheduler.delete(_name(request.name))
        return empty_pb2.Empty()

    @handled
    async def WaitOperation(
        self, request: operations_pb2.WaitOperationRequest, context: Any
    ) -> operations_pb2.Operation:
        """Return the operation when it has ended, or as it is when the timeout is over."""
        operation = await self._scheduler.get(_name(request.name))
        timeout_seconds = request.timeout.ToNanoseconds() / 1e9 if request.HasField("timeout") else None
        if timeout_seconds is not None and timeout_seconds < 0:
            raise InvalidInput(f"timeout: {timeout_seconds:g} s is negative", field="timeout")
        await self._scheduler.wait_done(operation, timeout_seconds)
        return operation_to_proto(operation)


def _name(name: str) -> str:
    if not name:
        raise InvalidInput("name: is empty; it must be an operation's", field="name")
    return name


def _token(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def _after_from_token(token: str) -> str:
    try:
        return base64.b64decode(token.encode(), b"-_", validate=True).decode()
    except ValueError as error:
        raise InvalidInput(f"page_token: {token!r} is not one of ours", field="page_token") from error


class _Filter:
    """What ListOperations asks for."""

    def __init__(self, collection: str, text: str) -> None:
        self.prefix = _prefix(collection)
        self._done: bool | None = None
        self._stage: Stage | None = None
        self._name = ""
        for term in text.split(" AND ") if text.strip() else ():
            self._add(term, text)

    def _add(self, term: str, text: str) -> None:
        key, separator, value = (part.strip().strip('"') for part in term.partition("="))
        if not separator:
            raise InvalidInput(f"filter: {text!r}: {term!r} is not KEY=VALUE", field="filter")
        if key == "done" and value in ("true", "false"):
            self._done = value == "true"
        elif key == "stage" and value.upper() in Stage.__members__:
            self._stage = Stage[value.upper()]
        elif key == "name":
            self._name = value
        else:
            message = f"filter: {text!r}: {term!r} is not understood; there are done=true|false, stage=…, name=PREFIX"
            raise InvalidInput(message, field="filter")

    @property
    def may_be_done(self) -> bool:
        """Whether a finished operation could match."""
        return self._done is not False and self._stage in (None, Stage.COMPLETED)

    def matches(self, operation: Operation) -> bool:
        """Tell whether the operation is asked for."""
        return (
            operation.name.startswith(self.prefix)
            and operation.name.startswith(self._name)
            and self._done in (None, operation.done)
            and self._stage in (None, operation.stage)
        )


def _prefix(collection: str) -> str:
    """Return what the names of an instance's operations begin with."""
    collection = collection.strip("/")
    if not collection:
        return ""
    return f"{collection}/" if collection.split("/")[-1] == "operations" else f"{collection}/operations/"


def register_operations(server: Any, scheduler: Scheduler) -> None:
    """Serve google.longrunning.Operations on a grpc.aio server."""
    operations_pb2_grpc.add_OperationsServicer_to_server(OperationsService(scheduler), server)
