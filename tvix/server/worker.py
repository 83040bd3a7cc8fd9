"""The worker process of a server: runs actions, reading and writing the store on this disk directly.

It lives in a mount namespace of its own where it may, so that no mount of it outlives it or is seen by others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tvix.cas.digest import EMPTY
from tvix.cas.disk.store import DiskBlobStore
from tvix.cas.interfaces import BlobStore
from tvix.errors import FailedPrecondition, TvixError
from tvix.executor.build_roots import make_build_root
from tvix.executor.cgroups import Cgroups
from tvix.executor.command import ProfileChoice
from tvix.executor.interfaces import BuildRoot, Limits, Profile
from tvix.executor.local import LocalConfig, LocalExecutor
from tvix.executor.mount_process import FuseConfig
from tvix.executor.mounts import enter_private_namespace
from tvix.executor.sandboxes import make_sandbox
from tvix.executor.worker import Worker, WorkerConfig, machine_cpu_millis, machine_memory_bytes, machine_properties
from tvix.server.child import Child, run_child
from tvix.server.config import WorkerSection
from tvix.server.stores import disk_config

log = logging.getLogger(__name__)

AUTOMATIC_CGROUP_PARENT = "tvix"


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What a worker is given."""

    worker_id: str
    target: str
    """The server, as gRPC writes it."""
    fuse: FuseConfig
    """How the process that serves the mount is started, and which store it opens."""
    scratch: Path
    """A folder of its own, on a file system with room."""
    options: WorkerSection
    drain_seconds: float


def enter_namespace() -> None:
    """Give this process mounts of its own; where that is forbidden, say so and go on. Before any thread."""
    try:
        enter_private_namespace()
    except (TvixError, OSError) as error:  # in a chroot, / is no mount point and can't be made private
        log.warning("namespace=shared why=%r", str(error))


def offered_properties(options: WorkerSection, sandbox_name: str) -> tuple[tuple[str, str], ...]:
    """Return the platform properties of a worker: the machine's and the configured ones."""
    offered = list(machine_properties(sandbox_name))
    for name, values in options.platform.items():
        offered += [(name, value) for value in ([values] if isinstance(values, str) else values)]
    return tuple(offered)


def make_cgroups(options: WorkerSection) -> Cgroups | None:
    """Return what enforces limits on actions, None where nothing can. Blocks."""
    if not options.cgroup_parent:
        return None
    if options.cgroup_parent != "auto":
        return Cgroups(options.cgroup_parent)
    if os.geteuid() != 0:
        log.info("limits=time-only why='not root, and worker.cgroup_parent is not set'")
        return None
    try:
        return Cgroups(AUTOMATIC_CGROUP_PARENT, only_limited=True)
    except FailedPrecondition as error:
        log.warning("limits=time-only why=%r", str(error))
        return None


def local_config(worker_id: str, output: Path, options: WorkerSection) -> LocalConfig:
    """Return how actions run, from the configuration."""
    limits = Limits(
        memory_bytes=options.max_memory or None,
        processes=options.max_processes or None,
        cpu_millis=options.max_cpu_millis or None,
    )
    profile: ProfileChoice = "auto" if options.profile == "auto" else Profile(options.profile)
    return LocalConfig(worker_id, output, profile=profile, network=options.network, limits=limits)


async def work(
    setup: WorkerSetup, blobs: BlobStore, draining: asyncio.Event, hurried: asyncio.Event, *, ready: asyncio.Event
) -> None:
    """Run actions until `draining`; then finish what runs, or, when `hurried`, give it back. Sets `ready`."""
    setup.scratch.mkdir(parents=True, exist_ok=True)
    try:
        cgroups = await asyncio.to_thread(make_cgroups, setup.options)
        sandbox = await make_sandbox(setup.options.sandbox, setup.scratch / "sandbox", cgroups)
    except FailedPrecondition as error:
        raise FailedPrecondition(f"{error} (--sandbox none); or run no worker here (tvix serve --workers 0)") from error
    build_root = await asyncio.to_thread(make_build_root, blobs, setup.scratch, setup.fuse, setup.options.build_root)
    output = setup.scratch / "output"
    output.mkdir(exist_ok=True)
    config = WorkerConfig(
        target=setup.target,
        worker_id=setup.worker_id,
        slots=setup.options.slots,
        properties=offered_properties(setup.options, sandbox.name),
        cpu_millis=machine_cpu_millis(),
        memory_bytes=machine_memory_bytes(),
        drain_seconds=setup.drain_seconds,
    )
    executor = LocalExecutor(blobs, build_root, sandbox, local_config(config.worker_id, output, setup.options))
    worker = Worker(config, executor.run)
    log.info("worker=%s slots=%d sandbox=%s roots=%r", config.worker_id, config.slots, sandbox.name, build_root)
    try:
        await warm_up(build_root)
        ready.set()
        async with asyncio.TaskGroup() as tasks:
            told = [
                tasks.create_task(_then(draining, worker.drain)),
                tasks.create_task(_then(hurried, worker.kill)),
            ]
            await worker.run()
            _cancel(told)
    finally:
        await build_root.close()


async def warm_up(build_root: BuildRoot) -> None:
    """Mount what is mounted once, before the first action would have to wait for it."""
    async with build_root.open(EMPTY["sha256"]):
        pass


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
        worker_id=config.state.worker_id(),
        target=config.state.scheduler_target,
        fuse=FuseConfig(config.state.cas.as_uri()),
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
