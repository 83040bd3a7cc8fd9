"""How a worker's response is completed."""

from __future__ import annotations

import pytest
from google.rpc import status_pb2

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.executor.results import TIMEOUT_MESSAGE, is_cacheable, normalize, status_response

QUEUED = re_pb2.ExecutedActionMetadata()
QUEUED.queued_timestamp.FromSeconds(7)


def test_an_empty_result_gets_a_worker_and_a_time_so_that_it_does_not_look_like_the_empty_blob() -> None:
    response = re_pb2.ExecuteResponse(result=re_pb2.ActionResult())
    normalize(response, "w1", QUEUED)
    assert response.result.execution_metadata.worker == "w1"
    assert response.result.execution_metadata.queued_timestamp.seconds == 7
    assert response.result.SerializeToString()


def test_what_the_worker_says_of_itself_is_kept() -> None:
    response = re_pb2.ExecuteResponse()
    response.result.execution_metadata.worker = "host-7"
    response.result.execution_metadata.queued_timestamp.FromSeconds(3)
    before = response.SerializeToString()
    normalize(response, "w1", QUEUED)
    assert response.SerializeToString() == before


def test_timeouts_have_one_text_and_no_result_is_invented() -> None:
    response = re_pb2.ExecuteResponse(status=status_pb2.Status(code=4, message="took too long"))
    normalize(response, "w1", QUEUED)
    assert response.status.message == TIMEOUT_MESSAGE
    assert not response.HasField("result")


@pytest.mark.parametrize(
    ("response", "do_not_cache", "cacheable"),
    [
        (re_pb2.ExecuteResponse(result=re_pb2.ActionResult()), False, True),
        (re_pb2.ExecuteResponse(result=re_pb2.ActionResult()), True, False),
        (re_pb2.ExecuteResponse(result=re_pb2.ActionResult(exit_code=1)), False, False),
        (re_pb2.ExecuteResponse(result=re_pb2.ActionResult(), status=status_pb2.Status(code=4)), False, False),
        (re_pb2.ExecuteResponse(), False, False),
    ],
)
def test_what_may_be_cached(response: re_pb2.ExecuteResponse, do_not_cache: bool, cacheable: bool) -> None:
    assert is_cacheable(response, re_pb2.Action(do_not_cache=do_not_cache)) is cacheable


def test_a_status_is_told_as_message_too() -> None:
    response = status_response(status_pb2.Status(code=9, message="why"))
    assert (response.status.code, response.message) == (9, "why")
