"""Mounted build roots, with the real kernel."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from remote_apis import remote_execution_pb2 as re_pb2
from tests.executor.folder_store import FolderStore
from tests.executor.mounting import build_root, enter_namespace, make_store
from tests.executor.trees import Absent, Exec, Link, Tree, store_tree
from tvix.cas.digest import EMPTY, digest_of, digest_to_proto
from tvix.errors import InvalidDirectory, MissingBlobs, Unavailable
from tvix.executor.fuse_root import FuseBuildRoot
from tvix.executor.input_tree import DEFAULT_MTIME_NS
from tvix.executor.mounts import in_user_namespace, mount, mounts_below

T = TypeVar("T")

TREE: Tree = {
    "a": {"empty": {}, "file": b"contents", "deep": {"er": {"same": b"contents"}}},
    "run": Exec(b"#!/bin/sh\necho ran\n"),
    "link": Link("a/file"),
    "nothing": b"",
    "ünï:code": b"x",
}


@pytest.fixture(autouse=True)
def _namespace() -> None:
    enter_namespace()


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return make_store(tmp_path)


@pytest.fixture
async def roots(tmp_path: Path, store: FolderStore) -> AsyncGenerator[FuseBuildRoot, None]:
    async with build_root(tmp_path) as made:
        yield made


async def off_loop(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Touch the mount as an action would: not on the loop that supervises it."""
    return await asyncio.to_thread(function, *args, **kwargs)


def errno_of(function: Callable[..., object], *args: Any) -> int | None:
    """Return the errno that a call fails with, None if it succeeds."""
    try:
        function(*args)
    except OSError as error:
        return error.errno
    return None


async def requests(roots: FuseBuildRoot) -> dict[str, int]:
    """Return how many requests the kernel sent to the mount's process."""
    counts: dict[str, int] = (await (await roots.mount()).stats())["requests"]
    return counts


async def test_the_tree_is_there_as_described(store: FolderStore, roots: FuseBuildRoot) -> None:
    root = await store_tree(store, TREE)

    def look(path: Path) -> None:
        assert sorted(os.listdir(path)) == ["a", "link", "nothing", "run", "ünï:code"]
        assert (path / "a/file").read_bytes() == (path / "a/deep/er/same").read_bytes() == b"contents"
        assert os.listdir(path / "a/empty") == []
        assert os.readlink(path / "link") == "a/file"
        assert (path / "link").read_bytes() == b"contents"
        assert (path / "nothing").read_bytes() == b""
        assert subprocess.run([path / "run"], capture_output=True, check=True).stdout == b"ran\n"
        status = (path / "a/file").stat()
        assert (status.st_mode, status.st_size, status.st_mtime_ns) == (stat.S_IFREG | 0o444, 8, DEFAULT_MTIME_NS)
        assert (path / "run").stat().st_mode & 0o7777 == 0o555
        assert path.stat().st_mode & 0o7777 == (path / "a").stat().st_mode & 0o7777 == 0o777
        assert (path / "link").lstat().st_size == 6
        assert errno_of(os.stat, path / "absent") == errno.ENOENT

    async with roots.open(root) as opened:
        await off_loop(look, opened.path)
        opened.check()
        assert opened.missing() == frozenset()


async def test_a_real_binary_runs_from_the_mount(store: FolderStore, roots: FuseBuildRoot) -> None:
    root = await store_tree(store, {"echo": Exec(await off_loop(Path("/bin/echo").read_bytes))})
    async with roots.open(root) as opened:
        output: bytes = await off_loop(subprocess.check_output, [opened.path / "echo", "hi"])
        assert output == b"hi\n"


