"""Actions from the store and back, with real sandboxes and copied roots."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from remote_apis import remote_execution_pb2 as re_pb2
from remote_apis import worker_pb2
from tests.executor.actions import Executable, Recorded, add_action, add_blob, make_command
from tvix.cas.digest import Digest, digest_from_proto, digest_of
from tvix.cas.memory import MemoryBlobStore
from tvix.errors import FailedPrecondition, InvalidInput, MissingBlobs
from tvix.executor.bubblewrap import BubblewrapSandbox
from tvix.executor.copied_root import CopiedBuildRoot
from tvix.executor.interfaces import BuildRoot, Execution, Stage
from tvix.executor.local import ActionRun, LocalConfig, LocalExecutor


@pytest.fixture
def blobs() -> MemoryBlobStore:
    return MemoryBlobStore()


@pytest.fixture
async def build_root(blobs: MemoryBlobStore, tmp_path: Path) -> AsyncIterator[BuildRoot]:
    roots = CopiedBuildRoot(blobs, tmp_path / "roots")
    yield roots
    await roots.close()


@pytest.fixture
def executor(blobs: MemoryBlobStore, build_root: BuildRoot, tmp_path: Path) -> LocalExecutor:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return LocalExecutor(blobs, build_root, BubblewrapSandbox(), LocalConfig("worker-1", scratch))


async def execute(executor: LocalExecutor, digest: Digest) -> re_pb2.ExecuteResponse:
    return await executor.execute(Execution(digest), lambda stage: None)


@pytest.mark.parametrize("function", ["sha256", "blake3", "sha1"])
async def test_an_action_from_end_to_end(executor: LocalExecutor, blobs: MemoryBlobStore, function: str) -> None:
    command = make_command(
        ["sh", "-c", "cat in/name; echo oops >&2; tr a-z A-Z < in/name > out/deep/upper; ./tool > out/tool"],
        output_paths=["out/deep/upper", "out/tool"],
    )
    tree = {"in": {"name": b"abc"}, "tool": Executable(b"#!/bin/sh\necho ran")}
    digest = add_action(blobs, command, tree, function)  # type: ignore[arg-type]
    stages: list[Stage] = []
    response = await executor.execute(Execution(digest), stages.append)
    result = response.result
    assert response.status.code == 0
    assert result.exit_code == 0
    assert stages == [Stage.EXECUTING]
    assert (result.stdout_raw, result.stderr_raw) == (b"abc", b"oops\n")
    assert [file.path for file in result.output_files] == ["out/deep/upper", "out/tool"]
    assert [blobs.blobs[digest_of(data, function)] for data in (b"ABC", b"ran\n", b"abc", b"oops\n")]  # type: ignore[arg-type]
    assert result.stdout_digest.hash == digest_of(b"abc", function).hash  # type: ignore[arg-type]


async def test_all_timestamps_are_set_in_order(executor: LocalExecutor, blobs: MemoryBlobStore) -> None:
    metadata = (await execute(executor, add_action(blobs, make_command(["true"]), {}))).result.execution_metadata
    assert metadata.worker == "worker-1"
    names = (
        "queued worker_start input_fetch_start input_fetch_completed execution_start execution_completed "
        "output_upload_start output_upload_completed worker_completed"
    )
    times = [getattr(metadata, f"{name}_timestamp").ToNanoseconds() for name in names.split()]
    assert times == sorted(times)
    assert times[0] > 0
    assert metadata.virtual_execution_duration.ToNanoseconds() > 0
    usage = worker_pb2.ResourceUsage()
    assert metadata.auxiliary_metadata[0].Unpack(usage)
    assert usage.wall_seconds > 0


async def test_given_bytes_are_not_fetched(executor: LocalExecutor, blobs: MemoryBlobStore) -> None:
    command = make_command(["echo", "hello"])
    digest = add_action(blobs, command, {})
    action = blobs.blobs.pop(digest)
    del blobs.blobs[digest_of(command.SerializeToString())]
    stdout = Recorded()
    run = ActionRun(digest, action, command.SerializeToString(), stdout=stdout)
    response = await executor.run(run)
    assert response.result.stdout_raw == b"hello\n"
    assert stdout.text == "hello\n"


async def test_exit_code_is_a_result(executor: LocalExecutor, blobs: MemoryBlobStore) -> None:
    command = make_command(["sh", "-c", "echo made > f; exit 3"], output_paths=["f"])
    response = await execute(executor, add_action(blobs, command, {}))
    assert (response.status.code, response.result.exit_code) == (0, 3)
    assert [file.path for file in response.result.output_files] == ["f"]


async def test_timeout_keeps_what_there_was(executor: LocalExecutor, blobs: MemoryBlobStore) -> None:
    command = make_command(["sh", "-c", "echo partial; echo x > f; sleep 60 & sleep 60"], output_paths=["f"])
    digest = add_action(blobs, command, {}, timeout=Duration(nanos=200_000_000))
    response = await execute(executor, digest)
    assert (response.status.code, response.status.message) == (4, "execution timeout exceeded")
    assert response.result.stdout_raw == b"partial\n"
    assert response.result.exit_code == 137
    assert [file.path for file in response.result.output_files] == ["f"]
    assert response.result.execution_metadata.HasField("worker_completed_timestamp")


async def test_wrong_output_type_is_a_failed_precondition(executor: LocalExecutor, blobs: MemoryBlobStore) -> None:
    command = make_command(["mkdir", "out"], output_files=["out"])
    response = await execute(executor, add_action(blobs, command, {}))
    assert response.status.code == 9
    assert "'out'" in response.status.message


async def test_command_that_is_not_there_is_127(executor: LocalExecutor, blobs: MemoryBlobStore) -> None:
    response = await execute(executor, add_action(blobs, make_command(["no-such-program"]), {}))
    assert (response.status.code, response.result.exit_code) == (0, 127)
    assert b"no-such-program: command not found" in response.result.stderr_raw


@pytest.mark.parametrize("absent", ["action", "command", "file"])
async def test_missing_blobs_are_named(executor: LocalExecutor, blobs: MemoryBlobStore, absent: str) -> None:
    command = make_command(["cat", "f"])
    digest = add_action(blobs, command, {"f": b"contents"})
    lacking = {"action": digest, "command": digest_of(command.SerializeToString()), "file": digest_of(b"contents")}
    del blobs.blobs[lacking[absent]]
    with pytest.raises(MissingBlobs) as caught:
        await execute(executor, digest)
    assert caught.value.digests == (lacking[absent],)


async def test_malformed_actions_are_refused(executor: LocalExecutor, blobs: MemoryBlobStore) -> None:
    with pytest.raises(InvalidInput, match="is not a Action message"):
        await execute(executor, add_blob(blobs, b"\xff\xff"))
    with pytest.raises(InvalidInput, match=r"action\.command_digest"):
        await execute(executor, add_blob(blobs, re_pb2.Action(do_not_cache=True).SerializeToString()))
    absent = add_action(blobs, make_command(["true"], working_directory="nowhere"), {})
    with pytest.raises(InvalidInput, match=r"command\.working_directory: 'nowhere' is not a directory"):
        await execute(executor, absent)
    negative = add_action(blobs, make_command(["true"]), {}, timeout=Duration(seconds=-1))
    with pytest.raises(InvalidInput, match=r"action\.timeout: -1\.0 s is negative"):
        await execute(executor, negative)


async def test_cancelling_kills_and_leaves_nothing(
    executor: LocalExecutor, blobs: MemoryBlobStore, build_root: BuildRoot, tmp_path: Path
) -> None:
    digest = add_action(blobs, make_command(["sh", "-c", "echo up; exec sleep 1000"]), {})
    up = asyncio.Event()

    class Up:
        def write(self, chunk: bytes) -> None:
            up.set()

    running = asyncio.create_task(executor.run(ActionRun(digest, stdout=Up())))
    await up.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await build_root.close()
    assert os.listdir(tmp_path / "roots") == []


def buildstream_tree() -> dict[str, object]:
    """Return a root file system as BuildStream sends it: no property says what it is."""
    busybox = Executable(Path("/usr/bin/busybox").read_bytes())
    links = dict.fromkeys(("sh", "cat", "mkdir", "ls", "pwd", "readlink"), "busybox")
    work = {"hello": {"source": b"hello"}}
    return {
        "bin": "usr/bin",
        "usr": {"bin": {"busybox": busybox, **links}},
        "buildstream": {"project": work},
        **{"dev": {}, "proc": {}, "tmp": {}},
    }


needs_busybox = pytest.mark.skipif(not Path("/usr/bin/busybox").exists(), reason="busybox-static is not installed")


@needs_busybox
async def test_a_root_file_system_becomes_the_root(executor: LocalExecutor, blobs: MemoryBlobStore) -> None:
    script = "pwd; ls /; mkdir -p /buildstream-install/usr/share; cat source > /buildstream-install/usr/share/hello"
    command = make_command(
        ["sh", "-c", "-e", script],
        env={"PATH": "/usr/bin:/bin"},
        working_directory="buildstream/project/hello",
        output_paths=["../../../buildstream-install", "../../.."],
        output_directory_format=re_pb2.Command.DIRECTORY_ONLY,
        properties={"unixUID": "0", "unixGID": "0", "OSFamily": "linux"},
    )
    response = await execute(executor, add_action(blobs, command, buildstream_tree()))  # type: ignore[arg-type]
    assert (response.status.code, response.result.stderr_raw) == (0, b"")
    words = response.result.stdout_raw.decode().split()
    assert words == ["/buildstream/project/hello", "bin", "buildstream", "dev", "proc", "tmp", "usr"]
    install, everything = response.result.output_directories
    assert (install.path, everything.path) == ("../../../buildstream-install", "../../..")
    root = re_pb2.Directory.FromString(blobs.blobs[digest_from_proto(everything.root_directory_digest)])
    assert [node.name for node in root.directories] == [
        "buildstream",
        "buildstream-install",
        "dev",
        "proc",
        "tmp",
        "usr",
    ]
    assert [node.digest.size_bytes for node in root.directories if node.name in ("dev", "proc", "tmp")] == [0, 0, 0]
    assert digest_from_proto(install.root_directory_digest) in blobs.blobs


@needs_busybox
async def test_outputs_in_tmp_of_the_root(executor: LocalExecutor, blobs: MemoryBlobStore) -> None:
    command = make_command(["sh", "-c", "echo x > /tmp/f"], env={"PATH": "/bin"}, output_paths=["tmp/f"])
    response = await execute(executor, add_action(blobs, command, buildstream_tree()))  # type: ignore[arg-type]
    assert [file.path for file in response.result.output_files] == ["tmp/f"]


async def test_large_output_is_not_inlined(executor: LocalExecutor, blobs: MemoryBlobStore) -> None:
    command = make_command(["head", "-c", "3000000", "/dev/zero"])
    result = (await execute(executor, add_action(blobs, command, {}))).result
    assert result.stdout_raw == b""
    assert blobs.blobs[digest_from_proto(result.stdout_digest)] == bytes(3_000_000)


async def test_output_folders_are_made_but_not_outputs(executor: LocalExecutor, blobs: MemoryBlobStore) -> None:
    command = make_command(["find", ".", "-type", "d"], output_paths=["a/b/c"], working_directory="w")
    result = (await execute(executor, add_action(blobs, command, {"w": {"f": b""}}))).result
    assert sorted(result.stdout_raw.decode().split()) == [".", "./a", "./a/b"]


async def test_output_folder_through_a_symlink_stays_inside(
    executor: LocalExecutor, blobs: MemoryBlobStore, tmp_path: Path
) -> None:
    target = tmp_path / "victim"
    target.mkdir()
    digest = add_action(blobs, make_command(["true"], output_paths=["way/x/y"]), {"way": str(target)})
    with pytest.raises(FailedPrecondition, match="output folder 'way/x' cannot be made"):
        await execute(executor, digest)
    assert list(target.iterdir()) == []
    inside = add_action(
        blobs, make_command(["touch", "way/x/y"], output_paths=["way/x/y"]), {"way": "real", "real": {}}
    )
    assert [file.path for file in (await execute(executor, inside)).result.output_files] == ["way/x/y"]
