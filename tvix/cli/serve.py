"""`tvix serve`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tvix.server.supervisor import Supervisor

OPTIONS = {
    "grpc": ("server", "grpc"),
    "http": ("server", "http"),
    "state_dir": ("server", "state_dir"),
    "fronts": ("server", "fronts"),
    "insecure": ("server", "insecure"),
    "log_level": ("server", "log_level"),
    "workers": ("worker", "slots"),
    "sandbox": ("worker", "sandbox"),
    "build_root": ("worker", "build_root"),
}
"""Which option of the configuration each flag sets."""


@click.command(epilog="All options and more can stand in a file, see `tvix config example`; flags win over it.")
@click.option("--grpc", metavar="HOST:PORT", help="Where gRPC is served.  [127.0.0.1:8980]")
@click.option("--http", metavar="HOST:PORT", help="Where HTTP is served: cache, health, metrics.  [127.0.0.1:8981]")
@click.option("--state-dir", metavar="DIR", help="Where everything is kept.  [$TVIX_STATE_DIR or ~/.local/state/tvix]")
@click.option("--workers", type=int, metavar="N", help="How many actions to run at a time; 0: none here.  [CPUs]")
@click.option("--sandbox", metavar="KIND", help="auto, bubblewrap, oci or none.  [auto]")
@click.option("--build-root", metavar="KIND", help="How input trees appear: auto, fuse or copy.  [auto]")
@click.option("--fronts", type=int, metavar="N", help="How many processes answer calls.  [CPUs, at most 4]")
@click.option("--config", "config_file", type=click.Path(path_type=Path), metavar="FILE", help="Options in TOML.")
@click.option("--insecure", is_flag=True, default=None, help="Allow addresses that others can reach, unprotected.")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error.  [info]")
def serve(config_file: Path | None, **flags: Any) -> None:
    """Run the server.

    With no options: everything on this machine, for this machine. Ctrl-C ends it after running actions have
    finished, a second Ctrl-C at once.

    \b
    tvix serve                                cache and execution
    tvix serve --workers 0                    cache only, or with workers elsewhere
    tvix serve --state-dir /big/disk/tvix     keep blobs there
    """
    from tvix.server.config import load_config
    from tvix.server.logs import set_up_logging
    from tvix.server.supervisor import supervise

    overrides: dict[str, dict[str, object]] = {}
    for flag, value in flags.items():
        if value is not None:
            section, key = OPTIONS[flag]
            overrides.setdefault(section, {})[key] = value
    config = load_config(config_file, overrides)
    set_up_logging("serve", config.server.log_level)
    asyncio.run(supervise(config, announce))


def announce(supervisor: Supervisor) -> None:
    """Tell the person who started the server what to do with it."""
    grpc, http, config = supervisor.grpc, supervisor.http, supervisor.config
    lines = [f"tvix serves gRPC on {grpc} and HTTP on {http}; everything is kept in {config.state.root}", ""]
    if config.execution.enabled:
        lines += [
            "To build remotely, put into .bazelrc:",
            f"  build --remote_executor=grpc://{grpc}",
            "To use only the cache, one of:",
        ]
    else:
        lines += ["To use the cache, put one of these into .bazelrc:"]
    lines += [f"  build --remote_cache=grpc://{grpc}", f"  build --remote_cache=http://{http}"]
    click.echo("\n".join(lines))
