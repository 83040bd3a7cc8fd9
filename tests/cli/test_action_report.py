"""What is printed of an action, from messages made by hand."""

import shlex

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import digest_of
from tvix.cli.action_report import Report, render_report, shell_line

COMMAND = re_pb2.Command(
    arguments=["gcc", "-DNAME=a b", "x.c"],
    environment_variables=[re_pb2.Command.EnvironmentVariable(name="PATH", value="/bin:/my bin")],
    working_directory="a dir",
)


def printed(report: Report) -> str:
    console = Console(width=200, highlight=False)
    with console.capture() as capture:
        for part in render_report(report):
            console.print(part)
    return capture.get()


def report(**fields: object) -> Report:
    return Report(digest_of(b"action"), re_pb2.Action(), **fields)  # type: ignore[arg-type]


def test_the_command_is_a_line_for_a_shell() -> None:
    line = shell_line(COMMAND)
    assert line == "cd 'a dir' && env -i PATH='/bin:/my bin' gcc '-DNAME=a b' x.c"
    assert shlex.split(line)[-3:] == ["gcc", "-DNAME=a b", "x.c"]


def test_what_is_special_about_an_action_is_said() -> None:
    action = re_pb2.Action(timeout=Duration(seconds=90), do_not_cache=True, salt=b"\x01")
    text = printed(Report(digest_of(b"action"), action, command=COMMAND))
    assert (
        "timeout 1 min 30 s, not to be cached, salt 01" in text or "timeout 90.0 s, not to be cached, salt 01" in text
    )


def test_platform_and_outputs() -> None:
    command = re_pb2.Command(output_paths=[f"o{number}" for number in range(12)])
    command.platform.properties.add(name="OSFamily", value="linux")
    text = printed(report(command=command))
    assert "OSFamily=linux" in text
    assert "o9 and 2 more" in text


def test_times_are_shown_in_proportion() -> None:
    metadata = re_pb2.ExecutedActionMetadata(
        queued_timestamp=Timestamp(seconds=100),
        worker_start_timestamp=Timestamp(seconds=101),
        execution_start_timestamp=Timestamp(seconds=101),
        execution_completed_timestamp=Timestamp(seconds=104),
    )
    response = re_pb2.ExecuteResponse(result=re_pb2.ActionResult(execution_metadata=metadata))
    text = printed(report(response=response, source="action cache"))
    assert "queued 1.0 s, run 3.0 s" in text
    assert 48 <= text.count("█") <= 52


def test_half_filled_timestamps_are_left_out() -> None:
    metadata = re_pb2.ExecutedActionMetadata(queued_timestamp=Timestamp(seconds=100))
    text = printed(report(response=re_pb2.ExecuteResponse(result=re_pb2.ActionResult(execution_metadata=metadata))))
    assert "Times" not in text


def test_a_run_that_the_server_could_not_make_shows_its_status() -> None:
    response = re_pb2.ExecuteResponse()
    response.status.code, response.status.message = 4, "execution timeout exceeded"
    assert "status 4: execution timeout exceeded" in printed(report(response=response, source="operation x"))


def test_notes_come_last() -> None:
    assert (
        printed(report(notes=["inputs: 3 blobs are no longer in the store"]))
        .splitlines()[-1]
        .startswith("note: inputs")
    )
