"""The scenarios: a project in a busybox root file system, built, pushed, pulled, failing, interrupted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from conformance import tools
from conformance.harness import Server, descendants_of, remove_tree, scratch_folder, tvix
from conformance.results import Failed, Report

PROJECT = Path(__file__).resolve().parent / "project"
APPLETS = "sh cat cp echo env false id ln ls mkdir mv printf pwd rm sed sleep stat sync test touch true uname wc"
CONFIG = """\
cachedir: {cache}
logdir: {cache}/logs
scheduler:
  on-error: quit
  network-retries: 2
remote-execution:
  execution-service:
    url: {url}
  storage-service:
    url: {url}
  action-cache-service:
    url: {url}
artifacts:
  override-project-caches: true
  servers:
  - url: {url}
    push: true
"""


def check(condition: object, message: str) -> None:
    """Fail the case with `message` unless the condition holds."""
    if not condition:
        raise Failed(message)


def make_rootfs(folder: Path) -> None:
    """Write a root file system: one static busybox, and symlinks to it."""
    (folder / "bin").mkdir(parents=True)
    (folder / "etc").mkdir()
    (folder / "etc" / "passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    shutil.copy2("/bin/busybox", folder / "bin" / "busybox")
    for name in APPLETS.split():
        (folder / "bin" / name).symlink_to("busybox")


class Scenarios:
    """One project, one server, one local cache that comes and goes."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.project = folder / "project"
        self.cache = folder / "cache"
        shutil.copytree(PROJECT, self.project)
        make_rootfs(self.project / "rootfs")

    def _command(self, *arguments: str, config: str = CONFIG) -> list[str]:
        path = self.folder / "buildstream.conf"
        path.write_text(config.format(cache=self.cache, url=f"http://{self.server.grpc_address}"))
        options = ["--config", str(path), "--no-interactive", "--no-colors", "--no-debug"]
        return [str(tools.bst()), *options, *arguments]

    def bst(self, *arguments: str, config: str = CONFIG, seconds: float = 180.0) -> tuple[int, str]:
        """Run BuildStream; return its exit code and output."""
        # Its own threads and casd are children: a hang must not leave them behind.
        environment = {**os.environ, "PATH": f"{tools.bst().parent}:{os.environ['PATH']}"}
        try:
            done = subprocess.run(
                self._command(*arguments, config=config),
                cwd=self.project,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=seconds,
                env=environment,
            )
        except subprocess.TimeoutExpired as expired:
            raise Failed(f"bst {arguments[0]} hangs: {str(expired.stdout)[-300:]}") from None
        return done.returncode, done.stdout + done.stderr

    def succeed(self, *arguments: str, config: str = CONFIG) -> str:
        """Run BuildStream, which must succeed; return its output."""
        code, output = self.bst(*arguments, config=config)
        if code:
            important = [line for line in output.splitlines() if "FAILURE" in line or "BUG" in line or "Error" in line]
            raise Failed(f"bst {' '.join(arguments)} exit code {code}: {' | '.join(important or [output])[-700:]}")
        return output

    def forget(self) -> None:
        """Remove the local cache."""
        remove_tree(self.cache)

    def contents(self, element: str) -> Path:
        """Check an artifact out and return the folder."""
        out = self.folder / f"out-{element}"
        remove_tree(out)
        self.succeed("artifact", "checkout", "--deps", "none", "--no-integrate", "--directory", str(out), element)
        return out

    def build(self) -> str:
        """All elements are built remotely and their artifacts pushed."""
        started = time.monotonic()
        output = self.succeed("build", "all.bst")
        check("Waiting for the remote build" in output, "nothing was built remotely")
        check("pushed" in output.lower(), "no artifact was pushed")
        return f"{time.monotonic() - started:.1f} s"

    def outputs(self) -> None:
        """What was built is right: files, modes, symlinks, empty folders, and what a reader made of it."""
        out = self.contents("hello.bst")
        share = out / "usr" / "share" / "hello"
        check((share / "made.txt").read_text() == "Hello, Remote\n", "the built file differs")
        check(os.access(out / "usr" / "bin" / "hello", os.X_OK), "the executable bit is lost")
        check((share / "empty").is_dir(), "the empty folder is lost")
        links = {name: os.readlink(share / name) for name in ("relative", "absolute", "dangling")}
        wanted = {"relative": "made.txt", "absolute": "/usr/share/hello/made.txt", "dangling": "nowhere"}
        check(links == wanted, f"symlinks {links}")
        check((self.contents("reader.bst") / "read.txt").read_text() == "Hello, Remote\n", "the reader's file differs")
        check(len(list((self.contents("all.bst") / "many").iterdir())) == 4, "the composition lacks parts")

    def log(self) -> None:
        """The commands' output is in BuildStream's log."""
        output = self.succeed("artifact", "log", "hello.bst")
        check("building as" in output and "Hello, World" in output, f"log {output[-300:]!r}")

    def pull(self) -> str:
        """With the local cache gone, artifacts are pulled: nothing is built."""
        self.forget()
        output = self.succeed("build", "all.bst")
        check("Waiting for the remote build" not in output, "something was built again")
        check("Pulled" in output or "pulled" in output.lower(), "nothing was pulled")
        self.outputs()
        self.forget()
        self.succeed("artifact", "pull", "--deps", "all", "all.bst")
        return "built nothing"

    def action_cache(self) -> None:
        """Without artifacts the same actions are answered from the action cache."""
        self.forget()
        config = CONFIG.partition("artifacts:")[0]
        output = self.succeed("build", "reader.bst", config=config)
        check("Action result found in action cache" in output, "no action came from the cache")

    def failing(self) -> str:
        """A failing command fails the build with its stderr; the failure is an artifact too."""
        code, output = self.bst("build", "failing.bst")
        check(code != 0, "the build succeeds")
        check("42" in output, "the exit code does not reach the user")
        check("the reason it failed" in output, f"stderr does not reach the user: {output[-400:]}")
        code, output = self.bst("show", "--deps", "none", "--format", "%{state}", "failing.bst")
        check("failed" in output, f"state {output[-100:]!r}")
        return "the failure is cached with its log"

    def interrupted(self) -> str:
        """An interrupted build cancels its operation: the command does not run on."""
        process = subprocess.Popen(
            self._command("build", "slow.bst"),
            cwd=self.project,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            self._wait_for_sleep(present=True)
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            self._wait_for_sleep(present=False)
        finally:
            for pid in [*descendants_of(process.pid), process.pid]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            process.wait()
        return "the command ended with the build"

    def _wait_for_sleep(self, *, present: bool) -> None:
        deadline = time.monotonic() + 60
        while bool(self.server.running().find("sleep 300")) is not present:
            if time.monotonic() > deadline:
                raise Failed("the command does not start" if present else "the command still runs")
            time.sleep(0.1)

    def all(self) -> list[tuple[str, Callable[[], str | None]]]:
        """Return the scenarios in order."""
        return [
            ("build", self.build),
            ("outputs", self.outputs),
            ("log", self.log),
            ("pull", self.pull),
            ("action-cache", self.action_cache),
            ("failing", self.failing),
            ("interrupted", self.interrupted),
        ]


def run(report: Report, make: Callable[[Path], Server] = tvix, only: tuple[str, ...] = ()) -> None:
    """Run the scenarios against a server of its own."""

    def prepare() -> str:
        tools.require_packages("busybox-static", "fuse3", "bubblewrap")
        return subprocess.run([tools.bst(), "--version"], capture_output=True, text=True, check=True).stdout.strip()

    if not report.run("buildstream/prepare", prepare):
        return
    with scratch_folder("conformance-bst") as folder:
        (folder / "state").mkdir()
        server = make(folder / "state")
        try:
            if not report.run("buildstream/server", lambda: server.start()):
                return
            scenarios = Scenarios(server, folder)
            for name, scenario in scenarios.all():
                if not only or name in only:
                    report.run(f"buildstream/{name}", scenario)
        finally:
            server.stop()
