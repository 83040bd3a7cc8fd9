"""All there is to tell of one action: fetched from a server, then rendered. `render_report` does no I/O."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.message import DecodeError
from rich.console import RenderableType
from rich.text import Text

from remote_apis import remote_execution_pb2 as re_pb2
from remote_apis import remote_execution_pb2_grpc as re_grpc
from remote_apis import worker_pb2
from tvix.cas.digest import Digest, digest_from_proto, digest_to_proto, function_to_wire
from tvix.cas.interfaces import BlobStore, read_whole
from tvix.cas.tree import TreeWalker
from tvix.cli.remote import Remote, human_seconds, human_size
from tvix.cli.trees import Entry, TreeReader, format_entry
from tvix.errors import BlobNotFound, InvalidInput, NotFound, TvixError

MAX_OPERATIONS = 2000
"""How many operations are looked through for one of this action."""
BAR_WIDTH = 50
MAX_SHOWN_ENTRIES = 20


@dataclass(slots=True)
class Report:
    """What is known; parts that could not be had are None or empty, and `notes` say why."""

    digest: Digest
    action: re_pb2.Action
    command: re_pb2.Command | None = None
    inputs: list[Entry] = field(default_factory=list)
    """The top of the input tree."""
    input_counts: tuple[int, int, int] | None = None
    """Files, directories, bytes of the whole tree, each content counted once."""
    response: re_pb2.ExecuteResponse | None = None
    source: str = ""
    """Where the result was found."""
    stdout: str = ""
    stderr: str = ""
    notes: list[str] = field(default_factory=list)


async def fetch_report(remote: Remote, digest: Digest, log_lines: int | None) -> Report:
    """Read everything. Raises BlobNotFound or InvalidInput when the action itself can't be read."""
    try:
        report = Report(digest, re_pb2.Action.FromString(await read_whole(remote.blobs, digest)))
    except DecodeError as error:
        raise InvalidInput(f"{digest} is not an Action: {error}; `tvix cas stat` tells what it looks like") from error
    if not report.action.command_digest.hash:
        raise InvalidInput(f"{digest} is not an Action; `tvix cas stat` tells what it looks like")
    await _read_command(remote.blobs, report)
    await _read_inputs(remote.blobs, report)
    await _find_result(remote, report)
    if report.response:
        result = report.response.result
        report.stdout = await _log(remote.blobs, report, "stdout", result.stdout_raw, result.stdout_digest, log_lines)
        report.stderr = await _log(remote.blobs, report, "stderr", result.stderr_raw, result.stderr_digest, log_lines)
    return report


def _digest(report: Report, message: re_pb2.Digest, where: str) -> Digest:
    return digest_from_proto(message, function_to_wire(report.digest.function), field=where)


async def _read_command(blobs: BlobStore, report: Report) -> None:
    digest = _digest(report, report.action.command_digest, "command_digest")
    try:
        report.command = re_pb2.Command.FromString(await read_whole(blobs, digest))
    except (BlobNotFound, DecodeError) as error:
        report.notes.append(f"command: {error}")


async def _read_inputs(blobs: BlobStore, report: Report) -> None:
    root = _digest(report, report.action.input_root_digest, "input_root_digest")
    reader = TreeReader(blobs)
    try:
        report.inputs = await reader.entries(await reader.open(root))
        closure = await TreeWalker(blobs, strict=False).closure(root)
    except TvixError as error:
        report.notes.append(f"inputs: {error}")
        return
    size_bytes = sum(digest.size_bytes for digest in closure.files)
    report.input_counts = len(closure.files), len(closure.directories), size_bytes
    if missing := await blobs.find_missing([*closure.files, *closure.directories]):
        report.notes.append(f"inputs: {len(missing)} blobs are no longer in the store")


async def _find_result(remote: Remote, report: Report) -> None:
    stub = re_grpc.ActionCacheStub(remote.connection.channel)
    request = re_pb2.GetActionResultRequest(
        instance_name=remote.instance_name,
        action_digest=digest_to_proto(report.digest),
        digest_function=function_to_wire(report.digest.function),
    )
    try:
        report.response = re_pb2.ExecuteResponse(result=await remote.ask(stub.GetActionResult, request))
        report.source = "action cache"
    except NotFound:
        await _find_operation(remote, report)


