"""Runs actions on this machine: fetch, lay out, run, collect, report.

What the command does wrong is a response: a non-zero exit code, a timeout, an output of the wrong type.
What the request does wrong, or we do, is an exception (see `Executor.execute`). Timestamps are all set,
also when a step fails half-way in the command's fault: Bazel shows absurd durations otherwise.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message

from remote_apis import remote_execution_pb2 as re_pb2
from remote_apis import worker_pb2
from tvix.cas.digest import Digest, DigestFunction, digest_from_proto, digest_of, digest_to_proto, function_to_wire
from tvix.cas.interfaces import BlobStore
from tvix.errors import DeadlineExceeded, FailedPrecondition, InvalidInput, MissingBlobs, TvixError
from tvix.executor.capture import Capture
from tvix.executor.command import CommandPlan, ProfileChoice, plan_command
from tvix.executor.interfaces import (
    BuildRoot,
    Execution,
    Executor,
    Exit,
    Limits,
    OpenRoot,
    Output,
    Process,
    Sandbox,
    Stage,
    Usage,
)
from tvix.executor.outputs import Collected, scan_outputs, store_outputs
from tvix.executor.roots import prepare_root
from tvix.executor.scratch import run_blocking
from tvix.rpc import status_from_error

TIMEOUT_MESSAGE = "execution timeout exceeded"
"""siso takes exactly this for a timeout of the action, and anything else for one of ours."""

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class LocalConfig:
    """How actions run on this machine."""

    worker_name: str
    scratch: Path
    """Where output that does not fit into memory goes; exists."""
    profile: ProfileChoice = "auto"
    """For actions that name none."""
    network: bool = False
    """For actions that do not say."""
    limits: Limits = field(default_factory=Limits)
    """The most that an action may have; it can ask for less. `wall_seconds` holds for actions without timeout."""
    inline_bytes: int = 16 * 1024
    """Standard output and error up to this size stand in the result itself as well."""


@dataclass(slots=True)
class ActionRun:
    """One run of one action."""

    action_digest: Digest
    action: bytes | None = None
    """The serialized Action, when at hand; fetched otherwise."""
    command: bytes | None = None
    timeout_seconds: float | None = None
    """What holds instead of the action's own timeout and ours, when set."""
    metadata: re_pb2.ExecutedActionMetadata = field(default_factory=re_pb2.ExecutedActionMetadata)
    """Filled as the run proceeds; may hold `queued_timestamp` already."""
    stdout: Output | None = None
    stderr: Output | None = None
    progress: Callable[[re_pb2.ExecutedActionMetadata], None] = lambda metadata: None
    """Called when the command begins to run."""
    directories_for_files: bool = False
    """See `CommandPlan.directories_for_files`."""


