"""What the scheduler knows of a task and its operations, and how that is saved."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import NamedTuple

from remote_apis import remote_execution_pb2 as re_pb2
from remote_apis import worker_pb2
from tvix.cas.digest import Digest, digest_to_proto, function_to_wire, make_digest
from tvix.executor.admission import CheckedAction, Timeouts, restore_checked
from tvix.executor.interfaces import Execution, Stage
from tvix.executor.operation import Operation
from tvix.executor.operations_store import Row
from tvix.executor.platform_policy import Property
from tvix.executor.queue_model import Lease, Task


class Streams(NamedTuple):
    """Names of the streams into which a run's output is written while clients read it; empty without."""

    stdout_name: str = ""
    stderr_name: str = ""
    stdout_write_name: str = ""
    stderr_write_name: str = ""


@dataclass(slots=True, eq=False)
class Job:
    """What the scheduler knows of a queue task."""

    task: Task
    digest: Digest
    execution: Execution
    checked: CheckedAction
    overrides: tuple[Property, ...]
    queued_at: float
    streams: Streams = field(default_factory=Streams)
    operations: dict[str, Operation] = field(default_factory=dict)
    input_check: asyncio.Task[None] | None = None
    progress: re_pb2.ExecutedActionMetadata | None = None

    def __repr__(self) -> str:
        return f"<Job {self.task!r} of {self.digest}>"

    def queued_metadata(self) -> re_pb2.ExecutedActionMetadata:
        """Return the metadata of a run that has not begun."""
        metadata = re_pb2.ExecutedActionMetadata()
        metadata.queued_timestamp.FromNanoseconds(int(self.queued_at * 1e9))
        return metadata


def assign_message(job: Job, lease: Lease) -> worker_pb2.SchedulerMessage:
    """Return what a worker is told to run."""
    assign = worker_pb2.Assign(
        lease_id=lease.id,
        instance_name=job.execution.instance_name,
        digest_function=function_to_wire(job.digest.function),
        action_digest=digest_to_proto(job.digest),
        action=job.checked.action_bytes,
        command=job.checked.command_bytes,
        metadata=job.queued_metadata(),
        stdout_write_name=job.streams.stdout_write_name,
        stderr_write_name=job.streams.stderr_write_name,
        attempt=lease.attempt,
        request_metadata=job.execution.request_metadata,
        timeout_seconds=job.checked.timeout_seconds,
    )
    return worker_pb2.SchedulerMessage(assign=assign)


class SavedTask(NamedTuple):
    """What a task row says."""

    execution: Execution
    checked: CheckedAction
    overrides: tuple[Property, ...]
    streams: Streams


def task_from_row(row: Row, timeouts: Timeouts) -> SavedTask:
    """Return what was saved of a task. Raises TvixError when it cannot be run any more."""
    digest = make_digest(row["digest_function"], row["hash"], row["size_bytes"])
    execution = Execution(
        digest,
        row["instance_name"],
        row["skip_cache_lookup"],
        row["priority"],
        re_pb2.RequestMetadata.FromString(row["request_metadata"]),
    )
    overrides = tuple(Property(*pair) for pair in json.loads(row["overrides"]))
    # The saved Action has the overrides in it already.
    checked = restore_checked(digest, row["action"], row["command"], timeouts)
    return SavedTask(execution, checked, overrides, Streams(*json.loads(row["streams"])))


def task_row(job: Job) -> Row:
    """Return what is saved of a task."""
    return {
        "id": job.task.id,
        "instance_name": job.execution.instance_name,
        "digest_function": job.digest.function,
        "hash": job.digest.hash,
        "size_bytes": job.digest.size_bytes,
        "priority": job.execution.priority,
        "queued_at": job.queued_at,
        "skip_cache_lookup": job.execution.skip_cache_lookup,
        "overrides": json.dumps(job.overrides),
        "request_metadata": job.execution.request_metadata.SerializeToString(),
        "action": job.checked.action_bytes,
        "command": job.checked.command_bytes,
        "streams": json.dumps(job.streams),
    }


def lease_row(job: Job, lease_id: str = "", worker_id: str = "") -> Row:
    """Return what is saved of a task's tries; without a lease when it is queued again."""
    return {
        "task_id": job.task.id,
        "lease_id": lease_id,
        "worker_id": worker_id,
        "attempts": job.task.attempts,
        "failures": json.dumps(job.task.failures),
    }


def operation_row(operation: Operation) -> Row:
    """Return what is saved of an operation."""
    digest = operation.action_digest
    return {
        "name": operation.name,
        "task_id": operation.task_id,
        "instance_name": operation.instance_name,
        "digest_function": digest.function,
        "hash": digest.hash,
        "size_bytes": digest.size_bytes,
        "created_at": operation.created_at,
        "done_at": operation.done_at,
        "response": None if operation.response is None else operation.response.SerializeToString(),
    }


def operation_from_row(row: Row) -> Operation:
    """Return a finished operation as it was saved."""
    return Operation(
        row["name"],
        row["instance_name"],
        make_digest(row["digest_function"], row["hash"], row["size_bytes"]),
        row["created_at"],
        row["task_id"],
        Stage.COMPLETED,
        re_pb2.ExecuteResponse.FromString(row["response"]),
        done_at=row["done_at"],
        announced=True,
    )
