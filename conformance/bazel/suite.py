"""The scenarios, in the order in which one leaves behind what the next needs."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from conformance import tools
from conformance.bazel.client import PACKAGES, Bazel, Done
from conformance.harness import Server, scratch_folder, tvix
from conformance.results import Failed, Report, Skipped

TARGETS = (
    "//absl/strings",
    "//absl/synchronization",
    "//absl/container:flat_hash_map",
    "//absl/time",
    "//absl/status:statusor",
)
FEW_TARGETS = ("//absl/strings",)
LOCAL = ("--spawn_strategy=sandboxed", "--genrule_strategy=sandboxed")
MINIMUM_ACTIONS = 80
SMALL = Path(__file__).resolve().parent / "small"


def check(condition: object, message: str) -> None:
    """Fail the case with `message` unless the condition holds."""
    if not condition:
        raise Failed(message)


class Scenarios:
    """Two workspaces, one server."""

    def __init__(self, report: Report, server: Server, folder: Path) -> None:
        self.report = report
        self.server = server
        self.folder = folder
        self.project = Bazel(folder / "project", tools.abseil_source())
        shutil.copytree(SMALL, folder / "workspace")
        self.small = Bazel(folder / "small", folder / "workspace")
        self.seconds: dict[str, float] = {}
        self.log = folder / "bazel.log"

    @property
    def remote(self) -> tuple[str, ...]:
        """Flags for remote execution: every action, or the build fails."""
        return (
            f"--remote_executor={self.server.url}",
            "--spawn_strategy=remote",
            "--genrule_strategy=remote",
            "--jobs=4",
            "--remote_timeout=60",
        )

    def build(self, *flags: str, targets: tuple[str, ...] = TARGETS) -> Done:
        """Build the project from a clean tree."""
        self.project.check("clean", log=self.log)
        return self.project.check("build", *flags, *targets, log=self.log)

    # Timing: the same Bazel server has analysed everything before, so that only actions are compared.

    def local(self) -> str:
        """Build in Bazel's own sandbox."""
        self.project.check("build", "--nobuild", *LOCAL, *TARGETS, log=self.log)
        done = self.build(*LOCAL)
        self.seconds["local"] = done.seconds
        check(done.ran("linux-sandbox") >= MINIMUM_ACTIONS, f"processes {done.processes}")
        return f"{done.seconds:.1f} s, {done.processes}"

    def disk_cache(self) -> str:
        """Rebuild from Bazel's --disk_cache."""
        flag = f"--disk_cache={self.folder / 'disk_cache'}"
        self.build(*LOCAL, flag)
        done = self.build(*LOCAL, flag)
        self.seconds["disk_cache"] = done.seconds
        check(done.ran("disk cache hit", "remote cache hit") >= MINIMUM_ACTIONS, f"processes {done.processes}")
        return f"{done.seconds:.1f} s, {done.processes}"

    def cold(self) -> str:
        """Build remotely with nothing cached."""
        done = self.build(*self.remote)
        self.seconds["remote cold"] = done.seconds
        check(done.ran("remote") >= MINIMUM_ACTIONS, f"processes {done.processes}")
        return f"{done.seconds:.1f} s, {done.processes}"

    def hits(self) -> str:
        """Build again: everything from the remote cache."""
        done = self.build(*self.remote)
        self.seconds["remote rebuild"] = done.seconds
        check(done.ran("remote") == 0, f"actions were run again: {done.processes}")
        check(done.ran("remote cache hit") >= MINIMUM_ACTIONS, f"processes {done.processes}")
        return f"{done.seconds:.1f} s, {done.processes}"

    def minimal(self) -> str:
        """Build without fetching outputs."""
        done = self.build(*self.remote, "--remote_download_minimal")
        self.seconds["remote rebuild, minimal"] = done.seconds
        check(done.ran("remote cache hit") >= MINIMUM_ACTIONS, f"processes {done.processes}")
        self.build(*self.remote, "--remote_download_minimal", "--noremote_accept_cached", targets=FEW_TARGETS)
        return f"{done.seconds:.1f} s"

    def restart(self) -> str:
        """A server stopped and started again still has everything."""
        left = self.server.stop()
        self.server.start()
        check(not left, f"outlived the server: {left}")
        done = self.build(*self.remote)
        check(done.ran("remote") == 0, f"actions were run again: {done.processes}")
        return f"{done.processes}"

    def blobs_deleted(self) -> str:
        """The store's folder is removed between two builds, the action cache is not."""
        self.server.stop()
        cas = self.server.state / "cas"
        check(cas.is_dir(), f"no folder {cas}")
        shutil.rmtree(cas)
        self.server.start()
        done = self.build(*self.remote)
        check(done.ran("remote") >= MINIMUM_ACTIONS, f"processes {done.processes}")
        return f"{done.processes}"

    def blobs_unlinked(self) -> str:
        """The files of the store vanish while the server is running."""
        count = 0
        for path in (self.server.state / "cas").rglob("*"):
            if path.is_file():
                path.unlink()
                count += 1
        done = self.project.run("clean", log=self.log)
        done = self.project.run("build", *self.remote, *FEW_TARGETS, log=self.log)
        self.server.stop()
        self.server.start()
        if done.exit_code:
            raise Failed(f"{count} files unlinked: exit code {done.exit_code}: {done.errors()}")
        self.build(*self.remote, targets=FEW_TARGETS)
        return f"{count} files, {done.processes}"

    def _killed(self, *words: str) -> str:
        """Build everything anew, killing what matches `words` in the middle."""
        self.project.check("clean", log=self.log)
        build = self.project.start("build", *self.remote, "--noremote_accept_cached", *TARGETS, log=self.log)
        try:
            build.wait_for_actions(30)
        except Failed:
            build.wait(60)
            raise
        victims = self.server.running().find(*words)
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        done = build.wait(300)
        check(victims, f"no process whose command line holds {words}")
        strays = self.server.running().strays()
        check(not strays, f"left behind by what was killed: {strays}")
        check(done.exit_code == 0, f"exit code {done.exit_code}: {done.errors()}")
        return f"{len(victims)} killed, {done.seconds:.1f} s, {done.processes}"

    def worker_killed(self) -> str:
        """kill -9 of the worker."""
        return self._killed("tvix.server.worker")

    def fuse_killed(self) -> str:
        """kill -9 of the worker's FUSE process."""
        return self._killed("fuse_process")

    def scheduler_killed(self) -> str:
        """kill -9 of the scheduler."""
        return self._killed("tvix.server.scheduler")

    def front_killed(self) -> str:
        """kill -9 of the front processes."""
        return self._killed("tvix.server.front")

    def server_killed(self) -> str:
        """kill -9 of everything, and a start on the same state, in the middle of a build."""
        self.project.check("clean", log=self.log)
        build = self.project.start(
            "build", *self.remote, "--noremote_accept_cached", "--remote_retries=10", *TARGETS, log=self.log
        )
        build.wait_for_actions(30)
        left = self.server.kill()
        mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(self.server.state) in line]
        self.server.start()
        done = build.wait(300)
        check(done.exit_code == 0, f"exit code {done.exit_code}: {done.errors()}")
        check(not left, f"outlived the server: {left}")
        check(not mounts, f"mounts left behind: {mounts}")
        return f"{done.seconds:.1f} s, {done.processes}"

    def _cache_only(self, *flags: str) -> str:
        built = self.build(*LOCAL, *flags, targets=FEW_TARGETS)
        again = self.build(*LOCAL, *flags, targets=FEW_TARGETS)
        check(again.ran("linux-sandbox") == 0 and again.ran("remote cache hit"), f"processes {again.processes}")
        return f"{built.processes}, then {again.processes} in {again.seconds:.1f} s"

    def cache_grpc(self) -> str:
        """Build locally, cache over gRPC, in an instance of its own."""
        return self._cache_only(f"--remote_cache={self.server.url}", "--remote_instance_name=cache/only")

    def cache_http(self) -> str:
        """Build locally, cache over HTTP."""
        if not self.server.http_address:
            raise Skipped("no HTTP")
        # Another environment gives other actions, which gRPC has not cached.
        return self._cache_only(f"--remote_cache=http://{self.server.http_address}", "--action_env=OVER=http")

    # The small workspace

    def _small(self, verb: str, *arguments: str) -> Done:
        return self.small.run(verb, *self.remote, *arguments, log=self.log)

    def tree(self) -> str:
        """Directory outputs with symlinks, built, read and fetched."""
        for _ in range(2):
            done = self._small("build", "//:listing", "//:tree", "//:large", "//:silent")
            check(done.exit_code == 0, done.errors())
            out = self.small.workspace / "bazel-bin"
            listing = (out / "listing.txt").read_text()
            check("./deep/er/same.txt" in listing and "it runs" in listing, f"listing {listing!r}")
            check((out / "tree" / "link.txt").read_text() == "file 1\n", "the symlink in the tree differs")
            check(os.access(out / "tree" / "run.sh", os.X_OK), "the executable bit is lost")
            check((out / "large.bin").stat().st_size == 50_000_000, "the large file differs")
            self.small.check("clean", log=self.log)
        check(done.ran("remote") == 0, f"second time not from the cache: {done.processes}")
        return str(done.processes)

    def genrule_directory(self) -> str:
        """A genrule that makes a directory where it declares a file, remotely, and then from the cache."""
        for _ in range(2):
            done = self._small("build", "//:reads_generated")
            check(done.exit_code == 0, f"exit code {done.exit_code}: {done.errors()}")
            made = self.small.workspace / "bazel-bin" / "reads_generated.txt"
            check(made.read_text() == "one\ntwo\ntwo\n", "the generated directory differs")
            self.small.check("clean", log=self.log)
        return str(done.processes)

    def tests(self) -> str:
        """`bazel test`: passing, cached, and failing with its log."""
        done = self._small(
            "test", "--", "//...:all", "-//:failing", "-//:half", "-//:reads_generated", "-//:generated_directory"
        )
        check(done.exit_code == 0, f"exit code {done.exit_code}: {done.errors()}")
        check("//lib:greeting_test" in done.output and "PASSED" in done.output, "no test passed")
        self.small.check("clean", log=self.log)
        again = self._small("test", "//:shell_test", "//lib:greeting_test")
        check("(cached) PASSED" in again.output, f"not cached: {again.output[-300:]}")
        failing = self._small("test", "//:failing_test", "--test_output=errors")
        check(failing.exit_code == 3, f"a failing test: exit code {failing.exit_code}")
        check("expected 1, got 2" in failing.output, "the failing test's output does not reach the user")
        slow = self._small("test", "//:slow_test", "--test_timeout=3", "--test_output=errors")
        check(slow.exit_code == 3 and "TIMEOUT" in slow.output, f"a slow test: exit code {slow.exit_code}")
        check("before the end" in slow.output, "the slow test's partial output does not reach the user")
        return str(done.processes)

    def failing(self) -> str:
        """A failing action's stderr reaches the user, every time; a missing output is named."""
        for _ in range(2):
            done = self._small("build", "//:failing")
            check(done.exit_code == 1, f"exit code {done.exit_code}")
            check("the reason it failed" in done.output, f"stderr is lost: {done.errors()}")
        half = self._small("build", "//:half")
        check(half.exit_code == 1 and "half_b.txt" in half.output, f"missing output: {half.errors()}")
        broken = self._small("build", "//lib:broken")
        check(broken.exit_code == 1 and "undeclared_name" in broken.output, f"compiler error: {broken.errors()}")
        return "stderr, missing output and compiler error reach the user"

    def runs(self) -> str:
        """A binary built remotely runs here."""
        done = self._small("run", "//lib:hello")
        check(done.exit_code == 0 and "Hello, world" in done.output, done.errors())
        return "Hello, world"

    def ratios(self) -> str:
        """What the issue asks for; shown, never a reason to fail (the machine may be busy)."""
        cold = self.seconds["remote cold"] / self.seconds["local"]
        rebuild = self.seconds["remote rebuild"] / self.seconds["disk_cache"]
        return f"cold {cold:.2f} x local sandboxed (wanted 1.3), rebuild {rebuild:.2f} x disk_cache (wanted 2)"

    def all(self) -> list[tuple[str, Callable[[], str]]]:
        """Return the scenarios in order."""
        return [
            ("local", self.local),
            ("disk-cache", self.disk_cache),
            ("remote-cold", self.cold),
            ("remote-hits", self.hits),
            ("ratios", self.ratios),
            ("minimal", self.minimal),
            ("tree-and-symlinks", self.tree),
            ("genrule-directory", self.genrule_directory),
            ("test", self.tests),
            ("failing-action", self.failing),
            ("run", self.runs),
            ("cache-grpc", self.cache_grpc),
            ("cache-http", self.cache_http),
            ("restart", self.restart),
            ("worker-killed", self.worker_killed),
            ("fuse-killed", self.fuse_killed),
            ("scheduler-killed", self.scheduler_killed),
            ("front-killed", self.front_killed),
            ("server-killed", self.server_killed),
            ("blobs-deleted", self.blobs_deleted),
            ("blobs-unlinked", self.blobs_unlinked),
        ]

    def open(self) -> None:
        """Start both Bazel servers."""
        self.project.open()
        self.small.open()

    def close(self) -> None:
        """End both Bazel servers."""
        self.project.close()
        self.small.close()


def run(report: Report, make: Callable[[Path], Server] = tvix, only: tuple[str, ...] = ()) -> None:
    """Run the scenarios against a server of its own."""

    def prepare() -> str:
        tools.require_packages(*PACKAGES)
        return f"abseil {tools.abseil_source().name}"

    if not report.run("bazel/prepare", prepare):
        return
    with scratch_folder("conformance-bazel") as folder:
        for sub in ("project", "small", "state"):
            (folder / sub).mkdir()
        server = make(folder / "state")
        scenarios = Scenarios(report, server, folder)
        try:
            scenarios.open()
            if not report.run("bazel/server", lambda: server.start()):
                return
            for name, scenario in scenarios.all():
                if not only or name in only:
                    report.run(f"bazel/{name}", scenario)
            report.run("bazel/no-orphans", lambda: _no_orphans(server))
        finally:
            scenarios.close()
            server.stop()


def _no_orphans(server: Server) -> str:
    left = server.stop()
    check(not left, f"outlived the server: {left}")
    return "nothing outlives the server"