async def test_node_properties_show(store: FolderStore, roots: FuseBuildRoot) -> None:
    inner = re_pb2.Directory()
    inner.node_properties.unix_mode.value = 0o750
    inner.node_properties.mtime.seconds = 77
    file = inner.files.add(name="f", digest=digest_to_proto(digest_of(b"x")))
    file.node_properties.unix_mode.value = 0o640
    file.node_properties.mtime.FromNanoseconds(-1_234_567_890_123_456_789)
    outer = re_pb2.Directory()
    outer.directories.add(name="d", digest=digest_to_proto(digest_of(inner.SerializeToString())))
    blobs = [inner.SerializeToString(), outer.SerializeToString(), b"x"]
    await store.put_many([(digest_of(blob), blob) for blob in blobs])
    async with roots.open(digest_of(blobs[1])) as opened:
        status = await off_loop(os.stat, opened.path / "d/f")
        assert (status.st_mode & 0o7777, status.st_mtime_ns) == (0o640, -1_234_567_890_123_456_789)
        status = await off_loop(os.stat, opened.path / "d")
        assert (status.st_mode & 0o7777, status.st_mtime) == (0o750, 77)


async def test_large_files_read_in_any_order(store: FolderStore, roots: FuseBuildRoot) -> None:
    data = random.Random(1).randbytes(64 * 1024 * 1024 + 12_345)
    root = await store_tree(store, {"big": data})

    def read(path: Path) -> None:
        with path.open("rb", buffering=0) as file:
            for offset, size in ((60_000_001, 300_000), (0, 1), (len(data) - 5, 100), (1024 * 1024 - 7, 2_000_003)):
                assert os.pread(file.fileno(), size, offset) == data[offset : offset + size]
        assert path.read_bytes() == data

    async with roots.open(root) as opened:
        await off_loop(read, opened.path / "big")


async def test_a_directory_of_5000_files(store: FolderStore, roots: FuseBuildRoot) -> None:
    names = {f"file-{number:04}": b"%d" % number for number in range(5000)}
    root = await store_tree(store, {"d": names})

    def read(path: Path) -> None:
        assert sorted(os.listdir(path)) == sorted(names)
        assert {entry.name for entry in os.scandir(path) if entry.stat().st_size} == set(names)
        assert {name: (path / name).read_bytes() for name in names} == names

    async with roots.open(root) as opened:
        await off_loop(read, opened.path / "d")


async def test_changes_go_to_the_upper_layer_and_to_no_other_action(store: FolderStore, roots: FuseBuildRoot) -> None:
    root = await store_tree(store, TREE)

    def change(path: Path) -> None:
        (path / "a/new").write_bytes(b"new")
        (path / "a/file").chmod(0o644)
        (path / "a/file").write_bytes(b"changed")
        assert (path / "a/deep/er/same").read_bytes() == b"contents", "equal contents are still two files"
        (path / "run").unlink()
        # Without privileges a folder of the lower layer is moved by copying, as mv does on this error.
        moved = errno_of((path / "a/deep").rename, path / "a/moved")
        assert moved == (errno.EXDEV if in_user_namespace() else None)
        assert (path / "a" / ("deep" if moved else "moved") / "er/same").read_bytes() == b"contents"
        (path / "link").rename(path / "link2")

    async with roots.open(root) as opened, roots.open(root) as other:
        await off_loop(change, opened.path)
        assert (opened.upper / "a/new").read_bytes() == b"new"
        assert (opened.upper / "a/file").read_bytes() == b"changed"
        whiteout = (opened.upper / "run").lstat()
        assert stat.S_ISCHR(whiteout.st_mode)
        assert whiteout.st_rdev == 0
        assert sorted(await off_loop(os.listdir, opened.path)) == ["a", "link2", "nothing", "ünï:code"]
        assert sorted(await off_loop(os.listdir, other.path)) == ["a", "link", "nothing", "run", "ünï:code"]
        assert await off_loop((other.path / "a/file").read_bytes) == b"contents"


