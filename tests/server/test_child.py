"""What child processes do at their start and their end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.running import alive, wait_until
from tvix.errors import FailedPrecondition, InvalidInput
from tvix.server.child import READY, Assignment, first_cause
from tvix.server.config import load_config

CHILD = """
import asyncio, sys
from tvix.errors import FailedPrecondition
from tvix.server.child import run_child

async def main(child):
    child.ready()
    await child.draining.wait()
    print("draining", flush=True)
    await child.hurried.wait()
    async with asyncio.TaskGroup():
        raise FailedPrecondition("told to hurry")

run_child(main)
"""
PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
child.stdin.write(sys.argv[2].replace("PID", str(os.getpid())) + "\\n")
child.stdin.close()
print(child.stdout.readline().strip(), child.pid, flush=True)
sys.stdin.read()
"""


def assignment(tmp_path: Path, pid: int) -> str:
    config = load_config(None, {"server": {"state_dir": str(tmp_path)}})
    return Assignment(name="test-0", config=config, supervisor_pid=pid).model_dump_json()


def test_the_first_signal_drains_and_the_second_hurries(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin
        assert child.stdout
        assert child.stderr
        child.stdin.write(assignment(tmp_path, os.getpid()) + "\n")
        child.stdin.flush()
        assert child.stdout.readline().strip() == READY
        child.send_signal(signal.SIGINT)  # for the supervisor alone
        child.send_signal(signal.SIGTERM)
        assert child.stdout.readline().strip() == "draining"
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 1
        assert child.stderr.read() == "tvix: error: test-0: told to hurry\n"


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    text = assignment(tmp_path, 12345).replace("12345", "PID")
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD, text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        word, pid = parent.stdout.readline().split()
        assert word == READY
        parent.kill()
        wait_until(lambda: not alive(int(pid)), "the child's end")


def test_a_child_of_somebody_else_does_not_start(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=assignment(tmp_path, 1) + "\n",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")


def test_an_assignment_survives_its_way(tmp_path: Path) -> None:
    text = assignment(tmp_path, 7)
    assert Assignment.model_validate_json(text).model_dump_json() == text


@pytest.mark.parametrize("ours_first", [True, False])
def test_what_a_group_is_about_is_the_error_of_ours(ours_first: bool) -> None:
    ours, other = FailedPrecondition("ours"), ValueError("other")
    inner = ExceptionGroup("inner", [ours, InvalidInput("later")])
    group = ExceptionGroup("outer", [inner, other] if ours_first else [other, inner])
    assert first_cause(group) is ours
    assert first_cause(ExceptionGroup("only others", [other])) is other
