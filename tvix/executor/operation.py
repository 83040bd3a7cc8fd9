"""One client's wish for an action, as the scheduler keeps it and clients watch it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import Digest
from tvix.executor.interfaces import Stage


@dataclass(slots=True, eq=False)
class Operation:
    """A named execution. Changed only by the scheduler, which then calls `changed`."""

    name: str
    instance_name: str
    action_digest: Digest
    created_at: float
    task_id: str = ""
    stage: Stage = Stage.CACHE_CHECK
    response: re_pb2.ExecuteResponse | None = None
    """Set exactly when the stage is COMPLETED."""
    metadata: re_pb2.ExecutedActionMetadata | None = None
    """What the worker told of the run so far."""
    stdout_stream_name: str = ""
    stderr_stream_name: str = ""
    done_at: float | None = None
    announced: bool = False
    """Whether a client has seen the name: then errors go into the response."""
    version: int = 0
    _waiting: set[asyncio.Future[None]] = field(default_factory=set)

    def __repr__(self) -> str:
        return f"<Operation {self.name} {self.stage.name}>"

    @property
    def done(self) -> bool:
        """Whether the operation has ended."""
        return self.response is not None

    def changed(self) -> None:
        """Wake everybody in `wait_changed`."""
        self.version += 1
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()

    async def wait_changed(self, version: int, timeout_seconds: float) -> bool:
        """Wait until the operation is no longer at `version`; False when the time is up before."""
        if self.version != version:
            return True
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()
        self._waiting.add(waiting)
        timer = loop.call_later(timeout_seconds, _end, waiting)
        try:
            await waiting
        finally:
            timer.cancel()
            self._waiting.discard(waiting)
        return self.version != version


def _end(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
