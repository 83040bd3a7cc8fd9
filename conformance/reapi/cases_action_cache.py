"""Cases on the action cache: (g) completeness, and the rules on what may be stored."""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2, wrappers_pb2
from grpc import StatusCode

from conformance.reapi.cases import case
from conformance.reapi.client import (
    CALL_SECONDS,
    EMPTY,
    Endpoint,
    check,
    digest_of,
    directory_of,
    fresh,
    key,
    refused,
    shell,
)
from conformance.results import Failed, Skipped
from remote_apis import remote_execution_pb2 as re_pb2

METADATA = re_pb2.ExecutedActionMetadata(worker="conformance")


def _updatable(server: Endpoint) -> None:
    if not server.capabilities.cache_capabilities.action_cache_update_capabilities.update_enabled:
        raise Skipped("update_enabled is not announced")


def _store(server: Endpoint, result: re_pb2.ActionResult) -> re_pb2.Digest:
    """Store a result under a fresh action, whose blobs are all there."""
    _updatable(server)
    action = server.put_action(shell("true"))
    result.execution_metadata.CopyFrom(METADATA)
    server.cache(action, result)
    return action


@case("g.hit", "a stored result comes back as it was, unknown corners included")
def hit(server: Endpoint) -> None:
    output, log = server.put(fresh()), server.put(fresh())
    details = any_pb2.Any()
    details.Pack(wrappers_pb2.StringValue(value="kept"))
    result = re_pb2.ActionResult(
        output_files=[re_pb2.OutputFile(path="a/out.txt", digest=output, is_executable=True)],
        output_symlinks=[re_pb2.OutputSymlink(path="link", target="../a")],
        exit_code=3,
        stderr_digest=log,
        stdout_raw=b"hello",
        execution_metadata=re_pb2.ExecutedActionMetadata(worker="w", auxiliary_metadata=[details]),
    )
    _updatable(server)
    action = server.put_action(shell("true"))
    try:
        server.cache(action, result)
    except grpc.RpcError as error:
        if result.exit_code and error.code() == StatusCode.INVALID_ARGUMENT:
            raise Failed(f"refused: {error.details()}") from error
        raise
    found = server.cached(action)
    if found is None:
        raise Failed("NOT_FOUND")
    check(found.output_files == result.output_files, "output_files differ")
    check(found.output_symlinks == result.output_symlinks, "output_symlinks differ")
    check(found.exit_code == 3, "exit_code differs")
    check(found.stderr_digest == log, "stderr_digest differs")
    check(server.stdout(found) == b"hello", "stdout differs")
    check(list(found.execution_metadata.auxiliary_metadata) == [details], "auxiliary_metadata differ")


@case("g.miss", "an unknown action is NOT_FOUND; so is a known one under another size")
def miss(server: Endpoint) -> None:
    check(server.cached(digest_of(fresh())) is None, "found what was never stored")
    action = _store(server, re_pb2.ActionResult())
    other = re_pb2.Digest(hash=action.hash, size_bytes=action.size_bytes + 1)
    check(server.cached(other) is None, "found under another size")


@case("g.overwrite", "the last result stored wins")
def overwrite(server: Endpoint) -> None:
    action = _store(server, re_pb2.ActionResult(exit_code=0, stdout_raw=b"one"))
    server.cache(action, re_pb2.ActionResult(stdout_raw=b"two", execution_metadata=METADATA))
    found = server.cached(action)
    check(found is not None and server.stdout(found) == b"two", "the first result is still there")


@case("g.empty-result", "a result without outputs, exit code 0, can be stored")
def empty_result(server: Endpoint) -> None:
    _updatable(server)
    action = server.put_action(shell("true"))
    server.cache(action, re_pb2.ActionResult())
    check(server.cached(action) is not None, "NOT_FOUND")