async def _find_operation(remote: Remote, report: Report) -> None:
    """Look for the newest operation of this action that the server remembers."""
    stub = operations_pb2_grpc.OperationsStub(remote.connection.channel)
    request = operations_pb2.ListOperationsRequest(name=remote.instance_name, page_size=500)
    newest_ns = -1
    for _ in range(MAX_OPERATIONS // 500):
        try:
            page = await remote.ask(stub.ListOperations, request)
        except TvixError as error:
            report.notes.append(f"operations: {error}")
            return
        for operation in page.operations:
            metadata = re_pb2.ExecuteOperationMetadata()
            operation.metadata.Unpack(metadata)
            if (metadata.action_digest.hash, metadata.action_digest.size_bytes) != report.digest[1:]:
                continue
            if not operation.done:
                stage = re_pb2.ExecutionStage.Value.Name(metadata.stage)
                report.notes.append(f"operation {operation.name} is {stage.lower()}")
                continue
            response = re_pb2.ExecuteResponse()
            operation.response.Unpack(response)
            ended_ns = response.result.execution_metadata.worker_completed_timestamp.ToNanoseconds()
            if ended_ns >= newest_ns:
                newest_ns, report.response, report.source = ended_ns, response, f"operation {operation.name}"
        request.page_token = page.next_page_token
        if not request.page_token:
            return


async def _log(
    blobs: BlobStore, report: Report, name: str, raw: bytes, digest: re_pb2.Digest, log_lines: int | None
) -> str:
    data = raw
    if not raw and digest.size_bytes:
        try:
            data = await read_whole(blobs, _digest(report, digest, f"{name}_digest"))
        except TvixError as error:
            report.notes.append(f"{name}: {error}")
    lines = data.decode(errors="replace").splitlines()
    if log_lines and len(lines) > log_lines:
        lines = [f"… {len(lines) - log_lines} lines before these, see --log-lines …", *lines[-log_lines:]]
    return "\n".join(lines)


def shell_line(command: re_pb2.Command) -> str:
    """Return a line that runs the command in a shell that stands in the input root."""
    words = [shlex.quote(word) for word in command.arguments]
    variables = [f"{item.name}={shlex.quote(item.value)}" for item in command.environment_variables]
    directory = f"cd {shlex.quote(command.working_directory)} && " if command.working_directory else ""
    return f"{directory}env -i {' '.join([*variables, *words])}"


def render_report(report: Report) -> Iterator[RenderableType]:
    """Yield what to print, part by part."""
    yield _heading("Action", str(report.digest))
    yield from _facts(report.action)
    if report.command is not None:
        yield _heading("Command", "")
        yield Text(f"  {shell_line(report.command)}")
        yield from _properties(report)
    yield _heading("Inputs", _input_counts(report))
    for entry in report.inputs[:MAX_SHOWN_ENTRIES]:
        yield Text(f"  {format_entry(entry)}")
    if len(report.inputs) > MAX_SHOWN_ENTRIES:
        yield Text(f"  … and {len(report.inputs) - MAX_SHOWN_ENTRIES} more, see `tvix cas ls`")
    if report.response is None:
        yield _heading("Result", "none: neither cached nor remembered")
    else:
        yield from _result(report, report.response)
    for note in report.notes:
        yield Text(f"note: {note}", style="yellow")


def _heading(title: str, rest: str) -> Text:
    return Text.assemble((f"{title:<8}", "bold"), f"  {rest}")


def _facts(action: re_pb2.Action) -> Iterator[Text]:
    facts = []
    if action.HasField("timeout"):
        facts.append(f"timeout {human_seconds(action.timeout.ToNanoseconds() / 1e9)}")
    if action.do_not_cache:
        facts.append("not to be cached")
    if action.salt:
        facts.append(f"salt {action.salt.hex()[:40]}")
    if facts:
        yield Text(f"  {', '.join(facts)}")


def _properties(report: Report) -> Iterator[Text]:
    assert report.command is not None
    platform = report.action.platform if report.action.platform.properties else report.command.platform
    if platform.properties:
        yield _heading("Platform", " ".join(f"{item.name}={item.value}" for item in platform.properties))
    wanted = report.command.output_paths or [*report.command.output_files, *report.command.output_directories]
    if wanted:
        more = f" and {len(wanted) - 10} more" if len(wanted) > 10 else ""
        yield _heading("Wanted", ", ".join(wanted[:10]) + more)


def _input_counts(report: Report) -> str:
    root = f"{report.action.input_root_digest.hash}/{report.action.input_root_digest.size_bytes}"
    if report.input_counts is None:
        return root
    files, directories, size_bytes = report.input_counts
    return f"{root}: {files} files and {directories} directories that differ, {human_size(size_bytes)}"


def _result(report: Report, response: re_pb2.ExecuteResponse) -> Iterator[RenderableType]:
    result, metadata = response.result, response.result.execution_metadata
    ended = f"exit code {result.exit_code}"
    if response.status.code:
        ended = f"status {response.status.code}: {response.status.message}"
    worker = f", on {metadata.worker}" if metadata.worker else ""
    bad = result.exit_code or response.status.code
    yield Text.assemble(
        ("Result    ", "bold"), (ended, "bold red" if bad else "green"), f"{worker} (from the {report.source})"
    )
    yield from (Text(f"  {line}") for line in _outputs(result))
    yield from _timings(metadata)
    yield from _usage(metadata)
    for name, text in (("stdout", report.stdout), ("stderr", report.stderr)):
        if text:
            yield _heading(name, "")
            yield Text(text)


def _outputs(result: re_pb2.ActionResult) -> Iterator[str]:
    for output in result.output_files:
        size = human_size(output.digest.size_bytes)
        mark = "-x" if output.is_executable else "- "
        yield f"{mark}  {output.digest.hash}/{output.digest.size_bytes}  {output.path} ({size})"
    for directory in result.output_directories:
        digest = directory.tree_digest if directory.HasField("tree_digest") else directory.root_directory_digest
        yield f"d   {digest.hash}/{digest.size_bytes}  {directory.path}/"
    links: Iterable[Any] = result.output_symlinks or [
        *result.output_file_symlinks,
        *result.output_directory_symlinks,
    ]
    for link in links:
        yield f"l   {link.path} -> {link.target}"


def _timings(metadata: re_pb2.ExecutedActionMetadata) -> Iterator[Text]:
    phases = [
        ("queued", metadata.queued_timestamp, metadata.worker_start_timestamp, "yellow"),
        ("inputs", metadata.input_fetch_start_timestamp, metadata.input_fetch_completed_timestamp, "blue"),
        ("run", metadata.execution_start_timestamp, metadata.execution_completed_timestamp, "green"),
        ("outputs", metadata.output_upload_start_timestamp, metadata.output_upload_completed_timestamp, "magenta"),
    ]
    known = [
        (name, (end.ToNanoseconds() - start.ToNanoseconds()) / 1e9, colour)
        for name, start, end, colour in phases
        if start.seconds and end.seconds
    ]
    total = sum(seconds for _, seconds, _ in known)
    if not known or total <= 0:
        return
    bar = Text()
    for _, seconds, colour in known:
        bar.append("█" * round(BAR_WIDTH * max(0.0, seconds) / total), style=colour)
    words = Text(", ").join(Text(f"{name} {human_seconds(seconds)}", style=colour) for name, seconds, colour in known)
    yield _heading("Times", "").append_text(bar).append("  ").append_text(words)


def _usage(metadata: re_pb2.ExecutedActionMetadata) -> Iterator[Text]:
    for packed in metadata.auxiliary_metadata:
        usage = worker_pb2.ResourceUsage()
        if packed.Is(usage.DESCRIPTOR) and packed.Unpack(usage):
            cpu = f"CPU {human_seconds(usage.user_seconds)} user, {human_seconds(usage.system_seconds)} system"
            memory = f"memory {human_size(usage.peak_memory_bytes)} at most"
            disk = f"read {human_size(usage.read_bytes)}, written {human_size(usage.written_bytes)}"
            yield _heading("Usage", f"{cpu}; {memory}; {disk}")
