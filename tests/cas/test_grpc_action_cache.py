from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import aio

from remote_apis import remote_execution_pb2 as re_pb2
from tests.cas.grpc_server import Served, serve
from tvix.cas.digest import FUNCTIONS, Digest, digest_of, digest_to_proto, function_to_wire
from tvix.cas.interfaces import ActionKey
from tvix.rpc import STATUS_DETAILS_KEY, error_from_rpc

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serve() as running:
        yield running


async def failure(call: Any) -> aio.AioRpcError:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value


async def put(served: Served, data: bytes, function: Any = "sha256") -> re_pb2.Digest:
    assert await served.blobs.put_many([(digest_of(data, function), data)]) == [None]
    return digest_to_proto(digest_of(data, function))


async def action(served: Served, *, working_directory: str = "", function: Any = "sha256") -> Digest:
    command = re_pb2.Command(arguments=["true"], working_directory=working_directory)
    command_digest = await put(served, command.SerializeToString(), function)
    message = re_pb2.Action(command_digest=command_digest, input_root_digest=await put(served, b"", function))
    await put(served, message.SerializeToString(), function)
    return digest_of(message.SerializeToString(), function)


def get_request(digest: Digest, **fields: Any) -> re_pb2.GetActionResultRequest:
    return re_pb2.GetActionResultRequest(action_digest=digest_to_proto(digest), **fields)


def update_request(digest: Digest, **fields: Any) -> re_pb2.UpdateActionResultRequest:
    return re_pb2.UpdateActionResultRequest(action_digest=digest_to_proto(digest), **fields)


@pytest.mark.parametrize("function", sorted(FUNCTIONS))
async def test_what_is_updated_is_got_under_its_instance_and_function_only(served: Served, function: Any) -> None:
    digest = await action(served, function=function)
    result = re_pb2.ActionResult(exit_code=3, stdout_raw=b"out")
    result.execution_metadata.worker = "me"
    fields: dict[str, Any] = {"digest_function": function_to_wire(function)}
    request = update_request(digest, instance_name="a/b", action_result=result, **fields)
    assert await served.action_cache.UpdateActionResult(request) == result
    assert await served.action_cache.GetActionResult(get_request(digest, instance_name="a/b", **fields)) == result
    for elsewhere in (get_request(digest, **fields), get_request(digest, instance_name="a", **fields)):
        error = await failure(served.action_cache.GetActionResult(elsewhere))
        assert error.code() == grpc.StatusCode.NOT_FOUND
        assert digest.hash in (error.details() or "")


async def test_an_all_default_result_does_not_become_empty(served: Served) -> None:
    digest = await action(served)
    request = update_request(digest, action_result=re_pb2.ActionResult())
    assert (await served.action_cache.UpdateActionResult(request)).execution_metadata.worker
    assert (await served.action_cache.GetActionResult(get_request(digest))).ByteSize() > 0


async def test_unknown_fields_survive(served: Served) -> None:
    digest = await action(served)
    result = re_pb2.ActionResult.FromString(b"\xa2\x06\x03new")
    reply = await served.action_cache.UpdateActionResult(update_request(digest, action_result=result))
    assert b"\xa2\x06\x03new" in reply.SerializeToString()
    assert b"\xa2\x06\x03new" in (await served.action_cache.GetActionResult(get_request(digest))).SerializeToString()


async def test_inlining_is_done_when_asked_and_small(served: Served) -> None:
    digest = await action(served)
    big = b"b" * 2_000_000
    result = re_pb2.ActionResult(
        stdout_digest=await put(served, b"the output"),
        stderr_digest=await put(served, big),
        output_files=[
            re_pb2.OutputFile(path="a", digest=await put(served, b"file a")),
            re_pb2.OutputFile(path="b", digest=await put(served, b"file b")),
            re_pb2.OutputFile(path="gone", digest=digest_to_proto(digest_of(b"gone"))),
        ],
    )
    key = ActionKey("", digest)
    await served.actions.put(key, result)
    plain = await served.action_cache.GetActionResult(get_request(digest))
    assert plain == result
    request = get_request(digest, inline_stdout=True, inline_stderr=True, inline_output_files=["b", "gone", "none"])
    reply = await served.action_cache.GetActionResult(request)
    assert reply.stdout_raw == b"the output"
    assert reply.stdout_digest == result.stdout_digest
    assert reply.stderr_raw == b""
    assert [output.contents for output in reply.output_files] == [b"", b"file b", b""]
    assert served.actions.records[key] == plain


async def test_updates_may_be_disabled_per_caller() -> None:
    async with serve(may_update_actions=lambda context: ("user", "ci") in context.invocation_metadata()) as served:
        digest = await action(served)
        request = update_request(digest, instance_name="i", action_result=re_pb2.ActionResult())
        error = await failure(served.action_cache.UpdateActionResult(request))
        assert error.code() == grpc.StatusCode.PERMISSION_DENIED
        assert "'i'" in (error.details() or "")
        assert not served.actions.records
        await served.action_cache.UpdateActionResult(request, metadata=(("user", "ci"),))
        assert list(served.actions.records) == [ActionKey("i", digest)]


