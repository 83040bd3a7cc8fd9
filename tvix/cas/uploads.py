"""Uploads that survive a broken connection.

While a client sends, a task writes into the store what has come. When the connection breaks, the task
waits with what it has: the client asks QueryWriteStatus and goes on from there. State is in memory, per
process, keyed by (instance, uuid, digest), since clients may use one uuid for many blobs: a retry that
lands on another process, or comes too late, is told 0 and starts over. Nothing is visible in the store
before the last byte came and the digest was right; whatever is dropped leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from tvix.cas.digest import Digest
from tvix.cas.interfaces import BlobStore
from tvix.cas.resource_names import WriteName
from tvix.errors import InvalidInput, Unavailable

SUSPENDED_SECONDS = 600.0
MAX_SUSPENDED = 64

_PIECE_BYTES = 256 * 1024
"""Smaller messages are joined before they go to the store, which may hop to a thread for each piece."""


class Upload:
    """One blob on its way into the store. Made and kept by `Uploads`."""

    def __init__(self, blobs: BlobStore, digest: Digest) -> None:
        self.digest = digest
        self.received_bytes = 0
        """Bytes of the blob (uncompressed) that need not be sent again."""
        self.owner: object = None
        """Who may feed; another call that resumes takes over."""
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._piece: bytes | None = None
        self._ended = False
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._write(blobs))
        self._task.add_done_callback(self._on_done)

    def __repr__(self) -> str:
        return f"<Upload {self.digest} {self.received_bytes} bytes>"

    @property
    def stored(self) -> bool:
        """Whether the store has the blob by now, from whomever."""
        return self._task.done() and not self._task.cancelled() and self._task.exception() is None

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to feed, for good or ill."""
        return self._ended or self._task.done()

    async def _write(self, blobs: BlobStore) -> None:
        async with aclosing(self._pieces()) as pieces:
            await blobs.write(self.digest, pieces)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # Marks it as seen: an upload may be dropped without anyone asking.
        self._changed.set()

    async def _pieces(self) -> AsyncGenerator[bytes, None]:
        while True:
            while self._piece is None and not self._ended:
                self._changed.clear()
                await self._changed.wait()
            piece, self._piece = self._piece, None
            if piece is None:
                return
            self._changed.set()
            yield piece

    async def feed(self, owner: object, data: bytes) -> None:
        """Take the next bytes; waits while the store is behind. Raises what the store raised."""
        if self.owner is not owner:
            raise Unavailable(f"the upload of {self.digest} goes on in another call")
        self.received_bytes += len(data)
        if self.received_bytes > self.digest.size_bytes:
            raise InvalidInput(f"data: more than the {self.digest.size_bytes} bytes of {self.digest}")
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes >= _PIECE_BYTES:
            await self._hand_over()

    async def _hand_over(self) -> None:
        while self._piece is not None and not self._task.done():
            self._changed.clear()
            await self._changed.wait()
        if self._task.done():
            self._task.result()
            return
        if self._pending:
            self._piece = self._pending[0] if len(self._pending) == 1 else b"".join(self._pending)
            self._pending, self._pending_bytes = [], 0
            self._changed.set()

    async def finish(self, owner: object) -> None:
        """Say that all was fed, and wait until the blob is stored. Raises what the store raised."""
        await self.feed(owner, b"")
        if self.received_bytes < self.digest.size_bytes:
            raise InvalidInput(
                f"finish_write: after {self.received_bytes} bytes, {self.digest} has {self.digest.size_bytes}"
            )
        await self._hand_over()
        self._ended = True
        self._changed.set()
        await asyncio.shield(self._task)

    async def abort(self) -> None:
        """Stop and leave nothing behind; a blob that is whole is stored nevertheless."""
        if not self._ended:
            self._task.cancel()
        await asyncio.wait([self._task])


class Uploads:
    """The uploads of one process, running and suspended."""

    def __init__(self, blobs: BlobStore, *, suspended_seconds: float = SUSPENDED_SECONDS) -> None:
        self._blobs = blobs
        self._suspended_seconds = suspended_seconds
        self._by_name: dict[WriteName, Upload] = {}
        self._expiries: dict[WriteName, asyncio.TimerHandle] = {}
        self._aborting: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Uploads {len(self._by_name)} known, {len(self._expiries)} suspended>"

    def received_bytes(self, name: WriteName) -> int:
        """Return how much of the blob has come; 0 for an upload that is not known."""
        upload = self._by_name.get(name)
        return upload.received_bytes if upload else 0

    def begin(self, name: WriteName, offset: int, owner: object) -> Upload:
        """Return the upload to feed from `offset` on: a new one at 0, else the one that was begun.

        The caller skips what was received beyond `offset`. Ends with `done`, `drop` or `suspend`.
        """
        upload = self._by_name.get(name)
        if offset and (upload is None or upload.received_bytes < offset):
            received_bytes = upload.received_bytes if upload else 0
            raise InvalidInput(
                f"write_offset: {offset}, but {received_bytes} bytes were received", field="write_offset"
            )
        if expiry := self._expiries.pop(name, None):
            expiry.cancel()
            if not offset and upload is not None:
                self.drop(name, upload, upload.owner)
        if not offset or upload is None:
            upload = self._by_name[name] = Upload(self._blobs, name.digest)
        upload.owner = owner
        return upload

    def suspend(self, name: WriteName, upload: Upload, owner: object) -> None:
        """Keep the upload for its client to come back; the longest waiting one gives way when there are many.

        Does nothing, as `drop` does, when another owner has taken over.
        """
        if upload.owner is not owner:
            return
        if self._by_name.get(name) is not upload or upload.ended:
            self.drop(name, upload, owner)
            return
        if len(self._expiries) >= MAX_SUSPENDED:
            self._expire(next(iter(self._expiries)))
        loop = asyncio.get_running_loop()
        self._expiries[name] = loop.call_later(self._suspended_seconds, self._expire, name)

    def _expire(self, name: WriteName) -> None:
        self._expiries.pop(name).cancel()
        upload = self._by_name[name]
        self.drop(name, upload, upload.owner)

    def done(self, name: WriteName, upload: Upload) -> None:
        """Forget an upload that is stored."""
        if self._by_name.get(name) is upload:
            del self._by_name[name]

    def drop(self, name: WriteName, upload: Upload, owner: object) -> None:
        """Forget an upload and undo what it wrote."""
        if upload.owner is not owner:
            return
        self.done(name, upload)
        task = asyncio.create_task(upload.abort())
        self._aborting.add(task)
        task.add_done_callback(self._aborting.discard)

    async def close(self) -> None:
        """Undo all that is under way."""
        for expiry in self._expiries.values():
            expiry.cancel()
        self._expiries.clear()
        for name, upload in list(self._by_name.items()):
            self.drop(name, upload, upload.owner)
        if self._aborting:
            await asyncio.wait(self._aborting)