def _incomplete(server: Endpoint) -> list[tuple[str, re_pb2.ActionResult]]:
    gone = digest_of(fresh())
    here = server.put(fresh())
    broken_tree = re_pb2.Tree(root=directory_of({"here": here, "gone": gone}))
    child = directory_of({"gone": gone})
    deep_tree = re_pb2.Tree(
        root=directory_of(directories={"child": digest_of(child.SerializeToString())}), children=[child]
    )
    absent_child = directory_of({"f": here, "unique": server.put(fresh())})
    root = directory_of(directories={"child": digest_of(absent_child.SerializeToString())})
    server.put(root.SerializeToString())
    tree_digests = [server.put(tree.SerializeToString()) for tree in (broken_tree, deep_tree)]
    output_directory = re_pb2.OutputDirectory
    return [
        ("an output file", re_pb2.ActionResult(output_files=[re_pb2.OutputFile(path="f", digest=gone)])),
        ("stdout", re_pb2.ActionResult(stdout_digest=gone)),
        ("stderr", re_pb2.ActionResult(stderr_digest=gone)),
        ("a Tree", re_pb2.ActionResult(output_directories=[output_directory(path="d", tree_digest=gone)])),
        (
            "a file of a Tree",
            re_pb2.ActionResult(output_directories=[output_directory(path="d", tree_digest=tree_digests[0])]),
        ),
        (
            "a file deep in a Tree",
            re_pb2.ActionResult(output_directories=[output_directory(path="d", tree_digest=tree_digests[1])]),
        ),
        (
            "a root Directory",
            re_pb2.ActionResult(output_directories=[output_directory(path="d", root_directory_digest=gone)]),
        ),
        (
            "a Directory below the root",
            re_pb2.ActionResult(
                output_directories=[
                    output_directory(path="d", root_directory_digest=digest_of(root.SerializeToString()))
                ]
            ),
        ),
    ]


@case("g.complete", "a result that names an absent blob is NOT_FOUND (or refused when stored)")
def complete(server: Endpoint) -> None:
    _updatable(server)
    dangling = []
    for what, result in _incomplete(server):
        action = server.put_action(shell("true"))
        result.execution_metadata.CopyFrom(METADATA)
        try:
            server.cache(action, result)
        except grpc.RpcError as error:
            code = error.code()
            check(code in (StatusCode.FAILED_PRECONDITION, StatusCode.INVALID_ARGUMENT), f"{what}: {code.name}")
        if server.cached(action) is not None:
            dangling.append(what)
    check(not dangling, f"served without {', '.join(dangling)}")


@case("g.complete-later", "an absent blob that is uploaded later makes the result whole")
def complete_later(server: Endpoint) -> None:
    data = fresh()
    result = re_pb2.ActionResult(output_files=[re_pb2.OutputFile(path="f", digest=digest_of(data))])
    try:
        action = _store(server, result)
    except grpc.RpcError as error:
        raise Skipped("results with absent blobs are not stored") from error
    check(server.cached(action) is None, "served before the blob is there")
    server.put(data)
    check(server.cached(action) is not None, "NOT_FOUND though every blob is there")


@case("g.whole-tree", "a result with a complete Tree, empty blobs included, is a hit")
def whole_tree(server: Endpoint) -> None:
    child = directory_of({"f": server.put(fresh()), "empty": EMPTY})
    tree = re_pb2.Tree(
        root=directory_of(
            directories={"a": digest_of(child.SerializeToString()), "b": digest_of(child.SerializeToString())}
        ),
        children=[child],
    )
    output = re_pb2.OutputDirectory(path="d", tree_digest=server.put(tree.SerializeToString()))
    check(server.cached(_store(server, re_pb2.ActionResult(output_directories=[output]))), "NOT_FOUND")


@case("g.bad-tree", "a Tree blob that is no Tree makes the result NOT_FOUND, not an error")
def bad_tree(server: Endpoint) -> None:
    _updatable(server)
    output = re_pb2.OutputDirectory(path="d", tree_digest=server.put(b"\xff\xff no tree " + fresh()))
    action = server.put_action(shell("true"))
    try:
        server.cache(action, re_pb2.ActionResult(output_directories=[output], execution_metadata=METADATA))
    except grpc.RpcError as error:
        code = error.code()
        check(code in (StatusCode.INVALID_ARGUMENT, StatusCode.FAILED_PRECONDITION), code.name)
    check(server.cached(action) is None, "served")


