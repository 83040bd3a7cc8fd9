"""The gRPC edge: our errors as statuses and back. Nothing else maps codes (see tvix/errors.py).

A servicer method is wrapped with `handled`; inside, code raises TvixError.
Details attached, as the Remote Execution API asks: PreconditionFailure with one MISSING violation per
absent blob, BadRequest naming the field at fault, RetryInfo where we know when to come back.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar, cast

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from tvix import errors
from tvix.cas.digest import Digest, DigestFunction, function_from_wire, make_digest
from tvix.errors import MissingBlobs, TvixError, codes_of

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""What we accept and send; clients with lists of many digests exceed gRPC's 4 MiB."""

CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
]
"""For every channel we open."""

STATUS_DETAILS_KEY = "grpc-status-details-bin"


def status_from_error(error: BaseException) -> status_pb2.Status:
    """Return the status of an error, with its details. Foreign exceptions become INTERNAL."""
    if isinstance(error, asyncio.CancelledError):
        error = errors.Cancelled("the call was cancelled")
    if not isinstance(error, TvixError):
        return status_pb2.Status(code=codes_of(errors.Internal("")).grpc, message=f"{type(error).__name__}: {error}")
    status = status_pb2.Status(code=codes_of(error).grpc, message=str(error))
    for detail in _details(error):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _details(error: TvixError) -> list[Any]:
    # Pants accepts exactly one detail on FAILED_PRECONDITION, so there is never a second one.
    if isinstance(error, MissingBlobs):
        violations = [
            error_details_pb2.PreconditionFailure.Violation(type="MISSING", subject=f"blobs/{digest}")
            for digest in error.digests
        ]
        return [error_details_pb2.PreconditionFailure(violations=violations)]
    if isinstance(error, errors.InvalidInput) and error.violations:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
            for field, description in error.violations
        ]
        return [error_details_pb2.BadRequest(field_violations=violations)]
    if isinstance(error, errors.Unavailable) and error.retry_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_seconds * 1e9))
        return [error_details_pb2.RetryInfo(retry_delay=delay)]
    return []


_ERROR_BY_CODE: dict[int, type[TvixError]] = {
    codes.grpc: kind for kind, codes in errors.CODES.items() if kind is not TvixError
}


def error_from_status(status: status_pb2.Status) -> TvixError:
    """Return the error that a peer's status stands for; MISSING violations become MissingBlobs."""
    for detail in status.details:
        failure = error_details_pb2.PreconditionFailure()
        if detail.Is(failure.DESCRIPTOR) and detail.Unpack(failure):
            missing = [_digest_from_subject(v.subject) for v in failure.violations if v.type == "MISSING"]
            if missing and all(missing):
                return MissingBlobs(cast("list[Digest]", missing))
    return _ERROR_BY_CODE.get(status.code, TvixError)(status.message)


def _digest_from_subject(subject: str) -> Digest | None:
    parts = subject.split("/")
    try:
        if len(parts) == 3:
            return make_digest(function_from_wire(0, parts[1]), parts[1], int(parts[2]))
        return make_digest(cast("DigestFunction", parts[1]), parts[2], int(parts[3]))
    except (TvixError, KeyError, ValueError, IndexError):
        return None


def error_from_rpc(error: grpc.RpcError) -> TvixError:
    """Return the error that a failed call of ours stands for."""
    if not isinstance(error, aio.AioRpcError):
        return errors.Unavailable(str(error))
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_DETAILS_KEY:
            return error_from_status(status_pb2.Status.FromString(cast("bytes", value)))
    return error_from_status(status_pb2.Status(code=error.code().value[0], message=error.details() or ""))


async def abort(context: aio.ServicerContext[Any, Any], error: BaseException) -> None:
    """End the call with the status of `error`; always raises."""
    status = status_from_error(error)
    code = _STATUS_CODES[status.code]
    trailing = ((STATUS_DETAILS_KEY, status.SerializeToString()),) if status.details else ()
    await context.abort(code, status.message, trailing)


_STATUS_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

Method = TypeVar("Method", bound=Callable[..., Any])


def handled(method: Method) -> Method:
    """Wrap a servicer method, unary or streaming, so that what it raises becomes the call's status."""
    if inspect.isasyncgenfunction(method):

        @functools.wraps(method)
        async def stream(self: Any, request: Any, context: Any) -> AsyncIterator[Any]:
            replies = method(self, request, context)
            try:
                async for reply in replies:
                    yield reply
            except Exception as error:
                await _fail(method, context, error)
            finally:
                await replies.aclose()

        return cast("Method", stream)

    @functools.wraps(method)
    async def unary(self: Any, request: Any, context: Any) -> Any:
        try:
            return await cast("Awaitable[Any]", method(self, request, context))
        except Exception as error:
            await _fail(method, context, error)

    return cast("Method", unary)


async def _fail(method: Callable[..., Any], context: Any, error: Exception) -> None:
    if isinstance(error, aio.AbortError):
        raise error
    if isinstance(error, aio.AioRpcError):
        error = error_from_rpc(error)
    elif not isinstance(error, TvixError):
        log.exception("call=%s failed", method.__qualname__)
    await abort(context, error)
