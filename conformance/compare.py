"""`python -m conformance.compare`: run the table of cases against us, BuildGrid and buildbox-casd, and write
what differs between the markers in README.md."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

from conformance import tools
from conformance.harness import Server, clean_up_when_terminated, running, tvix
from conformance.reapi import suite
from conformance.results import Report

README = Path(__file__).resolve().parent / "README.md"
BEGIN, END = "<!-- compare: begin -->\n", "<!-- compare: end -->\n"
SERVERS: dict[str, Callable[[Path], Server]] = {"tvix": tvix, "BuildGrid": tools.buildgrid, "casd": tools.casd}


def outcomes(make: Callable[[Path], Server]) -> dict[str, str]:
    """Return case name to cell text of one server."""
    report = Report(out=io.StringIO())
    with running(make) as server:
        suite.run(report, server.grpc_address)
    cells = {}
    for result in report.results:
        note = result.note.replace("|", "/").replace("`", "'")
        text = {"ok": "ok", "skip": "-", "FAIL": f"**no**: {_short(note)}"}[result.outcome]
        cells[result.case.removeprefix("reapi/")] = text
    return cells


def _short(note: str) -> str:
    # gRPC's own rendering of an error is long; its code and details are what matters.
    if "status = StatusCode." in note:
        note = note.partition("status = StatusCode.")[2].partition("debug_error_string")[0].replace("details =", "")
    return note[:140]


def table(columns: dict[str, dict[str, str]]) -> str:
    """Return the rows to which a server says no, and a count of all."""
    lines = [f"| case | what the API says | {' | '.join(columns)} |", f"|---|---|{'---|' * len(columns)}"]
    for case in suite.chosen(()):
        row = [cells.get(case.name, "-") for cells in columns.values()]
        if any(cell.startswith("**no**") for cell in row):
            says = case.says.replace("|", "/")
            lines.append(f"| {case.name} | {says} | {' | '.join(row)} |")
    totals = []
    for cells in columns.values():
        good = sum(cell == "ok" for cell in cells.values())
        bad = sum(cell.startswith("**no**") for cell in cells.values())
        totals.append(f"{good} ok, {bad} no, {len(cells) - good - bad} not offered")
    lines.append(f"| **all {len(suite.chosen(()))} cases** | | {' | '.join(totals)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run everything and rewrite the table."""
    clean_up_when_terminated()
    text = table({name: outcomes(make) for name, make in SERVERS.items()})
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}{text}{END}{after}")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