@case("g.inline", "inlined data keeps its digest, and nothing is inlined unasked")
def inline(server: Endpoint) -> str:
    data, log = fresh(), fresh()
    result = re_pb2.ActionResult(
        output_files=[re_pb2.OutputFile(path="f", digest=server.put(data))], stdout_digest=server.put(log)
    )
    action = _store(server, result)
    found = server.cached(action)
    if found is None:
        raise Failed("NOT_FOUND")
    check(not found.stdout_raw and not found.output_files[0].contents, "inlined though not asked")
    asked = server.cached(action, inline_stdout=True, inline_output_files=["f"])
    if asked is None:
        raise Failed("NOT_FOUND when inlining is asked for")
    check(asked.stdout_raw in (b"", log), "inlined stdout differs")
    check(asked.output_files[0].contents in (b"", data), "inlined contents differ")
    check(key(asked.stdout_digest) == key(digest_of(log)), "stdout_digest is lost")
    check(key(asked.output_files[0].digest) == key(digest_of(data)), "the file's digest is lost")
    return "inlined" if asked.stdout_raw and asked.output_files[0].contents else "the hint is ignored"


@case("g.inline-large", "inlining never makes an answer too large: 20 MB of stdout stay a digest")
def inline_large(server: Endpoint) -> None:
    log = server.put(fresh(20_000_000))
    action = _store(server, re_pb2.ActionResult(stdout_digest=log))
    with grpc.insecure_channel(server.address) as plain:
        from remote_apis import remote_execution_pb2_grpc

        request = re_pb2.GetActionResultRequest(instance_name=server.instance, action_digest=action, inline_stdout=True)
        found = remote_execution_pb2_grpc.ActionCacheStub(plain).GetActionResult(request, timeout=CALL_SECONDS)
    check(key(found.stdout_digest) == key(log), "stdout_digest is lost")


@case("g.bad-results", "results with absolute paths or malformed digests are INVALID_ARGUMENT")
def bad_results(server: Endpoint) -> None:
    _updatable(server)
    here = server.put(fresh())
    bad = re_pb2.Digest(hash="zz", size_bytes=1)
    for reason, result in (
        ("an absolute file path", re_pb2.ActionResult(output_files=[re_pb2.OutputFile(path="/f", digest=here)])),
        ("a malformed file digest", re_pb2.ActionResult(output_files=[re_pb2.OutputFile(path="f", digest=bad)])),
        ("no file digest", re_pb2.ActionResult(output_files=[re_pb2.OutputFile(path="f")])),
        (
            "a malformed tree digest",
            re_pb2.ActionResult(output_directories=[re_pb2.OutputDirectory(path="d", tree_digest=bad)]),
        ),
        (
            "an absolute directory path",
            re_pb2.ActionResult(
                output_directories=[re_pb2.OutputDirectory(path="/d", tree_digest=server.put(fresh()))]
            ),
        ),
        ("a malformed stdout digest", re_pb2.ActionResult(stdout_digest=bad)),
    ):
        action = server.put_action(shell("true"))
        with refused(StatusCode.INVALID_ARGUMENT, why=reason):
            server.cache(action, result)


@case("g.instances", "results are kept apart by instance; blobs may be shared")
def by_instance(server: Endpoint) -> None:
    action = _store(server, re_pb2.ActionResult(stdout_raw=b"mine"))
    other = Endpoint(server.address, f"{server.instance}/elsewhere".lstrip("/"))
    try:
        check(other.cached(action) is None, "a result of one instance is served in another")
    except grpc.RpcError as error:
        raise Skipped("the server has one instance") from error
    finally:
        other.close()
