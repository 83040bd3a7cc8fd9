"""What is done with what a worker finished: judged, cached, told to everybody, then forgotten by the worker."""

from __future__ import annotations

import logging

from remote_apis import remote_execution_pb2 as re_pb2
from remote_apis import worker_pb2
from tvix.cas.complete import ActionResultDigests
from tvix.cas.digest import Digest
from tvix.cas.interfaces import ActionCache, ActionKey, BlobStore
from tvix.cas.tree import TreeWalker
from tvix.errors import BlobNotFound, Internal, InvalidInput, MissingBlobs, TvixError
from tvix.executor.dispatcher import Dispatcher, story
from tvix.executor.job import Job
from tvix.executor.results import is_cacheable, normalize, status_response
from tvix.rpc import error_from_status, status_from_error

log = logging.getLogger(__name__)


class Recorder:
    """Sees results through to the end. The only writer of the action cache on the server's behalf."""

    def __init__(self, dispatcher: Dispatcher, blobs: BlobStore, action_cache: ActionCache, trees: TreeWalker) -> None:
        self._dispatcher = dispatcher
        self._blobs = blobs
        self._cache = action_cache
        self._trees = trees
        self._digests_of = ActionResultDigests(blobs, trees)

    def __repr__(self) -> str:
        return f"<Recorder of {self._dispatcher!r}>"

    async def record(self, job: Job, worker_id: str, finished: worker_pb2.Finished) -> None:
        """Complete or retry a job whose lease has ended; then let the worker forget it."""
        dispatcher, response = self._dispatcher, finished.response
        try:
            failure = await self._settle(job, worker_id, finished)
        except TvixError as error:
            # A full disk or a broken database is ours: the client hears of it and may come back.
            log.error("recording of action=%s failed: %s", job.digest, error)
            response, failure = status_response(status_from_error(error)), ""
        except Exception as error:
            log.exception("recording of action=%s failed", job.digest)
            response, failure = status_response(status_from_error(error)), ""
        if failure and dispatcher.queue.retry(job.task, worker_id, failure, dispatcher.clock()):
            dispatcher.pump()
        else:
            if failure and not (finished.retry and response.status.code):
                response = status_response(status_from_error(Internal(story(job.task, f"{worker_id}: {failure}"))))
            saved = dispatcher.end_job(job, response)
            dispatcher.queue.complete(job.task)
            dispatcher.pump()
            try:
                await saved
            except TvixError:
                return  # logged by the store; the worker keeps the result and tells it again
        dispatcher.acknowledge(worker_id, finished.lease_id)

    async def _settle(self, job: Job, worker_id: str, finished: worker_pb2.Finished) -> str:
        """Complete the response and cache it. Returns why another worker should try, empty if none should."""
        response = finished.response
        normalize(response, worker_id, job.queued_metadata())
        if finished.retry:
            return response.status.message or response.message or "the worker gave up without a reason"
        if response.HasField("result"):
            try:
                missing = await self._missing_outputs(job, response.result)
            except InvalidInput as error:
                return f"its result is malformed: {error}"
            if missing:
                return f"outputs were not uploaded: {MissingBlobs(missing)}"
        if isinstance(error_from_status(response.status), MissingBlobs):
            await self._name_all_missing(job, response)
        if is_cacheable(response, job.checked.action):
            await self._cache.put(ActionKey(job.execution.instance_name, job.digest), response.result)
        return ""

    async def _missing_outputs(self, job: Job, result: re_pb2.ActionResult) -> set[Digest]:
        """Return the blobs that a result names, in trees too, and the store lacks."""
        try:
            needed = await self._digests_of(ActionKey(job.execution.instance_name, job.digest), result)
        except BlobNotFound as error:
            return {error.digest}
        except MissingBlobs as error:
            return set(error.digests)
        return await self._blobs.find_missing(needed) if needed else set()

    async def _name_all_missing(self, job: Job, response: re_pb2.ExecuteResponse) -> None:
        """Add to a worker's missing blobs those it has not come across."""
        error = error_from_status(response.status)
        assert isinstance(error, MissingBlobs)
        roots = (job.digest, job.checked.command_digest)
        found = await self._trees.missing_inputs(roots, (job.checked.input_root,))
        response.status.CopyFrom(status_from_error(MissingBlobs({*error.digests, *found})))