async def test_action_and_command_must_be_there(served: Served) -> None:
    absent = digest_of(b"no such action")
    command = digest_of(b"no such command")
    orphan = re_pb2.Action(command_digest=digest_to_proto(command)).SerializeToString()
    await put(served, orphan)
    for digest, missing in ((absent, absent), (digest_of(orphan), command)):
        request = update_request(digest, action_result=re_pb2.ActionResult())
        error = await failure(served.action_cache.UpdateActionResult(request))
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert missing.hash in (error.details() or "")
        assert getattr(error_from_rpc(error), "digests") == (missing,)  # noqa: B009
        assert STATUS_DETAILS_KEY in dict(error.trailing_metadata() or ())
    assert not served.actions.records


GOOD = digest_to_proto(digest_of(b"x"))
BAD_RESULTS: list[tuple[str, re_pb2.ActionResult]] = [
    (
        "output_files[0].path: '/etc/passwd' is absolute",
        re_pb2.ActionResult(output_files=[re_pb2.OutputFile(path="/etc/passwd", digest=GOOD)]),
    ),
    ("output_files[0].path: empty", re_pb2.ActionResult(output_files=[re_pb2.OutputFile(digest=GOOD)])),
    (
        "'../../up' leads out",
        re_pb2.ActionResult(output_files=[re_pb2.OutputFile(path="../../up", digest=GOOD)]),
    ),
    (
        "'a/../../../up' leads out",
        re_pb2.ActionResult(output_directories=[re_pb2.OutputDirectory(path="a/../../../up", tree_digest=GOOD)]),
    ),
    ("output_files[0].digest", re_pb2.ActionResult(output_files=[re_pb2.OutputFile(path="a")])),
    (
        "output_files[1].digest.size_bytes: -1",
        re_pb2.ActionResult(
            output_files=[
                re_pb2.OutputFile(path="a", digest=GOOD),
                re_pb2.OutputFile(path="b", digest=re_pb2.Digest(hash=GOOD.hash, size_bytes=-1)),
            ]
        ),
    ),
    (
        "neither tree_digest nor root_directory_digest",
        re_pb2.ActionResult(output_directories=[re_pb2.OutputDirectory(path="a")]),
    ),
    (
        "tree_digest.hash",
        re_pb2.ActionResult(output_directories=[re_pb2.OutputDirectory(path="a", tree_digest=re_pb2.Digest(hash="x"))]),
    ),
    (
        "root_directory_digest.hash",
        re_pb2.ActionResult(
            output_directories=[re_pb2.OutputDirectory(path="a", root_directory_digest=re_pb2.Digest(hash="A" * 64))]
        ),
    ),
    ("stdout_digest.hash", re_pb2.ActionResult(stdout_digest=re_pb2.Digest(hash="x", size_bytes=1))),
    ("stderr_digest.hash", re_pb2.ActionResult(stderr_digest=re_pb2.Digest(hash="x", size_bytes=1))),
    (
        "output_symlinks[0].path: '/a' is absolute",
        re_pb2.ActionResult(output_symlinks=[re_pb2.OutputSymlink(path="/a", target="b")]),
    ),
    ("output_symlinks[0].target", re_pb2.ActionResult(output_symlinks=[re_pb2.OutputSymlink(path="a")])),
]


@pytest.mark.parametrize(("message", "result"), BAD_RESULTS, ids=[message for message, _ in BAD_RESULTS])
async def test_bad_results_are_refused(served: Served, message: str, result: re_pb2.ActionResult) -> None:
    digest = await action(served, working_directory="work")
    error = await failure(served.action_cache.UpdateActionResult(update_request(digest, action_result=result)))
    assert error.code() == INVALID
    assert message in (error.details() or "")
    assert not served.actions.records


async def test_output_paths_may_leave_the_working_directory_but_not_the_root(served: Served) -> None:
    digest = await action(served, working_directory="a/b")
    result = re_pb2.ActionResult(
        output_files=[re_pb2.OutputFile(path="../../install/x", digest=GOOD)],
        output_directories=[re_pb2.OutputDirectory(path="", tree_digest=GOOD)],
        output_symlinks=[re_pb2.OutputSymlink(path="link", target="/absolute/target")],
    )
    await served.action_cache.UpdateActionResult(update_request(digest, action_result=result))


async def test_what_is_no_action_or_no_command_is_refused(served: Served) -> None:
    junk = await put(served, b"\xff\xff")
    no_command = re_pb2.Action(command_digest=junk).SerializeToString()
    await put(served, no_command)
    for digest, message in ((digest_of(b"\xff\xff"), "not an Action"), (digest_of(no_command), "not a Command")):
        request = update_request(digest, action_result=re_pb2.ActionResult())
        error = await failure(served.action_cache.UpdateActionResult(request))
        assert error.code() == INVALID
        assert message in (error.details() or "")


async def test_malformed_requests(served: Served) -> None:
    digest = await action(served)
    for call in (
        served.action_cache.GetActionResult(re_pb2.GetActionResultRequest()),
        served.action_cache.GetActionResult(get_request(digest, instance_name="a//b")),
        served.action_cache.UpdateActionResult(re_pb2.UpdateActionResultRequest()),
        served.action_cache.UpdateActionResult(update_request(digest)),
    ):
        assert (await failure(call)).code() == INVALID
