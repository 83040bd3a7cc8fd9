"""`tvix worker`."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tvix.cli.remote import DEFAULT_SERVER

if TYPE_CHECKING:
    from tvix.server.config import WorkerSection


@click.command(
    epilog="Needs bubblewrap or crun to keep actions apart, and /dev/fuse with overlayfs to show input trees without "
    "copying them; where those are missing, see --sandbox and --build-root."
)
@click.option(
    "--server", envvar="TVIX_SERVER", default=DEFAULT_SERVER, show_default=True, metavar="URL",
    help="The server whose actions to run: grpc://HOST:PORT or unix:/SOCKET.",
)  # fmt: skip
@click.option("--slots", type=int, metavar="N", help="How many actions to run at a time.  [CPUs]")
@click.option("--sandbox", metavar="KIND", help="auto, bubblewrap, oci or none.  [auto]")
@click.option("--build-root", metavar="KIND", help="How input trees appear: auto, fuse or copy.  [auto]")
@click.option("--platform", multiple=True, metavar="K=V", help="A platform property to offer; may be repeated.")
@click.option("--store", metavar="DIR", help="Cache of blobs and scratch space.  [~/.local/state/tvix/worker-cache]")
@click.option("--store-size", default="20 GiB", show_default=True, metavar="SIZE", help="Limit of the cache.")
@click.option("--drain-seconds", default=300.0, show_default=True, help="Time for running actions after SIGTERM.")
@click.option("--log-level", default="info", show_default=True, metavar="LEVEL", help="debug … error.")
def worker(
    server: str,
    store: str | None,
    store_size: str,
    platform: tuple[str, ...],
    drain_seconds: float,
    log_level: str,
    **options: object,
) -> None:
    """Run a worker for a server, here or on another machine.

    `tvix serve` has a worker of its own; this is for more of them. SIGTERM or Ctrl-C lets running actions finish, a
    second one gives them back to the server.

    \b
    tvix worker --server grpc://build.example:8980 --slots 8
    tvix worker --server grpc://build.example:8980 --platform pool=large --store /big/disk
    """
    from tvix.server.config import load_config, parse_size
    from tvix.server.logs import set_up_logging
    from tvix.server.state import StateDir, default_state_dir, locked
    from tvix.server.worker import enter_namespace

    given = {key: value for key, value in options.items() if value is not None}
    section = load_config(None, {"worker": {**given, "platform": _properties(platform)}}).worker
    set_up_logging("worker", log_level)
    state = StateDir(Path(store).absolute() if store else default_state_dir() / "worker-cache")
    try:
        max_bytes = parse_size(store_size)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--store-size") from error
    assert isinstance(max_bytes, int)
    with locked(state):
        enter_namespace()
        asyncio.run(_run(server, state.root, max_bytes, section, drain_seconds))


def _properties(texts: tuple[str, ...]) -> dict[str, list[str]]:
    properties: dict[str, list[str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--platform")
        properties.setdefault(name, []).append(value)
    return properties


async def _run(server: str, folder: Path, max_bytes: int, section: WorkerSection, drain_seconds: float) -> None:
    import sys

    from tvix.cas.connection import parse_endpoint
    from tvix.executor.mount_process import FuseConfig
    from tvix.server.state import StateDir
    from tvix.server.worker import WorkerSetup, work
    from tvix.server.worker_store import open_worker_store, worker_store_url

    state = StateDir(folder)
    url = worker_store_url(state.cas, server, max_bytes)
    blobs = await open_worker_store(url)
    setup = WorkerSetup(
        worker_id=state.worker_id(),
        target=parse_endpoint(server).target,
        fuse=FuseConfig(url, command=(sys.executable, "-m", "tvix.server.fuse")),
        scratch=state.worker,
        options=section,
        drain_seconds=drain_seconds,
    )
    draining, hurried = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        if draining.is_set():
            hurried.set()
        draining.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    try:
        async with asyncio.TaskGroup() as tasks:
            evicting = tasks.create_task(blobs.near.evict_loop())
            await work(setup, blobs, draining, hurried, ready=asyncio.Event())
            evicting.cancel()
    finally:
        await blobs.close()
