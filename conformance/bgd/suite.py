"""What `bgd` can ask of a server: capabilities, storage, execution, operations, action cache, log streams."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from conformance import tools
from conformance.harness import Server, scratch_folder, tvix
from conformance.reapi.client import Endpoint
from conformance.results import Failed, Report


def check(condition: object, message: str) -> None:
    """Fail the case with `message` unless the condition holds."""
    if not condition:
        raise Failed(message)


class Prober:
    """`bgd` pointed at one server, working in one folder."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.input = folder / "input"
        (self.input / "sub").mkdir(parents=True)
        (self.input / "top.txt").write_text("top\n")
        (self.input / "sub" / "deep.txt").write_text("deep\n")
        (self.input / "link").symlink_to("sub/deep.txt")
        self.digests: dict[str, str] = {}

    def bgd(self, group: str, *arguments: str) -> str:
        """Run a subcommand of `group` (a command by itself when no arguments are given) and return its output."""
        command = [str(tools.bgd()), group, "--remote", f"http://{self.server.grpc_address}", *arguments]
        done = subprocess.run(
            command, cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=90
        )
        text = done.stdout + done.stderr
        # Some commands print an error and exit 0.
        if done.returncode or "Error:" in text or "Traceback" in text:
            raise Failed(f"bgd {group} {arguments[:1]} exit code {done.returncode}: {text[-400:]}")
        return text

    def capabilities(self) -> str:
        """The server's capabilities as bgd shows them."""
        shown: dict[str, dict[str, object]] = json.loads(self.bgd("capabilities"))
        functions = shown["cacheCapabilities"]["digestFunctions"]
        check("SHA256" in str(functions), f"digest functions {functions}")
        version = shown["highApiVersion"]
        return f"{version}"

    def upload(self) -> None:
        """cas upload-file, upload-dir."""
        text = self.bgd("cas", "upload-dir", str(self.input)) + self.bgd("cas", "upload-file", f"{self.input}/top.txt")
        self.digests = dict(re.findall(r"path=\[(\S+)\] with digest=\[(\S+)\]", text))
        check({str(self.input), f"{self.input}/top.txt"} <= set(self.digests), f"digests {self.digests}")

    def download(self) -> None:
        """cas download-file, download-dir."""
        self.bgd("cas", "download-file", self.digests[f"{self.input}/top.txt"], "got.txt")
        check((self.folder / "got.txt").read_text() == "top\n", "the file differs")
        self.bgd("cas", "download-dir", "--verify", self.digests[str(self.input)], "got")
        check((self.folder / "got" / "sub" / "deep.txt").read_text() == "deep\n", "the directory differs")

    def execute(self) -> str:
        """execute command, with inputs, a platform property and an output file."""
        script = "cat top.txt sub/deep.txt > out.txt; echo said"
        command = ["--output-file", "out.txt", "-p", "OSFamily", "linux", "-c", str(self.input)]
        text = self.bgd("execute", "command", *command, "--", "/bin/sh", "-c", script)
        check("done: true" in text, f"not done: {text[-300:]}")
        found = list((self.folder / "testing").rglob("out.txt"))
        check(found and found[0].read_text() == "top\ndeep\n", f"the output file is not fetched: {text[-300:]}")
        (action,) = re.findall(r'Sent action=\[hash: "(\w+)"\s+size_bytes: (\d+)', text)
        self.digests["action"] = "/".join(action)
        name = str(re.findall(r'name: "([^"]+)"', text)[-1])
        self.digests["operation"] = name
        return name

    def dummy(self) -> None:
        """upload-dummy and execute request-dummy: an action whose command is empty must not harm the server."""
        self.bgd("cas", "upload-dummy")
        try:
            self.bgd("execute", "request-dummy", "--wait-for-completion")
        except Failed as refused:
            check("UNAVAILABLE" not in str(refused) and "INTERNAL" not in str(refused), str(refused))
        self.bgd("capabilities")

    def operations(self) -> str:
        """operation list, status and wait of a finished operation."""
        listed = self.bgd("operation", "list", "--filter", "stage = completed")
        check(self.digests["operation"] in listed, "operation list does not show the execution")
        status = self.bgd("operation", "status", self.digests["operation"])
        check("COMPLETED" in status.upper(), f"status {status[-300:]}")
        self.bgd("operation", "wait", self.digests["operation"])
        return f"{len(listed.splitlines())} lines"

    def action_cache(self) -> None:
        """actioncache get of what was executed."""
        # Not --json: that fails on any auxiliary_metadata whose type bgd does not know, ours among them.
        shown = self.bgd("actioncache", "get", self.digests["action"])
        check("Hit:" in shown, f"result {shown[-300:]}")

    def logstream(self) -> None:
        """logstream create and read. Not write: bgd counts messages, not bytes, in write_offset."""
        created = self.bgd("logstream", "create", "parent")
        names = re.findall(r'(?:name|Read\S*|Write\S*)[^"\[]*["\[]([^"\]]+)["\]]', created)
        check(len(names) == 2, f"created {created!r}")
        read_name, write_name = names
        client = Endpoint(self.server.grpc_address)
        client.write(write_name, [b"one line\n", b"another\n"])
        client.close()
        text = self.bgd("logstream", "read", read_name)
        check("one line\nanother\n" in text, f"read {text!r}")

    def all(self) -> list[tuple[str, Callable[[], str | None]]]:
        """Return the probes in order."""
        return [
            ("capabilities", self.capabilities),
            ("cas-upload", self.upload),
            ("cas-download", self.download),
            ("execute", self.execute),
            ("execute-dummy", self.dummy),
            ("operation", self.operations),
            ("actioncache", self.action_cache),
            ("logstream", self.logstream),
        ]


def run(report: Report, make: Callable[[Path], Server] = tvix, only: tuple[str, ...] = ()) -> None:
    """Run the probes against a server of its own."""
    with scratch_folder("conformance-bgd") as folder:
        (folder / "state").mkdir()
        server = make(folder / "state")
        try:
            tools.bgd()
            if not report.run("bgd/server", lambda: server.start()):
                return
            prober = Prober(server, folder)
            for name, probe in prober.all():
                if not only or name in only:
                    report.run(f"bgd/{name}", probe)
        finally:
            server.stop()
