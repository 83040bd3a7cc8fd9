"""What every Sandbox promises, as tests: a test module sets `sandbox` as a fixture and imports these.

Isolation is only promised by some; those tests are in `IsolationContract`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.executor.actions import Recorded
from tvix.executor.interfaces import Exit, Limits, Process, Profile, Sandbox

PATH = "/usr/local/bin:/usr/bin:/bin"


class Ran:
    """One run and its output."""

    def __init__(self, ended: Exit, stdout: Recorded, stderr: Recorded) -> None:
        self.ended = ended
        self.exit_code = ended.exit_code
        self.stdout = stdout.text
        self.stderr = stderr.text


def host_process(root: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Process:
    """Return a process that uses the host's tools."""
    environment = {"PATH": PATH} if env is None else env
    return Process(arguments, environment, root, "", Profile.HOST_TOOLS)


async def run(sandbox: Sandbox, process: Process) -> Ran:
    """Run to the end."""
    stdout, stderr = Recorded(), Recorded()
    return Ran(await sandbox.run(process, stdout, stderr), stdout, stderr)


async def shell(sandbox: Sandbox, root: Path, script: str, limits: Limits | None = None) -> Ran:
    """Run a script of the host's shell."""
    return await run(sandbox, replace(host_process(root, "sh", "-c", script), limits=limits or Limits()))


def alive(marker: str) -> list[int]:
    """Return the processes on this machine whose command line holds `marker`, ours excepted."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if marker.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return an empty input root."""
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


