"""`python -m conformance.reapi grpc://HOST:PORT`: run the table against any server."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from conformance.reapi import suite
from conformance.results import Report


def main() -> int:
    """Parse the command line, run, return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m conformance.reapi", description=__doc__)
    parser.add_argument("url", nargs="?", help="grpc://HOST:PORT")
    parser.add_argument("--instance", default="", help="instance name (default: empty)")
    parser.add_argument("--cache-only", action="store_true", help="leave out what executes actions")
    parser.add_argument("--only", default="", help="comma-separated case names or letters")
    parser.add_argument("--expect-file", type=Path, help="lines of `case: reason` for known differences")
    parser.add_argument("--list", action="store_true", help="print the table and leave")
    options = parser.parse_args()
    if options.list:
        for case in suite.chosen(()):
            print(f"{case.name:24} {case.says}")
        return 0
    if not options.url:
        parser.error("give the server's address")
    report = Report(expected=suite.read_expectations(options.expect_file) if options.expect_file else {})
    only = [name for name in options.only.split(",") if name]
    address = options.url.removeprefix("grpc://")
    suite.run(report, address, options.instance, only=only, cache_only=options.cache_only)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
