"""Answers the kernel's FUSE requests from a `Vfs`.

Requests that memory can answer, nearly all, are answered at once, without a task; the rest in a task each. OPEN and
OPENDIR are answered ENOSYS once: the kernel then sends neither again, nor releases, and keeps pages. GETXATTR, FLUSH
and the like fall under the same rule for unknown requests.
"""

from __future__ import annotations

import asyncio
import collections
import errno
import logging
import os
import stat
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from tvix.errors import TvixError
from tvix.executor import fuse_protocol as fuse
from tvix.executor.fuse_protocol import Attributes, Request
from tvix.executor.vfs import ROOT_ID, WAIT, DirectoryNode, FileNode, Node, SymlinkNode, Vfs

logger = logging.getLogger(__name__)

_BURST = 64
"""Requests answered before other callbacks of the event loop get their turn."""

Report = Callable[[Sequence[int], Exception], None]
"""Takes the handles of the trees in which something could not be read, and why."""


class FuseServer:
    """Serves one mount through the device's file descriptor, which must be non-blocking."""

    def __init__(self, fd: int, vfs: Vfs, report: Report, *, max_nodes: int = 1_000_000) -> None:
        self._fd = fd
        self._vfs = vfs
        self._report = report
        self._max_nodes = max_nodes
        self._waiting: dict[int, asyncio.Task[None]] = {}
        self._trimming: asyncio.Task[None] | None = None
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.counts: collections.Counter[int] = collections.Counter()
        self._handlers: dict[int, Callable[[Request], None]] = {
            fuse.INIT: self._init,
            fuse.LOOKUP: self._lookup,
            fuse.FORGET: self._forget,
            fuse.BATCH_FORGET: self._forget,
            fuse.GETATTR: self._getattr,
            fuse.SETATTR: self._refuse_change,
            fuse.READLINK: self._readlink,
            fuse.READ: self._read,
            fuse.READDIR: self._readdir,
            fuse.READDIRPLUS: self._readdir,
            fuse.STATFS: self._statfs,
            fuse.INTERRUPT: self._interrupt,
        }

    def __repr__(self) -> str:
        return f"<FuseServer {sum(self.counts.values())} requests, {len(self._waiting)} waiting>"

    async def run(self) -> None:
        """Serve until the file system is unmounted."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._fd, self._drain)
        try:
            await self._ended
        finally:
            loop.remove_reader(self._fd)
            tasks = [*self._waiting.values(), *([self._trimming] if self._trimming else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def request_counts(self) -> dict[str, int]:
        """Return how many requests of each kind came in."""
        return {fuse.NAMES.get(opcode, str(opcode)): count for opcode, count in self.counts.items()}

    def _drain(self) -> None:
        for _ in range(_BURST):
            try:
                data = os.read(self._fd, fuse.REQUEST_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                # ENOENT: a request was taken back while it was read.
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue
                self._end(error)
                return
            self._dispatch(fuse.decode_request(data))

    def _end(self, error: OSError) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        if self._ended.done():
            return
        if error.errno == errno.ENODEV:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)

    def _dispatch(self, request: Request) -> None:
        self.counts[request.opcode] += 1
        handler = self._handlers.get(request.opcode)
        if handler is None:
            self._reply_error(request, errno.ENOSYS)
            return
        try:
            handler(request)
        except TvixError as error:
            self._fail(request, error)
        except KeyError:
            self._reply_error(request, errno.ESTALE)
        except Exception as error:
            logger.exception("fuse_request opcode=%s node=%s", request.opcode, request.node)
            self._fail(request, error)

    # Replies

    def _reply(self, request: Request, body: bytes) -> bool:
        """Send a reply; False if nobody wants it any more."""
        try:
            os.writev(self._fd, (fuse.encode_header(request.unique, len(body)), body))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return False
            raise
        return True

    def _reply_error(self, request: Request, number: int) -> None:
        try:
            os.write(self._fd, fuse.encode_header(request.unique, 0, number))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise

    def _reply_entry(self, request: Request, node: Node) -> None:
        node.lookups += 1
        if not self._reply(request, fuse.encode_entry(_attributes(node))):
            self._vfs.forget(node.node_id, 1)
        if self._vfs.node_count > self._max_nodes:
            self._trim()

    def _fail(self, request: Request, error: Exception) -> None:
        # Reported before the reply, so that whoever sees EIO finds the reason known.
        node = self._vfs.node(request.node)
        handles = self._vfs.users(node)
        opcode = fuse.NAMES.get(request.opcode, request.opcode)
        logger.warning("fuse_failed opcode=%s node=%r users=%d error=%s", opcode, node, len(handles), error)
        self._report(handles, error)
        self._reply_error(request, errno.EIO)

    def _wait(self, request: Request, answer: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._guarded(request, answer))
        self._waiting[request.unique] = task
        task.add_done_callback(lambda done: self._answered(request, answer, done))

    def _answered(self, request: Request, answer: Coroutine[Any, Any, None], task: asyncio.Task[None]) -> None:
        del self._waiting[request.unique]
        if task.cancelled():
            # Here and not in the task: one that is cancelled before its first step never runs.
            answer.close()
            self._reply_error(request, errno.EINTR)

    async def _guarded(self, request: Request, answer: Coroutine[Any, Any, None]) -> None:
        try:
            await answer
        except TvixError as error:
            self._fail(request, error)
        except Exception as error:
            logger.exception("fuse_request opcode=%s node=%s", request.opcode, request.node)
            self._fail(request, error)

    # Requests

    def _init(self, request: Request) -> None:
        self._reply(request, fuse.encode_init(request.body))

    def _lookup(self, request: Request) -> None:
        parent = self._directory(request)
        name = request.body[:-1]
        node = self._vfs.lookup_now(parent, name)
        if node is WAIT:
            self._wait(request, self._lookup_later(request, parent, name))
        else:
            self._answer_lookup(request, parent, node)

    async def _lookup_later(self, request: Request, parent: DirectoryNode, name: bytes) -> None:
        node = await self._vfs.lookup(parent, name)
        self._answer_lookup(request, parent, node)

    def _answer_lookup(self, request: Request, parent: DirectoryNode, node: Node | None) -> None:
        if node is not None:
            self._reply_entry(request, node)
        elif parent.tree is None:
            # A tree that is not in the store today may be there tomorrow: the kernel must not remember this.
            self._reply_error(request, errno.ENOENT)
        else:
            self._reply(request, fuse.NO_ENTRY)

    def _directory(self, request: Request) -> DirectoryNode:
        node = self._vfs.node(request.node)
        assert isinstance(node, DirectoryNode)
        return node

    def _forget(self, request: Request) -> None:
        for node_id, lookups in fuse.decode_forgets(request):
            self._vfs.forget(node_id, lookups)

    def _getattr(self, request: Request) -> None:
        self._reply(request, fuse.encode_attributes(_attributes(self._vfs.node(request.node))))

    def _refuse_change(self, request: Request) -> None:
        self._reply_error(request, errno.EROFS)

    def _readlink(self, request: Request) -> None:
        node = self._vfs.node(request.node)
        assert isinstance(node, SymlinkNode)
        self._reply(request, node.target)

    def _statfs(self, request: Request) -> None:
        self._reply(request, fuse.encode_statfs())

    def _interrupt(self, request: Request) -> None:
        # No reply. A request that is not waiting has been answered already.
        task = self._waiting.get(fuse.decode_interrupt(request.body))
        if task is not None:
            task.cancel()

    def _read(self, request: Request) -> None:
        file = self._vfs.node(request.node)
        assert isinstance(file, FileNode)
        offset, size_bytes = fuse.decode_read(request.body)
        data = self._vfs.read_now(file, offset, size_bytes)
        if data is None:
            self._wait(request, self._read_later(request, file, offset, size_bytes))
        else:
            self._reply(request, data)

    async def _read_later(self, request: Request, file: FileNode, offset: int, size_bytes: int) -> None:
        self._reply(request, await self._vfs.read(file, offset, size_bytes))

    def _readdir(self, request: Request) -> None:
        directory = self._directory(request)
        if not self._answer_readdir(request, directory):
            self._wait(request, self._readdir_later(request, directory))

    async def _readdir_later(self, request: Request, directory: DirectoryNode) -> None:
        await self._vfs.load(directory)
        if not self._answer_readdir(request, directory):
            self._reply_error(request, errno.EAGAIN)

    def _answer_readdir(self, request: Request, directory: DirectoryNode) -> bool:
        offset, room = fuse.decode_read(request.body)
        level = self._vfs.level_now(directory)
        if level is None:
            return False
        plus = request.opcode == fuse.READDIRPLUS
        parts = [_encode_dots(cookie, plus) for cookie in range(offset + 1, 3)]
        nodes: list[Node] = []
        room -= sum(map(len, parts))
        for number in range(max(0, offset - 2), len(level)):
            name, kind = level.name(number), level.file_type(number)
            node = self._vfs.lookup_now(directory, name) if plus else None
            if isinstance(node, Node):
                part = fuse.encode_direntplus(name, number + 3, kind, _attributes(node))
            else:
                part = _encode_plain(name, number + 3, kind, plus)
            room -= len(part)
            if room < 0:
                if isinstance(node, Node):
                    self._vfs.forget(node.node_id, 0)
                break
            parts.append(part)
            if isinstance(node, Node):
                node.lookups += 1
                nodes.append(node)
        if not self._reply(request, b"".join(parts)):
            for node in nodes:
                self._vfs.forget(node.node_id, 1)
        return True

    # Bounding the number of nodes

    def _trim(self) -> None:
        if self._trimming is None or self._trimming.done():
            names = self._vfs.unused_trees()
            if names:
                self._trimming = asyncio.create_task(self._drop(names[: max(1, len(names) // 2)]))

    async def _drop(self, names: list[bytes]) -> None:
        # In a thread: the kernel takes the folder's lock for this, whose holder may be waiting for us.
        for name in names:
            message = fuse.encode_invalidate_entry(ROOT_ID, name)
            try:
                await asyncio.to_thread(os.write, self._fd, message)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENOTEMPTY, errno.EBUSY):
                    logger.warning("fuse_trim name=%s error=%s", name.decode(), error)


def _encode_dots(cookie: int, plus: bool) -> bytes:
    return _encode_plain(b"." if cookie == 1 else b"..", cookie, stat.S_IFDIR, plus)


def _encode_plain(name: bytes, cookie: int, kind: int, plus: bool) -> bytes:
    return fuse.encode_direntplus(name, cookie, kind, None) if plus else fuse.encode_dirent(name, cookie, kind)


def _attributes(node: Node) -> Attributes:
    return Attributes(node.node_id, node.mode, node.size_bytes, node.mtime_ns)
