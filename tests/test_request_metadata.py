import pytest

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.request_metadata import HEADER, header, request_metadata

GOOD = re_pb2.RequestMetadata(tool_details=re_pb2.ToolDetails(tool_name="bazel"), target_id="//a:b")


class Call:
    """As much of an RPC's context as is asked for."""

    def __init__(self, *metadata: tuple[str, str | bytes]) -> None:
        self.metadata = metadata

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self.metadata


def test_what_is_there_is_read() -> None:
    call = Call(("user-agent", "x"), (HEADER, GOOD.SerializeToString()))
    assert request_metadata(call) == GOOD
    assert header(call, "user-agent") == "x"
    assert header(call, "other") is None


@pytest.mark.parametrize("call", [Call(), Call((HEADER, b"\xff\xff")), Call((HEADER, "text"))])
def test_what_is_absent_or_malformed_counts_as_empty(call: Call) -> None:
    assert request_metadata(call) == re_pb2.RequestMetadata()
