"""The worker process of a server: runs actions, reading and writing the store on this disk directly.

It lives in a mount namespace of its own where it may, so that no mount of it outlives it or is seen by others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tvix.cas.disk.store import DiskBlobStore
from tvix.cas.interfaces import BlobStore
from tvix.errors import FailedPrecondition, TvixError, Unavailable
from tvix.executor.bubblewrap import BubblewrapSandbox
from tvix.executor.build_roots import make_build_root
from tvix.executor.interfaces import Limits, Process, Profile, Sandbox
from tvix.executor.local import LocalConfig, LocalExecutor
from tvix.executor.mount_process import FuseConfig
from tvix.executor.mounts import enter_private_namespace
from tvix.executor.sandbox import NullOutput
from tvix.executor.unconfined import UnconfinedSandbox
from tvix.executor.worker import Worker, WorkerConfig, machine_cpu_millis, machine_memory_bytes, machine_properties
from tvix.server.child import Child, run_child
from tvix.server.config import WorkerSection
from tvix.server.stores import disk_config

log = logging.getLogger(__name__)

SandboxKind = Literal["auto", "bubblewrap", "oci", "none"]
PROBE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What a worker is given."""

    target: str
    """The server, as gRPC writes it."""
    store_url: str
    """The store, for the process that serves the mount."""
    scratch: Path
    """A folder of its own, on a file system with room."""
    options: WorkerSection
    drain_seconds: float


def enter_namespace() -> None:
    """Give this process mounts of its own; where that is forbidden, say so and go on. Before any thread."""
    try:
        enter_private_namespace()
    except TvixError as error:
        log.warning("namespace=shared why=%r", str(error))


async def make_sandbox(kind: SandboxKind, scratch: Path) -> Sandbox:
    """Return a sandbox that was seen to work; FailedPrecondition when the kind that was asked for does not."""
    reasons = []
    for candidate in ["bubblewrap", "oci"] if kind == "auto" else [kind]:
        try:
            sandbox = _sandbox(candidate)
            await _try_out(sandbox, scratch)
            return sandbox
        except TvixError as error:
            reasons.append(f"{candidate}: {error}")
    if kind != "auto":
        raise FailedPrecondition(f"--sandbox {'; '.join(reasons)}")
    log.warning("sandbox=none actions can read and write all that this user can; why=%r", "; ".join(reasons))
    return UnconfinedSandbox()


def _sandbox(kind: str) -> Sandbox:
    if kind == "bubblewrap":
        return BubblewrapSandbox()
    if kind == "oci":
        raise FailedPrecondition("not built in yet")
    return UnconfinedSandbox()


async def _try_out(sandbox: Sandbox, scratch: Path) -> None:
    folder = scratch / "probe"
    folder.mkdir(parents=True, exist_ok=True)
    process = Process(["true"], {"PATH": "/usr/bin:/bin"}, folder, "", Profile.HOST_TOOLS)
    limited = replace(process, limits=Limits(wall_seconds=PROBE_SECONDS))
    ended = await sandbox.run(limited, NullOutput(), NullOutput())
    if ended.exit_code != 0:
        raise Unavailable(f"a sandboxed `true` ended with exit code {ended.exit_code}")


def offered_properties(options: WorkerSection, sandbox_name: str) -> tuple[tuple[str, str], ...]:
    """Return the platform properties of a worker: the machine's and the configured ones."""
    offered = list(machine_properties(sandbox_name))
    for name, values in options.platform.items():
        offered += [(name, value) for value in ([values] if isinstance(values, str) else values)]
    return tuple(offered)


async def work(
    setup: WorkerSetup, blobs: BlobStore, draining: asyncio.Event, hurried: asyncio.Event, *, ready: asyncio.Event
) -> None:
    """Run actions until `draining`; then finish what runs, or, when `hurried`, give it back. Sets `ready`."""
    setup.scratch.mkdir(parents=True, exist_ok=True)
    sandbox = await make_sandbox(setup.options.sandbox, setup.scratch)
    build_root = await asyncio.to_thread(
        make_build_root, blobs, setup.scratch, FuseConfig(setup.store_url), setup.options.build_root
    )
    output = setup.scratch / "output"
    output.mkdir(exist_ok=True)
    config = WorkerConfig(
        target=setup.target,
        slots=setup.options.slots,
        properties=offered_properties(setup.options, sandbox.name),
        cpu_millis=machine_cpu_millis(),
        memory_bytes=machine_memory_bytes(),
        drain_seconds=setup.drain_seconds,
    )
    executor = LocalExecutor(blobs, build_root, sandbox, LocalConfig(config.worker_id, output))
    worker = Worker(config, executor.run)
    log.info("worker=%s slots=%d sandbox=%s roots=%r", config.worker_id, config.slots, sandbox.name, build_root)
    ready.set()
    try:
        async with asyncio.TaskGroup() as tasks:
            told = [
                tasks.create_task(_then(draining, worker.drain)),
                tasks.create_task(_then(hurried, worker.kill)),
            ]
            await worker.run()
            _cancel(told)
    finally:
        await build_root.close()


async def _then(event: asyncio.Event, action: object) -> None:
    await event.wait()
    assert callable(action)
    action()


def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()


async def main(child: Child) -> None:
    """Run the process."""
    config = child.config
    setup = WorkerSetup(
        target=config.state.scheduler_target,
        store_url=config.state.cas.as_uri(),
        scratch=config.state.worker,
        options=config.worker,
        drain_seconds=config.server.drain_seconds,
    )
    blobs = await DiskBlobStore.open(disk_config(config.state, config.store))
    ready = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as tasks:
            announcing = tasks.create_task(_then(ready, child.ready))
            await work(setup, blobs, child.draining, child.hurried, ready=ready)
            announcing.cancel()
    finally:
        await blobs.close()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        run_child(main, prepare=enter_namespace)