class SandboxContract:
    """For all sandboxes."""

    added_variables: frozenset[str] = frozenset()
    """What the sandbox adds to the environment when the command does not set it."""

    start_seconds = 0.3
    """In which a command starts for sure."""

    async def test_output_and_exit_code(self, sandbox: Sandbox, root: Path) -> None:
        ran = await shell(sandbox, root, "echo out; echo err >&2; exit 7")
        assert (ran.exit_code, ran.stdout, ran.stderr) == (7, "out\n", "err\n")
        assert not ran.ended.timed_out
        assert ran.ended.usage.wall_seconds > 0

    async def test_much_output_is_whole(self, sandbox: Sandbox, root: Path) -> None:
        ran = await shell(sandbox, root, "seq 200000; seq 100000 >&2")
        assert ran.stdout == "".join(f"{number}\n" for number in range(1, 200001))
        assert len(ran.stderr) == 588895

    async def test_killed_by_a_signal_is_128_plus_its_number(self, sandbox: Sandbox, root: Path) -> None:
        assert (await shell(sandbox, root, "kill -TERM $$")).exit_code == 143
        assert (await shell(sandbox, root, "kill -KILL $$")).exit_code == 137

    async def test_program_is_looked_up_in_its_own_path(self, sandbox: Sandbox, root: Path) -> None:
        (root / "tools").mkdir()
        (root / "tools" / "greet").write_text("#!/bin/sh\necho from tools")
        (root / "tools" / "greet").chmod(0o755)
        ran = await run(sandbox, host_process(root, "greet", env={"PATH": f"{PATH}:tools"}))
        assert ran.stdout == "from tools\n"
        ran = await run(sandbox, host_process(root, "tools/greet"))
        assert ran.stdout == "from tools\n"

    async def test_many_arguments(self, sandbox: Sandbox, root: Path) -> None:
        words = ["it's", "$HOME", "a b", "", *map(str, range(20_000))]
        ran = await run(sandbox, host_process(root, "printf", "%s\\n", *words))
        assert ran.stdout.split("\n")[:-1] == words

    async def test_unknown_program_is_127(self, sandbox: Sandbox, root: Path) -> None:
        for name in ("no-such-program", "./no/such", "/no/such"):
            ran = await run(sandbox, host_process(root, name))
            assert ran.exit_code == 127
            assert ran.stderr.endswith(f"tvix: {name}: command not found\n")

    async def test_file_that_is_no_program_is_126(self, sandbox: Sandbox, root: Path) -> None:
        (root / "data").write_text("x")
        ran = await run(sandbox, host_process(root, "./data"))
        assert ran.exit_code == 126
        assert ran.stderr.endswith("tvix: ./data: Permission denied\n")

    async def test_environment_is_exact(self, sandbox: Sandbox, root: Path) -> None:
        wanted = {"A": "1", "B": "two words\nand lines", "EMPTY": "", "PATH": PATH, "LD_PRELOAD": "", "ÄÖ": "ü"}
        ran = await run(sandbox, host_process(root, "env", "-0", env=wanted))
        seen = dict(item.split("=", 1) for item in ran.stdout.rstrip("\0").split("\0"))
        assert {name: value for name, value in seen.items() if name not in self.added_variables} == wanted
        assert seen.keys() - wanted.keys() == self.added_variables

    async def test_pwd_of_the_command_is_kept(self, sandbox: Sandbox, root: Path) -> None:
        ran = await run(sandbox, host_process(root, "env", env={"PATH": PATH, "PWD": "/proc/self/cwd"}))
        assert "PWD=/proc/self/cwd\n" in ran.stdout

    async def test_working_directory(self, sandbox: Sandbox, root: Path) -> None:
        (root / "a" / "b").mkdir(parents=True)
        process = replace(host_process(root, "sh", "-c", "echo made > here; cat ../../f"), working_directory="a/b")
        (root / "f").write_text("top")
        assert (await run(sandbox, process)).stdout == "top"
        assert (root / "a" / "b" / "here").read_text() == "made\n"

    async def test_standard_input_is_empty(self, sandbox: Sandbox, root: Path) -> None:
        ran = await shell(sandbox, root, "cat; readlink /proc/self/fd/0")
        assert ran.stdout == "/dev/null\n"

    async def test_no_descriptor_leaks_in(self, sandbox: Sandbox, root: Path) -> None:
        ran = await shell(
            sandbox, root, "for fd in /proc/self/fd/*; do [ $fd -ef /proc/self/fd ] || echo ${fd##*/}; done"
        )
        assert {int(number) for number in ran.stdout.split()} <= {0, 1, 2, 3}

    async def test_no_signal_is_blocked_or_ignored(self, sandbox: Sandbox, root: Path) -> None:
        ran = await shell(sandbox, root, "grep -E 'SigBlk|SigIgn' /proc/self/status")
        _, blocked, _, ignored = ran.stdout.split()
        # The C library ignores its two internal ones in what it spawns.
        assert (int(blocked, 16), int(ignored, 16) & ~0x180000000) == (0, 0)

    async def test_timeout_kills_the_whole_tree(self, sandbox: Sandbox, root: Path) -> None:
        marker = f"31536000.{os.getpid()}{id(root)}"
        script = f"echo partial; (setsid sleep {marker} &); nohup sleep {marker} & sleep {marker}"
        ran = await shell(sandbox, root, script, Limits(wall_seconds=self.start_seconds))
        assert ran.ended.timed_out
        assert (ran.exit_code, ran.stdout) == (137, "partial\n")
        assert alive(marker) == []

    async def test_daemons_left_behind_are_killed(self, sandbox: Sandbox, root: Path) -> None:
        marker = f"31536001.{os.getpid()}{id(root)}"
        ran = await shell(sandbox, root, f"(setsid sleep {marker} &); sleep {marker} & exit 3")
        assert ran.exit_code == 3
        assert alive(marker) == []

    async def test_daemon_that_holds_the_output_does_not_delay_the_end(self, sandbox: Sandbox, root: Path) -> None:
        started = time.monotonic()
        await shell(sandbox, root, "(trap '' TERM HUP; sleep 60) & exit 0")
        assert time.monotonic() - started < 10

    async def test_cancelling_kills_the_whole_tree(self, sandbox: Sandbox, root: Path) -> None:
        marker = f"31536002.{os.getpid()}{id(root)}"
        started = asyncio.Event()

        class Started(Recorded):
            def write(self, chunk: bytes) -> None:
                started.set()

        process = host_process(root, "sh", "-c", f"(setsid sleep {marker} &) ; echo up; sleep {marker}")
        running = asyncio.create_task(sandbox.run(process, Started(), Recorded()))
        async with asyncio.timeout(20):
            await started.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert alive(marker) == []

    async def test_many_at_once(self, sandbox: Sandbox, root: Path) -> None:
        runs = [shell(sandbox, root, f"echo {number}; exit {number}") for number in range(8)]
        assert [(ran.exit_code, ran.stdout) for ran in await asyncio.gather(*runs)] == [
            (number, f"{number}\n") for number in range(8)
        ]

    async def test_descriptors_are_given_back(self, sandbox: Sandbox, root: Path) -> None:
        await shell(sandbox, root, "true")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            await shell(sandbox, root, "true")
        assert len(os.listdir("/proc/self/fd")) == before

    async def test_usage_counts_processor_time_and_memory(self, sandbox: Sandbox, root: Path) -> None:
        script = "x = bytearray(200_000_000)\nfor i in range(0, len(x), 4096): x[i] = 1\nsum(range(1_000_000))"
        ran = await run(sandbox, host_process(root, "python3", "-c", script))
        assert ran.exit_code == 0, ran.stderr
        usage = ran.ended.usage
        assert usage.user_seconds + usage.system_seconds > 0.01
        assert usage.peak_memory_bytes > 190_000_000


