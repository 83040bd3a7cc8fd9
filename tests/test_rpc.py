"""Errors as statuses and back."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc import aio

from tvix import errors
from tvix.cas.digest import digest_of
from tvix.errors import CODES, TvixError, Unavailable
from tvix.rpc import abort, error_from_rpc, error_from_status, handled, status_from_error


@pytest.mark.parametrize("kind", [kind for kind in CODES if kind is not TvixError])
def test_kinds_survive_the_way(kind: type[TvixError]) -> None:
    back = error_from_status(status_from_error(kind("what happened")))
    assert (type(back), str(back)) == (kind, "what happened")


def test_missing_blobs_become_one_detail_with_a_violation_each_and_come_back() -> None:
    digests = (digest_of(b"a"), digest_of(b"b", "blake3"))
    status = status_from_error(errors.MissingBlobs(digests))
    (detail,) = status.details
    failure = error_details_pb2.PreconditionFailure()
    assert detail.Unpack(failure)
    assert {(v.type, v.subject) for v in failure.violations} == {("MISSING", f"blobs/{digest}") for digest in digests}
    back = error_from_status(status)
    assert isinstance(back, errors.MissingBlobs)
    assert set(back.digests) == set(digests)


def test_a_field_at_fault_is_named() -> None:
    status = status_from_error(errors.InvalidInput("digest.hash: bad", field="digest.hash"))
    bad = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(bad)
    assert bad.field_violations[0].field == "digest.hash"


def test_when_to_come_back_is_told() -> None:
    retry = error_details_pb2.RetryInfo()
    assert status_from_error(Unavailable("busy", retry_seconds=1.5)).details[0].Unpack(retry)
    assert retry.retry_delay == Duration(seconds=1, nanos=500_000_000)


def test_foreign_exceptions_are_internal_and_cancellation_is_cancelled() -> None:
    assert status_from_error(ZeroDivisionError("x")).code == grpc.StatusCode.INTERNAL.value[0]
    assert status_from_error(asyncio.CancelledError()).code == grpc.StatusCode.CANCELLED.value[0]


class _Context:
    """Records how a call was aborted."""

    def __init__(self) -> None:
        self.aborted: tuple[Any, ...] = ()

    async def abort(self, code: grpc.StatusCode, details: str, trailing: Any) -> None:
        self.aborted = (code, details, trailing)
        raise aio.AbortError


class _Service:
    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.closed = False

    @handled
    async def unary(self, request: str, context: Any) -> str:
        if self.error:
            raise self.error
        return request

    @handled
    async def stream(self, request: str, context: Any) -> AsyncIterator[str]:
        try:
            yield request
            if self.error:
                raise self.error
        finally:
            self.closed = True


async def test_what_a_method_returns_is_passed_on() -> None:
    service = _Service(None)
    assert await service.unary("x", None) == "x"
    assert [reply async for reply in service.stream("x", None)] == ["x"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.NotFound("gone"), grpc.StatusCode.NOT_FOUND),
        (errors.CorruptData("rotten"), grpc.StatusCode.DATA_LOSS),
        (KeyError("bug"), grpc.StatusCode.INTERNAL),
    ],
)
async def test_what_a_method_raises_is_the_status(error: Exception, code: grpc.StatusCode) -> None:
    context = _Context()
    with pytest.raises(aio.AbortError):
        await _Service(error).unary("x", context)
    assert context.aborted[0] is code
    context = _Context()
    with pytest.raises(aio.AbortError):
        _ = [reply async for reply in _Service(error).stream("x", context)]
    assert context.aborted[0] is code


async def test_a_stream_that_is_left_early_is_closed() -> None:
    service = _Service(None)
    replies = service.stream("x", _Context())
    assert await anext(aiter(replies)) == "x"
    await replies.aclose()  # type: ignore[attr-defined]
    assert service.closed


async def test_details_travel_in_trailing_metadata() -> None:
    context: Any = _Context()
    with pytest.raises(aio.AbortError):
        await abort(context, errors.MissingBlobs([digest_of(b"a")]))
    trailing = aio.Metadata(*context.aborted[2])
    error = aio.AioRpcError(context.aborted[0], aio.Metadata(), trailing, details=context.aborted[1])
    assert isinstance(error_from_rpc(error), errors.MissingBlobs)
    plain = aio.AioRpcError(grpc.StatusCode.NOT_FOUND, aio.Metadata(), aio.Metadata(), details="gone")
    assert isinstance(error_from_rpc(plain), errors.NotFound)