async def test_any_user_can_read_and_add(store: FolderStore, roots: FuseBuildRoot, tmp_path: Path) -> None:
    if in_user_namespace():
        pytest.skip("needs root outside of user namespaces to become another user")
    root = await store_tree(store, TREE)
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    async with roots.open(root) as opened:
        script = "cat a/file; ./run; echo out > a/deep/er/out"
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-ec", script]
        output: bytes = await off_loop(subprocess.check_output, command, cwd=opened.path, stderr=subprocess.STDOUT)
        assert output == b"contentsran\n"
        assert (opened.upper / "a/deep/er/out").read_bytes() == b"out\n"


async def test_nothing_is_left_afterwards(store: FolderStore, roots: FuseBuildRoot, tmp_path: Path) -> None:
    root = await store_tree(store, TREE)
    async with roots.open(root) as opened:
        await off_loop((opened.path / "a/locked").mkdir, 0)
    with pytest.raises(ZeroDivisionError):
        async with roots.open(root):
            raise ZeroDivisionError
    assert not opened.path.exists()
    assert mounts_below(tmp_path) == [(await roots.mount()).mountpoint]
    pid = (await roots.mount()).pid
    await roots.close()
    assert list((tmp_path / "scratch").iterdir()) == []
    assert mounts_below(tmp_path) == []
    assert errno_of(os.kill, pid, 0) == errno.ESRCH


async def test_a_missing_root_is_told_at_once(roots: FuseBuildRoot) -> None:
    root = digest_of(b"no such directory")
    with pytest.raises(MissingBlobs) as caught:
        async with roots.open(root):
            raise AssertionError("opened")
    assert caught.value.digests == (root,)


async def test_a_malformed_root_is_told_at_once(store: FolderStore, roots: FuseBuildRoot) -> None:
    root = await store_tree(store, {"..": b""})
    with pytest.raises(InvalidDirectory, match=r"'\.\.'"):
        async with roots.open(root):
            raise AssertionError("opened")
    garbage = digest_of(b"\xff\xff")
    await store.put_many([(garbage, b"\xff\xff")])
    with pytest.raises(InvalidDirectory):
        async with roots.open(garbage):
            raise AssertionError("opened")


async def test_the_empty_root_needs_no_blob(roots: FuseBuildRoot) -> None:
    async with roots.open(EMPTY["sha256"]) as opened:
        assert await off_loop(os.listdir, opened.path) == []


async def test_missing_blobs_are_read_errors_and_reported_to_whom_they_concern(
    store: FolderStore, roots: FuseBuildRoot
) -> None:
    gone = Absent(b"gone")
    large = Absent(bytes(1_000_000))
    root = await store_tree(store, {"d": {"gone": gone, "here": b"here"}, "large": large})
    bystander = await store_tree(store, {"other": b"fine", "elsewhere": gone})
    async with roots.open(root) as opened, roots.open(bystander) as other:
        assert await off_loop((opened.path / "d/here").read_bytes) == b"here"
        assert opened.missing() == frozenset()
        assert await off_loop(errno_of, (opened.path / "d/gone").read_bytes) == errno.EIO
        assert opened.missing() == {digest_of(gone)}
        assert await off_loop(errno_of, (opened.path / "large").read_bytes) == errno.EIO
        assert opened.missing() == {digest_of(gone), digest_of(large)}
        assert other.missing() == frozenset()
        opened.check()
    await store.put_many([(digest_of(gone), bytes(gone))])
    async with roots.open(root) as opened:
        assert await off_loop((opened.path / "d/gone").read_bytes) == b"gone", "the failure is not remembered"
        assert opened.missing() == frozenset()


async def test_a_missing_subdirectory_is_a_read_error(store: FolderStore, roots: FuseBuildRoot) -> None:
    root = await store_tree(store, {"a": {"b": {"c": b"c"}}})
    (b,) = [path for path in store.folder.iterdir() if b"\n\x01c" in path.read_bytes()]
    data = b.read_bytes()
    b.unlink()
    async with roots.open(root) as opened:
        assert await off_loop(errno_of, os.stat, opened.path / "a/b") == errno.EIO
        assert opened.missing() == {digest_of(data)}
    b.write_bytes(data)
    async with roots.open(root) as opened:
        assert await off_loop((opened.path / "a/b/c").read_bytes) == b"c"