class IsolationContract:
    """For sandboxes that isolate."""

    async def test_own_processes_only(self, sandbox: Sandbox, root: Path) -> None:
        ran = await shell(sandbox, root, "ls -d /proc/[0-9]* | wc -l; kill -9 -1 2>/dev/null; exit 4")
        assert int(ran.stdout) < 8

    async def test_no_network_but_loopback(self, sandbox: Sandbox, root: Path) -> None:
        script = (
            "import socket\n"
            "server = socket.create_server(('127.0.0.1', 0))\n"
            "client = socket.create_connection(server.getsockname(), 5)\n"
            "print('loopback works')\n"
            "try: socket.create_connection(('192.0.2.1', 80), 5)\n"
            "except OSError as error: print(error.strerror)\n"
        )
        ran = await run(sandbox, host_process(root, "python3", "-c", script))
        assert ran.stdout == "loopback works\nNetwork is unreachable\n", ran.stderr
        assert [
            line.split()[0] for line in (await shell(sandbox, root, "grep : /proc/net/dev")).stdout.splitlines()
        ] == ["lo:"]

    async def test_network_on_request(self, sandbox: Sandbox, root: Path) -> None:
        process = replace(host_process(root, "readlink", "/proc/self/ns/net"), network=True)
        assert (await run(sandbox, process)).stdout.strip() == os.readlink("/proc/self/ns/net")
        process = replace(process, network=False)
        assert (await run(sandbox, process)).stdout.strip() != os.readlink("/proc/self/ns/net")

    async def test_own_namespaces(self, sandbox: Sandbox, root: Path) -> None:
        ran = await shell(
            sandbox, root, "cd /proc/self/ns; for n in mnt pid ipc uts net; do readlink $n; done; hostname"
        )
        *spaces, hostname = ran.stdout.split()
        for name, space in zip(("mnt", "pid", "ipc", "uts", "net"), spaces, strict=True):
            assert space != os.readlink(f"/proc/self/ns/{name}"), name
        assert hostname == "tvix"

    async def test_nothing_of_the_host_but_its_system(self, sandbox: Sandbox, root: Path) -> None:
        ran = await shell(sandbox, root, "ls -A / /etc; ls -A /home /root /var /run /sys /srv /mnt 2>/dev/null")
        seen = set(ran.stdout.split())
        assert seen.isdisjoint({"home", "root", "var", "run", "sys", "srv", "mnt", "shadow", "ssh", "hostname"})
        assert {"usr", "bin", "build", "dev", "proc", "tmp"} <= seen
        ran = await shell(sandbox, root, f"ls -d {root} {Path.home()} {Path(__file__)}")
        assert (ran.stdout, ran.exit_code) == ("", 2)

    async def test_system_is_read_only(self, sandbox: Sandbox, root: Path) -> None:
        ran = await shell(
            sandbox, root, "for d in /usr /usr/bin /etc/ssl /proc/sys/kernel; do touch $d/x && echo $d; done"
        )
        assert ran.stdout == ""
        ran = await shell(sandbox, root, "echo hacked > /proc/sys/kernel/hostname; echo x > /proc/sysrq-trigger")
        assert ran.exit_code != 0

    async def test_no_capability(self, sandbox: Sandbox, root: Path) -> None:
        ran = await shell(sandbox, root, "grep -E 'CapEff|CapPrm|NoNewPrivs' /proc/self/status; mount -t tmpfs x /tmp")
        assert ran.stdout.split() == ["CapPrm:", "0" * 16, "CapEff:", "0" * 16, "NoNewPrivs:", "1"]
        assert ran.exit_code != 0

    async def test_dev_has_what_programs_need_and_no_more(self, sandbox: Sandbox, root: Path) -> None:
        ran = await shell(sandbox, root, "ls /dev; ls -d /dev/shm/ /dev/pts/")
        wanted = {"null", "zero", "full", "random", "urandom", "tty", "fd", "stdin", "stdout", "stderr", "shm", "pts"}
        assert wanted | {"ptmx"} <= set(ran.stdout.split())
        assert set(ran.stdout.split()) <= wanted | {"ptmx", "core", "console", "mqueue", "/dev/shm/", "/dev/pts/"}
        ran = await shell(
            sandbox, root, "echo x > /dev/null; head -c 3 /dev/zero | wc -c; echo y > /dev/stdout; : > /dev/shm/z"
        )
        assert (ran.stdout, ran.stderr) == ("3\ny\n", "")

    async def test_tmp_is_private(self, sandbox: Sandbox, root: Path) -> None:
        ran = await shell(sandbox, root, "ls -A /tmp; stat -c %a /tmp; touch /tmp/tvix-private; TMPDIR=/tmp mktemp -d")
        assert ran.stdout.startswith("1777\n/tmp/")
        assert "tvix-private" not in os.listdir("/tmp")
        assert (await shell(sandbox, root, "ls -A /tmp")).stdout == ""

    async def test_ids_are_what_was_asked_for(self, sandbox: Sandbox, root: Path) -> None:
        process = replace(host_process(root, "sh", "-c", "id -u; id -g; touch f"), uid=1234, gid=5678)
        assert (await run(sandbox, process)).stdout.split() == ["1234", "5678"]
        assert (root / "f").stat().st_uid == os.getuid()


