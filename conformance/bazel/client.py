"""Driving Bazel without a network: repositories overridden by Debian's packages and by shims of ours."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from conformance.harness import leaving_orphans_alone
from conformance.results import Failed

PACKAGES = ("bazel-bootstrap", "bazel-skylib", "bazel-platforms", "g++", "binutils")
CC_RULES = (
    *("cc_library", "cc_binary", "cc_test", "cc_import", "cc_toolchain", "cc_toolchain_suite"),
    *("cc_proto_library", "objc_library", "fdo_prefetch_hints", "fdo_profile"),
)
JAVA_RULES = (
    *("java_binary", "java_library", "java_import", "java_test", "java_toolchain", "java_runtime"),
    *("java_package_configuration", "java_plugin", "java_proto_library", "java_lite_proto_library"),
)
DEBIAN_REPOSITORIES = {
    "bazel_skylib": Path("/usr/share/bazel/tools/skylib"),
    "platforms": Path("/usr/share/bazel/tools/platforms"),
}


def make_shim(folder: Path, name: str, language: str, rules: Sequence[str]) -> Path:
    """Write a repository whose `<language>/defs.bzl` re-exports Bazel's native rules; return its folder."""
    repository = folder / name
    package = repository / language
    package.mkdir(parents=True)
    (repository / "WORKSPACE").write_text(f'workspace(name = "{name}")\n')
    (repository / "BUILD").write_text("")
    (package / "BUILD").write_text("")
    (package / "defs.bzl").write_text("".join(f"{rule} = native.{rule}\n" for rule in rules))
    return repository


def make_coverage_shim(folder: Path) -> Path:
    """Write a stand-in for the coverage tools, which every test rule names though it does not run them."""
    repository = folder / "remote_coverage_tools"
    repository.mkdir(parents=True)
    (repository / "WORKSPACE").write_text('workspace(name = "remote_coverage_tools")\n')
    rule = 'sh_binary(name = "{name}", srcs = ["nothing.sh"], visibility = ["//visibility:public"])\n'
    names = ("coverage_report_generator", "lcov_merger")
    (repository / "BUILD").write_text("".join(rule.format(name=name) for name in names))
    (repository / "nothing.sh").write_text("#!/bin/sh\n")
    (repository / "nothing.sh").chmod(0o755)
    return repository


@dataclass(frozen=True, slots=True)
class Done:
    """How one Bazel command ended."""

    exit_code: int
    output: str
    seconds: float

    @property
    def processes(self) -> dict[str, int]:
        """The strategies of Bazel's closing line, such as {"remote cache hit": 96, "internal": 9}."""
        found = re.findall(r"INFO: \d+ processes?: (.*)\.", self.output)
        if not found:
            return {}
        parts = [part.split(" ", 1) for part in found[-1].split(", ")]
        return {name: int(count) for count, name in parts}

    def ran(self, *strategies: str) -> int:
        """Return how many actions ran by one of the strategies."""
        return sum(self.processes.get(name, 0) for name in strategies)

    def errors(self) -> str:
        """Return the lines that matter when something went wrong."""
        lines = [
            line for line in self.output.splitlines() if not re.match(r"(Loading|Analyzing|INFO|\[\d|\d+\.\d+:)", line)
        ]
        return " | ".join(line for line in lines if line.strip())[-700:]


class Bazel:
    """One workspace with an output base of its own."""

    def __init__(self, folder: Path, workspace: Path) -> None:
        self.workspace = workspace
        self.output_base = folder / "output"
        self._repositories = {
            **DEBIAN_REPOSITORIES,
            "rules_cc": make_shim(folder / "repositories", "rules_cc", "cc", CC_RULES),
            "rules_java": make_shim(folder / "repositories", "rules_java", "java", JAVA_RULES),
            "remote_coverage_tools": make_coverage_shim(folder / "repositories"),
        }

    def _command(self, verb: str, arguments: Sequence[str]) -> list[str]:
        bazel = shutil.which("bazel") or "bazel"
        startup = [bazel, "--nohome_rc", f"--output_base={self.output_base}", "--max_idle_secs=900"]
        if verb not in ("build", "test", "run"):
            return [*startup, verb, *arguments]
        overrides = [f"--override_repository={name}={path}" for name, path in self._repositories.items()]
        common = ["--color=no", "--curses=no", "--show_progress_rate_limit=5", "--noshow_loading_progress"]
        common.append("--nosandbox_debug")  # Debian switches it on, and it costs time
        return [*startup, verb, *overrides, *common, *arguments]

    def start(self, verb: str, *arguments: str, log: Path, env: Mapping[str, str] | None = None) -> Running:
        """Start a command; its output goes to `log`."""
        with log.open("wb") as out:
            process = subprocess.Popen(
                self._command(verb, arguments),
                cwd=self.workspace,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
            )
        return Running(process, log, time.monotonic())

    def run(self, verb: str, *arguments: str, log: Path, seconds: float = 400.0) -> Done:
        """Run a command to its end."""
        return self.start(verb, *arguments, log=log).wait(seconds)

    def check(self, verb: str, *arguments: str, log: Path, seconds: float = 400.0) -> Done:
        """Run a command that must succeed."""
        done = self.run(verb, *arguments, log=log, seconds=seconds)
        if done.exit_code:
            raise Failed(f"bazel {verb} exit code {done.exit_code}: {done.errors()}")
        return done

    def open(self) -> None:
        """Start Bazel's own server, a daemon that lives until `close`."""
        with leaving_orphans_alone():
            subprocess.run(
                self._command("info", ["server_pid"]), cwd=self.workspace, capture_output=True, check=False, timeout=120
            )

    def close(self) -> None:
        """End Bazel's own server; by force when it does not go."""
        try:
            subprocess.run(
                self._command("shutdown", []), cwd=self.workspace, capture_output=True, check=False, timeout=30
            )
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((self.output_base / "server" / "server.pid.txt").read_text()), signal.SIGKILL)


@dataclass(slots=True)
class Running:
    """A Bazel command under way."""

    process: subprocess.Popen[bytes]
    log: Path
    started: float

    def text(self) -> str:
        """Return the output so far."""
        return self.log.read_text(errors="replace")

    def wait_for_actions(self, count: int, seconds: float = 120.0) -> None:
        """Return when Bazel says that `count` actions are done."""
        deadline = time.monotonic() + seconds
        while True:
            progress = [int(done.replace(",", "")) for done in re.findall(r"\[([\d,]+) / [\d,]+\]", self.text())]
            if progress and max(progress) >= count:
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"no {count} actions done; the command's exit code: {self.process.poll()}")
            time.sleep(0.05)

    def wait(self, seconds: float) -> Done:
        """Wait for the end; Failed when it takes longer."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            raise Failed(f"bazel hangs: not done after {seconds:.0f} s; {self.text()[-300:]}") from None
        return Done(code, self.text(), time.monotonic() - self.started)