async def test_a_malformed_subdirectory_is_the_callers_fault(store: FolderStore, roots: FuseBuildRoot) -> None:
    root = await store_tree(store, {"a": {"b": {"x/y": b""}}})
    async with roots.open(root) as opened:
        assert await off_loop(errno_of, os.stat, opened.path / "a/b") == errno.EIO
        with pytest.raises(InvalidDirectory, match="x/y"):
            opened.check()


async def test_a_store_that_is_down_makes_the_action_retryable(store: FolderStore, roots: FuseBuildRoot) -> None:
    root = await store_tree(store, {"d": {"file": b"file", "large": bytes(300_000)}})
    async with roots.open(root) as opened:
        (store.folder / "down").touch()
        assert await off_loop(errno_of, (opened.path / "d/file").read_bytes) == errno.EIO
        with pytest.raises(Unavailable, match="the store is down"):
            opened.check()
        assert opened.missing() == frozenset()
        with pytest.raises(Unavailable):
            async with roots.open(digest_of(b"not loaded yet")):
                raise AssertionError("opened")
        (store.folder / "down").unlink()
        assert await off_loop((opened.path / "d/large").read_bytes) == bytes(300_000)
    async with roots.open(root) as opened:
        assert await off_loop((opened.path / "d/file").read_bytes) == b"file"
        opened.check()


async def test_when_the_process_is_killed_running_actions_fail_and_later_ones_go_on(
    store: FolderStore, roots: FuseBuildRoot
) -> None:
    root = await store_tree(store, {"d": {"file": b"file"}})
    async with roots.open(root) as opened:
        first = await roots.mount()
        os.kill(first.pid, signal.SIGKILL)
        await first.wait_dead()
        assert await off_loop(errno_of, (opened.path / "d/file").read_bytes) is not None
        with pytest.raises(Unavailable, match="died"):
            opened.check()
        async with roots.open(root) as later:
            assert await off_loop((later.path / "d/file").read_bytes) == b"file"
            later.check()
            os.kill((await roots.mount()).pid, signal.SIGKILL)
            async with roots.open(root) as latest:  # before anybody could have noticed
                assert await off_loop((latest.path / "d/file").read_bytes) == b"file"
        with pytest.raises(Unavailable):
            opened.check()
    assert (await roots.mount()).mountpoint != first.mountpoint


async def test_many_actions_at_once(store: FolderStore, roots: FuseBuildRoot) -> None:
    shared = {f"h{number}": b"header %d" % number * 50 for number in range(40)}
    trees = [
        await store_tree(store, {"include": {"x": shared, "y": {"z": shared}}, "own": b"%d" % number})
        for number in range(24)
    ]

    def act(path: Path, number: int) -> None:
        for folder in ("include/x", "include/y/z"):
            assert {name: (path / folder / name).read_bytes() for name in os.listdir(path / folder)} == shared
        assert (path / "own").read_bytes() == b"%d" % number
        (path / "include/x/out").write_bytes(b"%d" % number)

    async def run(number: int) -> None:
        async with roots.open(trees[number % 24]) as opened:
            await off_loop(act, opened.path, number % 24)
            opened.check()
            assert (opened.upper / "include/x/out").read_bytes() == b"%d" % (number % 24)

    async with asyncio.TaskGroup() as tasks:
        for number in range(72):
            tasks.create_task(run(number))
    assert (await (await roots.mount()).stats())["open_trees"] == 0