def busybox_root(root: Path) -> None:
    """Make a small root file system in `root`, as BuildStream would send it."""
    for name in ("bin", "dev", "proc", "tmp", "work"):
        (root / name).mkdir()
    (root / "bin" / "busybox").write_bytes(Path("/usr/bin/busybox").read_bytes())
    (root / "bin" / "busybox").chmod(0o755)
    for name in ("sh", "ls", "cat", "id", "touch", "mkdir", "env", "mount", "grep", "sleep"):
        (root / "bin" / name).symlink_to("busybox")


class InputRootContract:
    """For sandboxes that can make the input root `/`."""

    def _process(self, root: Path, script: str) -> Process:
        busybox_root(root)
        return Process(["sh", "-c", script], {"PATH": "/bin"}, root, "work", Profile.INPUT_ROOT)

    async def test_input_root_is_the_root(self, sandbox: Sandbox, root: Path) -> None:
        script = "pwd; ls /; echo made > /made; mkdir -p /usr/share; touch here"
        ran = await run(sandbox, self._process(root, script))
        assert (ran.stdout.split(), ran.stderr) == (["/work", "bin", "dev", "proc", "tmp", "work"], "")
        assert (root / "made").read_text() == "made\n"
        assert (root / "usr" / "share").is_dir()
        assert (root / "work" / "here").exists()

    async def test_dev_proc_and_tmp_are_populated_and_left_empty(self, sandbox: Sandbox, root: Path) -> None:
        script = "echo x > /dev/null; cat /proc/self/comm; touch /tmp/f; ls /dev/stdin /dev/shm -d"
        ran = await run(sandbox, self._process(root, script))
        assert (ran.stdout, ran.stderr) == ("cat\n/dev/shm\n/dev/stdin\n", "")
        assert [list((root / name).iterdir()) for name in ("dev", "proc", "tmp")] == [[], [], []]

    async def test_tmp_of_the_input_root_on_request(self, sandbox: Sandbox, root: Path) -> None:
        process = replace(self._process(root, "cat /tmp/given; touch /tmp/made"), own_tmp=True)
        (root / "tmp" / "given").write_text("input")
        assert (await run(sandbox, process)).stdout == "input"
        assert (root / "tmp" / "made").exists()

    async def test_mount_points_that_were_not_there_are_gone_afterwards(self, sandbox: Sandbox, root: Path) -> None:
        process = self._process(root, "touch /dev/null /tmp/f; cat /proc/self/comm")
        for name in ("dev", "proc", "tmp"):
            (root / name).rmdir()
        assert (await run(sandbox, process)).stdout == "cat\n"
        assert sorted(os.listdir(root)) == ["bin", "work"]

    async def test_mount_point_that_is_a_symlink_is_refused(self, sandbox: Sandbox, root: Path, tmp_path: Path) -> None:
        process = self._process(root, "true")
        (root / "tmp").rmdir()
        (root / "tmp").symlink_to(tmp_path)
        with pytest.raises(Exception, match="'tmp' is not a directory"):
            await run(sandbox, process)

    async def test_ids_in_the_input_root(self, sandbox: Sandbox, root: Path) -> None:
        process = replace(self._process(root, "id -u; id -g"), uid=0, gid=0)
        assert (await run(sandbox, process)).stdout.split() == ["0", "0"]

    async def test_unknown_program_in_the_input_root_is_127(self, sandbox: Sandbox, root: Path) -> None:
        process = replace(self._process(root, ""), arguments=["python3"])
        assert (await run(sandbox, process)).exit_code == 127
