"""Control groups: the real ones where we may make them, and files in a folder for version 2."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contracts.sandbox import Ran, host_process, root, run
from tvix.errors import FailedPrecondition
from tvix.executor.bubblewrap import BubblewrapSandbox
from tvix.executor.cgroups import MOUNT, Cgroups, group_for
from tvix.executor.interfaces import Exit, Limits, Sandbox, Usage
from tvix.executor.oci import OciConfig, OciSandbox
from tvix.executor.unconfined import UnconfinedSandbox

__all__ = ["root"]

ENDED = Exit(0, False, False, Usage(wall_seconds=1, peak_memory_bytes=5))


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    """Return real groups, below a parent made for the test."""
    parent = f"tvix-test-{uuid.uuid4().hex[:8]}"
    try:
        made = Cgroups(parent)
    except FailedPrecondition as error:
        pytest.skip(f"no cgroups: {error}")
    yield made
    for folder in [MOUNT / parent, *(MOUNT / name / parent for name in ("memory", "pids", "cpu"))]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            folder.rmdir()


@pytest.fixture(params=["bubblewrap", "oci", "none"])
async def sandbox(request: pytest.FixtureRequest, cgroups: Cgroups, tmp_path: Path) -> Sandbox:
    try:
        if request.param == "bubblewrap":
            return BubblewrapSandbox(cgroups=cgroups)
        if request.param == "oci":
            return OciSandbox(OciConfig(tmp_path / "oci"), cgroups)
    except FailedPrecondition as error:
        pytest.skip(str(error))
    return UnconfinedSandbox(cgroups)


async def python(sandbox: Sandbox, root: Path, script: str, limits: Limits) -> Ran:
    return await run(sandbox, replace(host_process(root, "python3", "-c", script), limits=limits))


async def test_memory_limit_ends_the_command(sandbox: Sandbox, cgroups: Cgroups, root: Path) -> None:
    if "memory" not in cgroups.controllers:
        pytest.skip("no memory controller")
    ran = await python(sandbox, root, "x = bytearray(400_000_000)", Limits(memory_bytes=100_000_000))
    assert ran.ended.out_of_memory
    assert ran.exit_code == 137
    assert ran.ended.usage.peak_memory_bytes <= 100_000_000
    ran = await python(sandbox, root, "x = bytearray(40_000_000)", Limits(memory_bytes=100_000_000))
    assert (ran.exit_code, ran.ended.out_of_memory) == (0, False)
    assert 40_000_000 < ran.ended.usage.peak_memory_bytes < 100_000_000


async def test_process_limit_stops_a_fork_bomb(sandbox: Sandbox, cgroups: Cgroups, root: Path) -> None:
    if "pids" not in cgroups.controllers:
        pytest.skip("no pids controller")
    script = (
        "import os, time\nmade = 0\n"
        "try:\n  while made < 100:\n    if os.fork() == 0: time.sleep(60)\n    made += 1\n"
        "except BlockingIOError: print(made)"
    )
    ran = await python(sandbox, root, script, Limits(processes=20))
    assert 10 < int(ran.stdout) < 20, ran.stderr


async def test_groups_are_gone_afterwards(sandbox: Sandbox, cgroups: Cgroups, root: Path) -> None:
    await python(sandbox, root, "import os; print(open('/proc/self/cgroup').read())", Limits())
    for parent in cgroups._parents.values():
        assert not list(parent.glob("tvix-*"))


async def test_environment_stays_exact(sandbox: Sandbox, root: Path) -> None:
    ran = await run(sandbox, host_process(root, "env", env={"PATH": "/usr/bin"}))
    assert set(ran.stdout.split()) <= {"PATH=/usr/bin", "PWD=/build", "HOME=/root"}


def test_leftovers_of_dead_workers_are_removed(cgroups: Cgroups) -> None:
    parent = next(iter(cgroups._parents.values()))
    dead, alive = parent / "tvix-999999999-1", parent / f"tvix-{os.getpid()}-1"
    dead.mkdir()
    alive.mkdir()
    try:
        Cgroups(parent.name)
        assert not dead.exists()
        assert alive.exists()
    finally:
        alive.rmdir()


@pytest.fixture
def unified(tmp_path: Path) -> Path:
    """Return a folder with the files of a version 2 parent."""
    for folder in (tmp_path, tmp_path / "actions"):
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    return tmp_path


class Files:
    """A version 2 group as files, since a plain folder has none of its own."""

    def __init__(self, cgroups: Cgroups, limits: Limits, mount: Path) -> None:
        self._context = cgroups.group(limits)
        self.group = self._context.__enter__()
        (self.folder,) = (mount / "actions").glob("tvix-*")

    def read(self, name: str) -> str | None:
        path = self.folder / name
        return path.read_text() if path.exists() else None

    def close(self) -> None:
        for path in self.folder.iterdir():
            path.unlink()
        self._context.__exit__(None, None, None)


def test_version_2_limits(unified: Path) -> None:
    cgroups = Cgroups("actions", unified)
    assert repr(cgroups) == "<Cgroups v2 cpu memory pids>"
    assert (unified / "actions" / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    files = Files(cgroups, Limits(memory_bytes=1 << 20, processes=7, cpu_millis=1500), unified)
    assert files.read("memory.max") == str(1 << 20)
    assert files.read("memory.swap.max") == "0"
    assert files.read("pids.max") == "7"
    assert files.read("cpu.max") == "150000 100000"
    assert files.group.joining[4:] == [f"{files.folder}/cgroup.procs", "--"]
    files.close()
    assert not files.folder.exists()


def test_version_2_usage(unified: Path) -> None:
    files = Files(Cgroups("actions", unified), Limits(), unified)
    assert files.read("memory.max") is None
    assert files.group.completed(ENDED).usage.peak_memory_bytes == 5, "what is not known is not made worse"
    for name, text in {
        "memory.peak": "123456\n",
        "memory.events": "low 0\noom 1\noom_kill 2\n",
        "pids.peak": "9\n",
        "cpu.stat": "usage_usec 30\nuser_usec 2000000\nsystem_usec 500000\n",
    }.items():
        (files.folder / name).write_text(text)
    completed = files.group.completed(ENDED)
    assert completed.out_of_memory
    assert completed.usage == Usage(1, 2.0, 0.5, 123456, 9)
    files.close()


def test_parents_that_do_not_help_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"cannot be made below .*: no such hierarchy"):
        Cgroups("actions", tmp_path)
    (tmp_path / "cgroup.controllers").write_text("")
    (tmp_path / "actions").mkdir()
    (tmp_path / "actions" / "cgroup.controllers").write_text("hugetlb\n")
    with pytest.raises(FailedPrecondition, match="has none of the controllers"):
        Cgroups("actions", tmp_path)


def test_no_cgroups_no_effect() -> None:
    with group_for(None, Limits(memory_bytes=1)) as group:
        assert group.joining == []
        assert group.completed(ENDED) is ENDED