class LocalExecutor(Executor):
    """Runs actions in a sandbox, in build roots."""

    def __init__(self, blobs: BlobStore, build_root: BuildRoot, sandbox: Sandbox, config: LocalConfig) -> None:
        self._blobs = blobs
        self._build_root = build_root
        self._sandbox = sandbox
        self._config = config

    def __repr__(self) -> str:
        return f"<LocalExecutor {self._sandbox!r} {self._build_root!r}>"

    async def execute(self, execution: Execution, report: Callable[[Stage], None]) -> re_pb2.ExecuteResponse:
        run = ActionRun(execution.action_digest, progress=lambda metadata: report(Stage.EXECUTING))
        return await self.run(run)

    async def run(self, run: ActionRun) -> re_pb2.ExecuteResponse:
        """Run the action; see `Executor.execute` for what is returned and raised."""
        metadata = run.metadata
        metadata.worker = self._config.worker_name
        metadata.worker_start_timestamp.GetCurrentTime()
        if not metadata.HasField("queued_timestamp"):
            metadata.queued_timestamp.CopyFrom(metadata.worker_start_timestamp)
        metadata.input_fetch_start_timestamp.GetCurrentTime()
        action, plan = await self._load(run)
        input_root = digest_from_proto(
            action.input_root_digest, _function_value(run.action_digest), field="action.input_root_digest"
        )
        limits = self._limits(plan, action, run.timeout_seconds)
        async with self._build_root.open(input_root) as root:
            return await self._run_in(root, plan, limits, run)

    async def _load(self, run: ActionRun) -> tuple[re_pb2.Action, CommandPlan]:
        data = run.action if run.action is not None else await self._fetch(run.action_digest)
        action = _parse(re_pb2.Action, data, "action", run.action_digest)
        if not action.HasField("command_digest"):
            raise InvalidInput("action.command_digest: is not set", field="action.command_digest")
        digest = digest_from_proto(
            action.command_digest, _function_value(run.action_digest), field="action.command_digest"
        )
        data = run.command if run.command is not None else await self._fetch(digest)
        plan = plan_command(action, _parse(re_pb2.Command, data, "command", digest))
        return action, replace(plan, directories_for_files=run.directories_for_files)

    async def _fetch(self, digest: Digest) -> bytes:
        (data,) = await self._blobs.get_many([digest])
        if data is None:
            raise MissingBlobs([digest])
        return data

    def _limits(self, plan: CommandPlan, action: re_pb2.Action, timeout_seconds: float | None) -> Limits:
        ours = self._config.limits
        if timeout_seconds is None:
            timeout_seconds = ours.wall_seconds
            if action.HasField("timeout") and action.timeout.ToNanoseconds() != 0:
                timeout_seconds = action.timeout.ToNanoseconds() / 1e9
                if timeout_seconds < 0:
                    raise InvalidInput(f"action.timeout: {timeout_seconds} s is negative", field="action.timeout")
        return Limits(
            wall_seconds=timeout_seconds,
            memory_bytes=_least(plan.limits.memory_bytes, ours.memory_bytes),
            processes=_least(plan.limits.processes, ours.processes),
            cpu_millis=_least(plan.limits.cpu_millis, ours.cpu_millis),
        )

    async def _run_in(
        self, root: OpenRoot, plan: CommandPlan, limits: Limits, run: ActionRun
    ) -> re_pb2.ExecuteResponse:
        shown = await run_blocking(prepare_root, root.path, plan, self._config.profile)
        process = Process(
            arguments=plan.arguments,
            environment=plan.environment,
            root=root.path,
            working_directory=plan.working_directory,
            profile=shown.profile,
            network=self._config.network if plan.network is None else plan.network,
            limits=limits,
            uid=plan.uid,
            gid=plan.gid,
            own_tmp=shown.own_tmp,
        )
        stdout, stderr = Capture(self._config.scratch, run.stdout), Capture(self._config.scratch, run.stderr)
        try:
            run.metadata.input_fetch_completed_timestamp.GetCurrentTime()
            ended = await self._run_process(process, stdout, stderr, run)
            root.check()
            missing = root.missing()
            if missing:
                raise MissingBlobs(missing)
            return await self._respond(root, plan, ended, (stdout, stderr), run, limits)
        finally:
            stdout.close()
            stderr.close()

    async def _run_process(self, process: Process, stdout: Output, stderr: Output, run: ActionRun) -> Exit:
        started_ns = time.time_ns()
        run.metadata.execution_start_timestamp.FromNanoseconds(started_ns)
        run.progress(run.metadata)
        ended = await self._sandbox.run(process, stdout, stderr)
        wall_ns = int(ended.usage.wall_seconds * 1e9)
        run.metadata.virtual_execution_duration.FromNanoseconds(wall_ns)
        run.metadata.execution_completed_timestamp.FromNanoseconds(max(time.time_ns(), started_ns))
        packed = Any()
        packed.Pack(usage_to_proto(ended.usage))
        run.metadata.auxiliary_metadata.append(packed)
        return ended

    async def _respond(
        self,
        root: OpenRoot,
        plan: CommandPlan,
        ended: Exit,
        captured: tuple[Capture, Capture],
        run: ActionRun,
        limits: Limits,
    ) -> re_pb2.ExecuteResponse:
        run.metadata.output_upload_start_timestamp.GetCurrentTime()
        function = run.action_digest.function
        collected = Collected()
        if plan.outputs:
            collected = await run_blocking(scan_outputs, root.path, plan, function)
            root.check()
        result = collected.result
        result.exit_code = ended.exit_code
        stdout, stderr = captured
        result.stdout_raw = await self._keep_output(stdout, result.stdout_digest, collected, function)
        result.stderr_raw = await self._keep_output(stderr, result.stderr_digest, collected, function)
        await store_outputs(self._blobs, root.path, collected)
        run.metadata.output_upload_completed_timestamp.GetCurrentTime()
        run.metadata.worker_completed_timestamp.GetCurrentTime()
        result.execution_metadata.CopyFrom(run.metadata)
        response = re_pb2.ExecuteResponse(result=result)
        error = self._failure(ended, collected)
        if error is not None:
            response.status.CopyFrom(status_from_error(error))
        if ended.out_of_memory:
            response.message = "the command was killed because its memory limit was reached: " + _limit_text(limits)
        return response

    async def _keep_output(
        self, capture: Capture, digest_field: re_pb2.Digest, collected: Collected, function: DigestFunction
    ) -> bytes:
        """Fill in the digest of what a command wrote, see that it is stored, return what to inline."""
        if not capture.size_bytes:
            return b""
        data = capture.in_memory
        if data is None:
            digest = await asyncio.to_thread(capture.digest, function)
            await self._blobs.write(digest, _chunks_of(capture))
        else:
            digest = digest_of(data, function)
            collected.blobs[digest] = data
        digest_field.CopyFrom(digest_to_proto(digest))
        return data if data is not None and len(data) <= self._config.inline_bytes else b""

    def _failure(self, ended: Exit, collected: Collected) -> TvixError | None:
        if ended.timed_out:
            return DeadlineExceeded(TIMEOUT_MESSAGE)
        if collected.mismatches:
            return FailedPrecondition("; ".join(collected.mismatches[:10]))
        return None


async def _chunks_of(capture: Capture) -> AsyncIterator[bytes]:
    for chunk in capture.chunks():
        yield chunk
        await asyncio.sleep(0)


def usage_to_proto(usage: Usage) -> worker_pb2.ResourceUsage:
    """Return the wire form."""
    return worker_pb2.ResourceUsage(
        wall_seconds=usage.wall_seconds,
        user_seconds=usage.user_seconds,
        system_seconds=usage.system_seconds,
        peak_memory_bytes=usage.peak_memory_bytes,
        peak_processes=usage.peak_processes,
        read_bytes=usage.read_bytes,
        written_bytes=usage.written_bytes,
    )


def _function_value(digest: Digest) -> int:
    return function_to_wire(digest.function)


def _parse(kind: type[M], data: bytes, what: str, digest: Digest) -> M:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidInput(f"{what}: blob {digest} is not a {kind.DESCRIPTOR.name} message", field=what) from error


def _limit_text(limits: Limits) -> str:
    return "unknown" if limits.memory_bytes is None else f"{limits.memory_bytes} bytes"


def _least(wanted: int | None, allowed: int | None) -> int | None:
    return min((value for value in (wanted, allowed) if value is not None), default=None)
