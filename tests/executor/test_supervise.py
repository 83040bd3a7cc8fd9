"""The supervisor as a program; what it does for sandboxes is in test_unconfined.py and test_oci.py."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from tvix.executor.unconfined import SUPERVISOR


def supervise(**job: Any) -> dict[str, Any]:
    """Run a job to its end; return the report."""
    defaults = {"environment": {"PATH": "/usr/bin:/bin"}, "directory": "/", "root": None, "parent": os.getpid()}
    descriptor = os.memfd_create("job")
    try:
        os.write(descriptor, json.dumps({**defaults, **job}).encode())
        command = [*SUPERVISOR[:-1], str(descriptor)]
        subprocess.run(command, pass_fds=[descriptor], check=True, env={}, timeout=30)
        report: dict[str, Any] = json.loads(os.pread(descriptor, 4096, 0))
        return report
    finally:
        os.close(descriptor)


def test_report() -> None:
    report = supervise(arguments=["sh", "-c", "exit 3"])
    assert (report["exit_code"], report["error"]) == (3, "")
    assert report["peak_memory_bytes"] > 0
    assert report["user_seconds"] + report["system_seconds"] > 0


def test_why_a_program_cannot_be_started() -> None:
    assert supervise(arguments=["no-such-program"])["error"] == "No such file or directory"
    assert supervise(arguments=["/etc/passwd"])["error"] == "Permission denied"
    assert supervise(arguments=["true"], directory="/no/such")["error"] == "No such file or directory"


def test_script_without_an_interpreter_goes_to_the_shell(tmp_path: Any) -> None:
    script = tmp_path / "script"
    script.write_text("exit 6")
    script.chmod(0o755)
    assert supervise(arguments=[str(script)])["exit_code"] == 6


def test_nothing_is_run_for_a_worker_that_is_gone() -> None:
    assert supervise(arguments=["true"], parent=1)["exit_code"] == 137
