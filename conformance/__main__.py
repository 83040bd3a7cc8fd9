"""`python -m conformance [SUITE…]`: run the suites, one line a case, exit code 1 when any fails."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from conformance import tools
from conformance.bazel import suite as bazel_suite
from conformance.bgd import suite as bgd_suite
from conformance.buildstream import suite as buildstream_suite
from conformance.crash import suite as crash_suite
from conformance.harness import Server, clean_up_when_terminated, scratch_folder, tvix
from conformance.nix_lang import suite as nix_lang_suite
from conformance.reapi import suite as reapi_suite
from conformance.results import Report

SERVERS: dict[str, Callable[[Path], Server]] = {
    "tvix": tvix,
    "buildgrid": tools.buildgrid,
    "casd": tools.casd,
    "casd-bare": tools.casd_bare,
}


def run_reapi(report: Report, make: Callable[[Path], Server], only: tuple[str, ...]) -> None:
    """The table of cases."""
    with scratch_folder("conformance-reapi") as folder:
        (folder / "state").mkdir()
        server = make(folder / "state")
        try:
            if report.run("reapi/server", lambda: server.start()):
                reapi_suite.run(report, server.grpc_address, only=only)
        finally:
            server.stop()


SUITES: dict[str, Callable[[Report, Callable[[Path], Server], tuple[str, ...]], None]] = {
    "reapi": run_reapi,
    "crash": crash_suite.run,
    "bgd": bgd_suite.run,
    "bazel": bazel_suite.run,
    "buildstream": buildstream_suite.run,
    "nix_lang": nix_lang_suite.run,
}


def main() -> int:
    """Parse the command line, run, return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m conformance", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"any of {', '.join(SUITES)} (default: all)")
    parser.add_argument("--server", choices=SERVERS, default="tvix", help="whom to test (default: tvix)")
    parser.add_argument("--only", default="", help="comma-separated names of cases")
    options = parser.parse_args()
    clean_up_when_terminated()
    unknown = set(options.suites) - set(SUITES)
    if unknown:
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    report = Report()
    only = tuple(name for name in options.only.split(",") if name)
    started = time.monotonic()
    for name in options.suites or SUITES:
        SUITES[name](report, SERVERS[options.server], only)
    report.note(f"{time.monotonic() - started:.0f} s")
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
