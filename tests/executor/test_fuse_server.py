"""Answers to the kernel's requests; the kernel is a socket pair that keeps message boundaries."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest

from tests.executor.test_blob_cache import CountingStore
from tests.executor.trees import Absent, store_tree
from tvix.cas.digest import digest_of
from tvix.errors import BlobNotFound
from tvix.executor import fuse_protocol as fuse
from tvix.executor.fuse_server import FuseServer
from tvix.executor.input_tree import tree_name
from tvix.executor.vfs import ROOT_ID, Vfs


class Reply(NamedTuple):
    """A reply; `error` is positive."""

    error: int
    unique: int
    body: bytes


class Kernel:
    """Sends requests and takes replies."""

    def __init__(self, device: socket.socket, server: FuseServer, vfs: Vfs) -> None:
        self.device = device
        self.server = server
        self.vfs = vfs
        self.faults: list[tuple[Sequence[int], Exception]] = []
        self._unique = 0

    def send(self, opcode: int, node: int, body: bytes = b"") -> int:
        """Send a request; return its number."""
        self._unique += 1
        header = struct.pack("=IIQQIIIHH", 40 + len(body), opcode, self._unique, node, 0, 0, 0, 0, 0)
        self.device.send(header + body)
        return self._unique

    async def receive(self) -> Reply:
        """Take a reply."""
        data = await asyncio.get_running_loop().sock_recv(self.device, 2 << 20)
        length, error, unique = struct.unpack_from("=IiQ", data)
        assert length == len(data)
        return Reply(-error, unique, data[16:])

    async def ask(self, opcode: int, node: int, body: bytes = b"") -> Reply:
        """Send a request and take its reply."""
        unique = self.send(opcode, node, body)
        reply = await self.receive()
        assert reply.unique == unique
        return reply

    async def lookup(self, *path: bytes) -> int:
        """Return the node at a path; 0 for a name that is not there."""
        node = ROOT_ID
        for name in path:
            reply = await self.ask(fuse.LOOKUP, node, name + b"\0")
            assert reply.error == 0
            (node,) = struct.unpack_from("=Q", reply.body)
        return node

    async def listing(self, node: int, size_bytes: int, *, plus: bool = False) -> list[bytes]:
        """Return all names in a directory, read with a buffer of that size."""
        names: list[bytes] = []
        offset = 0
        while True:
            opcode = fuse.READDIRPLUS if plus else fuse.READDIR
            body = (await self.ask(opcode, node, read_body(offset, size_bytes))).body
            assert len(body) <= size_bytes
            if not body:
                return names
            while body:
                body = body[128:] if plus else body
                _, offset, length, _ = struct.unpack_from("=QQII", body)
                names.append(body[24 : 24 + length])
                body = body[24 + -(-length // 8) * 8 :]


def read_body(offset: int, size_bytes: int) -> bytes:
    """Return the body of READ and its kin."""
    return struct.pack("=QQIIQII", 0, offset, size_bytes, 0, 0, 0, 0)


@asynccontextmanager
async def serving(store: CountingStore, *, max_nodes: int = 1000) -> AsyncGenerator[Kernel, None]:
    """Serve a store to a kernel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    vfs = Vfs(store)
    faults: list[tuple[Sequence[int], Exception]] = []
    server = FuseServer(
        theirs.fileno(), vfs, lambda handles, error: faults.append((handles, error)), max_nodes=max_nodes
    )
    kernel = Kernel(ours, server, vfs)
    kernel.faults = faults
    running = asyncio.create_task(server.run())
    try:
        yield kernel
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await vfs.close()
        ours.close()
        theirs.close()


async def test_open_and_the_unknown_are_not_implemented() -> None:
    async with serving(CountingStore()) as kernel:
        for opcode in (fuse.OPEN, fuse.OPENDIR, 22, 9999):
            assert (await kernel.ask(opcode, ROOT_ID)).error == errno.ENOSYS
        assert (await kernel.ask(fuse.SETATTR, ROOT_ID)).error == errno.EROFS
        assert (await kernel.ask(fuse.GETATTR, 4711)).error == errno.ESTALE