async def test_the_kernel_answers_what_was_read_before(store: FolderStore, roots: FuseBuildRoot) -> None:
    files = {f"f{number}": b"%d" % number for number in range(100)}
    one = await store_tree(store, {"d": files, "one": b"1"})
    two = await store_tree(store, {"d": files, "two": b"2"})

    def read(path: Path) -> None:
        assert {name: (path / "d" / name).read_bytes() for name in os.listdir(path / "d")} == files

    async with roots.open(one) as opened:
        await off_loop(read, opened.path)
    cold = await requests(roots)
    assert cold["read"] == 100
    assert cold["open"] == cold["opendir"] == 1
    async with roots.open(one) as opened:
        await off_loop(read, opened.path)
    warm = await requests(roots)
    assert warm | {"statfs": 0} == cold | {"statfs": 0}
    async with roots.open(two) as opened:
        await off_loop(read, opened.path)
    assert (await requests(roots))["read"] == 100, "another tree with the same files shares their pages"


async def test_what_is_no_tree_does_not_exist(store: FolderStore, roots: FuseBuildRoot) -> None:
    mountpoint = (await roots.mount()).mountpoint
    absent = digest_of(b"absent")
    names = (
        "x",
        "sha256-00-1",
        f"sha256-{absent.hash}-{absent.size_bytes}",
        f"sha256-{absent.hash}-0{1}",
        "-",
        "a-b-c",
    )
    for name in names:
        assert await off_loop(errno_of, os.stat, mountpoint / name) == errno.ENOENT, name
    assert await off_loop(os.listdir, mountpoint) == []
    await store.put_many([(absent, b"absent")])
    assert await off_loop(errno_of, os.mkdir, mountpoint / "new") == errno.EROFS


async def test_a_killed_reader_is_let_go(store: FolderStore, roots: FuseBuildRoot) -> None:
    root = await store_tree(store, {"slow": b"slow"})
    async with roots.open(root) as opened:
        (store.folder / "stuck").touch()
        reader = await asyncio.create_subprocess_exec("cat", str(opened.path / "slow"))
        for _ in range(1000):
            if "read" in await requests(roots):
                break
            await asyncio.sleep(0.01)
        reader.kill()
        async with asyncio.timeout(10):
            assert await reader.wait() == -signal.SIGKILL


async def test_leftovers_of_a_killed_predecessor_are_cleared(
    store: FolderStore, roots: FuseBuildRoot, tmp_path: Path
) -> None:
    stale = tmp_path / "scratch/action-1/root"
    stale.mkdir(parents=True)
    mount("stale", stale, "tmpfs")
    (stale / "file").touch()
    root = await store_tree(store, TREE)
    async with roots.open(root) as opened:
        assert await off_loop((opened.path / "a/file").read_bytes) == b"contents"
        assert not (stale / "file").exists()
        assert stale not in mounts_below(tmp_path) or stale == opened.path


async def test_a_killed_worker_leaves_no_process_and_its_successor_clears_its_mounts(
    store: FolderStore, tmp_path: Path
) -> None:
    program = (
        "import asyncio, sys; from pathlib import Path; from tests.executor.mounting import build_root\n"
        "from tvix.cas.digest import EMPTY\n"
        "async def main():\n"
        "    async with build_root(Path(sys.argv[1])) as roots, roots.open(EMPTY['sha256']):\n"
        "        print((await roots.mount()).pid, flush=True); await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert worker.stdout is not None
    pid = int(await worker.stdout.readline())
    descriptor = os.pidfd_open(pid)
    worker.kill()
    await worker.wait()
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().add_reader(descriptor, ended.cancel)
    try:
        async with asyncio.timeout(10):
            await asyncio.wait([ended])
    finally:
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
    assert len(mounts_below(tmp_path)) == 2, "this worker had no mount namespace of its own"
    async with build_root(tmp_path) as roots, roots.open(await store_tree(store, TREE)) as opened:
        assert await off_loop((opened.path / "a/file").read_bytes) == b"contents"
        assert len(mounts_below(tmp_path)) == 2
    assert list((tmp_path / "scratch").iterdir()) == []
