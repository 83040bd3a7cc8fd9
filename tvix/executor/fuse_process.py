"""The process that serves a worker's mount: `python -m tvix.executor.fuse_process`.

It is apart from the worker because a process that touches a mount it serves itself waits for ever. The worker talks
to it over a socket it inherits, in lines of JSON; digests are spelled as the mount spells trees:

    worker:  {"id": N, "op": "open", "tree": T}     show a tree to an action; N stands for this use of it
             {"op": "close", "handle": H}           H is the N of its opening
             {"id": N, "op": "stats"}
    process: {"event": "ready"}                     mounted
             {"event": "fault", "handles": [H…], "error": KIND, "message": M, "missing": [T…]}
                                                    a read failed in these uses; sent before the reader gets EIO
             {"id": N, …}                           the answer; with "error" and the rest as above if it failed

It ends, and its mount with it, when the socket is closed, the worker dies or the file system is unmounted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tvix.cas.digest import Digest
from tvix.cas.disk import DiskBlobStore, DiskConfig
from tvix.cas.interfaces import BlobStore
from tvix.errors import BlobNotFound, InvalidInput, MissingBlobs, TvixError
from tvix.executor.fuse_protocol import MAX_READ_BYTES
from tvix.executor.fuse_server import FuseServer
from tvix.executor.input_tree import digest_from_tree_name, tree_name
from tvix.executor.mounts import MS_NODEV, MS_NOSUID, MS_RDONLY, device_of_mount, die_with_parent, mount
from tvix.executor.vfs import Vfs, VfsConfig

logger = logging.getLogger(__name__)

OpenStore = Callable[[str], Awaitable[BlobStore]]

_READAHEAD_KIB = 1024


def mount_fuse(mountpoint: Path) -> int:
    """Mount an empty FUSE file system read-only; return the device's descriptor, non-blocking.

    Others than the mounting user may use it (modes decide), also in a user namespace for those inside.
    """
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        options = f"fd={fd},rootmode=40755,user_id={os.geteuid()},group_id={os.getegid()}"
        options += f",allow_other,default_permissions,max_read={MAX_READ_BYTES}"
        mount("tvix", mountpoint, "fuse.tvix", MS_NOSUID | MS_NODEV | MS_RDONLY, options)
    except BaseException:
        os.close(fd)
        raise
    return fd


def raise_readahead(mountpoint: Path) -> None:
    """Let the kernel read ahead in large files as far as one request goes; needs root, else stays at 128 KiB."""
    with contextlib.suppress(OSError, KeyError):
        path = Path(f"/sys/class/bdi/{device_of_mount(mountpoint)}/read_ahead_kb")
        path.write_text(str(_READAHEAD_KIB))


async def open_store(url: str) -> BlobStore:
    """Open the store that the worker reads: `file:///folder` for a disk store on this machine."""
    parts = urlsplit(url)
    if parts.scheme != "file" or not parts.path:
        raise InvalidInput(f"store: {url!r} is not of the form file:///folder", field="store")
    return await DiskBlobStore.open(DiskConfig(path=Path(unquote(parts.path))))


class Control:
    """The worker's end of the conversation, seen from the mount's process."""

    def __init__(self, vfs: Vfs, writer: asyncio.StreamWriter) -> None:
        self._vfs = vfs
        self._writer = writer
        self.server: FuseServer | None = None

    def send(self, message: dict[str, Any]) -> None:
        """Send one line, at once: asyncio's own loop writes before it returns (uvloop would do so later)."""
        self._writer.write(json.dumps(message).encode() + b"\n")

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Answer until the worker closes its end; slow answers do not hold up others."""
        async with asyncio.TaskGroup() as tasks:
            while line := await reader.readline():
                request = json.loads(line)
                if request["op"] == "close":
                    self._vfs.close_tree(request["handle"])
                else:
                    tasks.create_task(self._answer(request))

    async def _answer(self, request: dict[str, Any]) -> None:
        number = request["id"]
        try:
            self.send({"id": number} | await self._do(request, number))
        except TvixError as error:
            self.send({"id": number} | error_to_json(error))

    def report(self, handles: Sequence[int], error: Exception) -> None:
        """Tell the worker of a read that failed."""
        if handles:
            self.send({"event": "fault", "handles": list(handles)} | error_to_json(error))

    async def _do(self, request: dict[str, Any], number: int) -> dict[str, Any]:
        if request["op"] == "open":
            root = digest_from_tree_name(request["tree"])
            if root is None:
                raise InvalidInput(f"tree: {request['tree']!r} is not the name of a tree", field="tree")
            await self._vfs.open_tree(number, root)
            return {}
        assert self.server is not None
        counts = self.server.request_counts()
        return {"requests": counts, "nodes": self._vfs.node_count, "open_trees": len(self._vfs.open_trees)}


def error_to_json(error: Exception) -> dict[str, Any]:
    """Return an error as `mount_process.error_from_json` reads it."""
    missing: Sequence[Digest] = ()
    kind = "invalid" if isinstance(error, InvalidInput) else "unavailable"
    if isinstance(error, MissingBlobs):
        kind, missing = "missing", error.digests
    elif isinstance(error, BlobNotFound):
        kind, missing = "missing", [error.digest]
    message = str(error) or type(error).__name__
    return {"error": kind, "message": message, "missing": [tree_name(digest) for digest in missing]}


async def serve(mountpoint: Path, store_url: str, control: socket.socket, open_blobs: OpenStore) -> None:
    """Mount, serve and answer until either side ends."""
    reader, writer = await asyncio.open_connection(sock=control)
    blobs = await open_blobs(store_url)
    vfs = Vfs(blobs, VfsConfig())
    fd = mount_fuse(mountpoint)
    try:
        channel = Control(vfs, writer)
        channel.server = server = FuseServer(fd, vfs, channel.report)
        serving = asyncio.create_task(server.run())
        talking = asyncio.create_task(channel.run(reader))
        raise_readahead(mountpoint)
        channel.send({"event": "ready"})
        await asyncio.wait([serving, talking], return_when=asyncio.FIRST_COMPLETED)
        for task in (serving, talking):
            task.cancel()
        await asyncio.gather(serving, talking, return_exceptions=True)
    finally:
        os.close(fd)
        await vfs.close()
        await blobs.close()
        writer.close()


def main(arguments: Sequence[str] | None = None, open_blobs: OpenStore = open_store) -> None:
    """Run the process; `open_blobs` opens what `--store` names."""
    parser = argparse.ArgumentParser(prog="tvix.executor.fuse_process", description="Serves a worker's input roots.")
    parser.add_argument("--store", required=True, help="URL of the blob store")
    parser.add_argument("--mountpoint", required=True, type=Path)
    parser.add_argument("--control", required=True, type=int, help="file descriptor of the socket to the worker")
    parser.add_argument("--parent", required=True, type=int, help="process that must be alive")
    options = parser.parse_args(arguments)
    die_with_parent(signal.SIGKILL)
    if os.getppid() != options.parent:
        return
    # The terminal's interrupt is for the worker, which ends its actions before it ends the mount.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    control = socket.socket(fileno=options.control)
    control.setblocking(False)
    asyncio.run(serve(options.mountpoint, options.store, control, open_blobs))


if __name__ == "__main__":
    main()