async def test_names_that_are_not_there_are_remembered_below_trees_only() -> None:
    store = CountingStore()
    root = await store_tree(store, {"f": b"file"})
    async with serving(store) as kernel:
        tree = await kernel.lookup(tree_name(root).encode())
        assert await kernel.lookup(tree_name(root).encode(), b"absent") == 0
        reply = await kernel.ask(fuse.LOOKUP, tree, b"absent\0")
        assert struct.unpack_from("=QQQ", reply.body) == (0, 0, fuse.FOREVER_SECONDS)
        absent = tree_name(digest_of(b"absent")).encode()
        assert (await kernel.ask(fuse.LOOKUP, ROOT_ID, absent + b"\0")).error == errno.ENOENT
        assert (await kernel.ask(fuse.LOOKUP, ROOT_ID, b"x\0")).error == errno.ENOENT


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("size_bytes", [400, 4096, 32768])
async def test_listings_are_whole_whatever_the_buffer(size_bytes: int, plus: bool) -> None:
    store = CountingStore()
    names = [b"n%d" % number * (number % 7 + 1) for number in range(300)]
    root = await store_tree(store, {name.decode(): b"x" for name in names})
    async with serving(store) as kernel:
        tree = await kernel.lookup(tree_name(root).encode())
        assert await kernel.listing(tree, size_bytes, plus=plus) == [b".", b"..", *sorted(names)]
        assert kernel.vfs.node_count == (302 if plus else 2), "only what the kernel was told of is kept"


async def test_reads_that_fail_are_reported_before_the_reply() -> None:
    store = CountingStore()
    root = await store_tree(store, {"f": Absent(b"gone")})
    async with serving(store) as kernel:
        await kernel.vfs.open_tree(5, root)
        file = await kernel.lookup(tree_name(root).encode(), b"f")
        assert (await kernel.ask(fuse.READ, file, read_body(0, 4096))).error == errno.EIO
        ((handles, error),) = kernel.faults
        assert handles == [5]
        assert isinstance(error, BlobNotFound)


async def test_an_interrupted_request_ends_and_others_go_on() -> None:
    store = CountingStore()
    root = await store_tree(store, {"a": b"a", "b": b"b" * 100_000})
    async with serving(store) as kernel:
        a, b = [await kernel.lookup(tree_name(root).encode(), name) for name in (b"a", b"b")]
        store.held.clear()
        first = kernel.send(fuse.READ, a, read_body(0, 10))
        second = kernel.send(fuse.READ, b, read_body(0, 10))
        kernel.send(fuse.INTERRUPT, 0, struct.pack("=Q", first))
        kernel.send(fuse.INTERRUPT, 0, struct.pack("=Q", 999_999))
        assert await kernel.receive() == Reply(errno.EINTR, first, b"")
        store.held.set()
        assert await kernel.receive() == Reply(0, second, b"b" * 10)


async def test_when_the_kernel_knows_too_much_unused_trees_are_dropped() -> None:
    store = CountingStore()
    root = await store_tree(store, {f"f{number}": b"" for number in range(20)})
    async with serving(store, max_nodes=10) as kernel:
        tree = await kernel.lookup(tree_name(root).encode())
        replies: list[Reply] = []
        for number in range(10):
            kernel.send(fuse.LOOKUP, tree, b"f%d\0" % number)
        while not any(reply.unique == 0 for reply in replies):
            replies.append(await kernel.receive())
        (notice,) = [reply for reply in replies if reply.unique == 0]
        assert tree_name(root).encode() in notice.body
        kernel.send(fuse.FORGET, tree, struct.pack("=Q", 1))
        await kernel.ask(fuse.STATFS, ROOT_ID)
        assert kernel.server.request_counts()["forget"] == 1


async def test_requests_that_break_the_rules_are_errors_not_crashes() -> None:
    store = CountingStore()
    root = await store_tree(store, {"f": b"file"})
    async with serving(store) as kernel:
        tree = await kernel.lookup(tree_name(root).encode())
        for opcode in (fuse.READ, fuse.READLINK):
            assert (await kernel.ask(opcode, tree, read_body(0, 1))).error == errno.EIO
        assert (await kernel.ask(fuse.READDIR, tree)).error == errno.EIO
        assert (await kernel.ask(fuse.STATFS, ROOT_ID)).error == 0
