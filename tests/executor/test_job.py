"""What is saved of a task comes back."""

from __future__ import annotations

import pytest

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import digest_of, digest_to_proto
from tvix.errors import TvixError
from tvix.executor.admission import Timeouts, restore_checked
from tvix.executor.interfaces import Execution, Stage
from tvix.executor.job import Job, Streams, assign_message, operation_from_row, operation_row, task_from_row, task_row
from tvix.executor.operation import Operation
from tvix.executor.platform_policy import Property
from tvix.executor.queue_model import Lease, Task


def make_job() -> Job:
    command = re_pb2.Command(arguments=["true"]).SerializeToString()
    action = re_pb2.Action(
        command_digest=digest_to_proto(digest_of(command, "blake3")),
        input_root_digest=digest_to_proto(digest_of(b"", "blake3")),
    ).SerializeToString()
    digest = digest_of(action, "blake3")
    checked = restore_checked(digest, action, command, Timeouts())
    metadata = re_pb2.RequestMetadata(tool_invocation_id="build")
    execution = Execution(digest, "inst", True, -3, metadata)
    streams = Streams("a", "b", "c", "d")
    return Job(Task("t"), digest, execution, checked, (Property("Pool", "x"),), 5.0, streams)


def test_a_task_comes_back_as_it_was() -> None:
    job = make_job()
    saved = task_from_row(task_row(job), Timeouts())
    assert (saved.execution, saved.checked, saved.overrides) == (job.execution, job.checked, job.overrides)
    assert saved.streams == job.streams


def test_a_task_that_may_no_longer_run_is_an_error() -> None:
    row = {**task_row(make_job()), "command": b"\xff"}
    with pytest.raises(TvixError):
        task_from_row(row, Timeouts())


def test_a_finished_operation_comes_back_with_its_response() -> None:
    response = re_pb2.ExecuteResponse(result=re_pb2.ActionResult(exit_code=3))
    operation = Operation("o", "inst", digest_of(b"x", "blake3"), 1.0, "t", Stage.COMPLETED, response, done_at=2.0)
    found = operation_from_row(operation_row(operation))
    assert (found.name, found.action_digest, found.response, found.done_at) == (
        "o",
        operation.action_digest,
        response,
        2,
    )
    assert found.stage is Stage.COMPLETED


def test_the_worker_is_told_all_it_needs() -> None:
    job = make_job()
    assign = assign_message(job, Lease("l", job.task, "w", 2, 6.0)).assign
    assert (assign.lease_id, assign.attempt, assign.instance_name) == ("l", 2, "inst")
    assert assign.digest_function == re_pb2.DigestFunction.BLAKE3
    assert assign.metadata.queued_timestamp.seconds == 5
    assert (assign.stdout_write_name, assign.stderr_write_name) == ("c", "d")
