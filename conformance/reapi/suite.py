"""The table put together, and run against one endpoint."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from conformance.reapi import (
    cases_action_cache,
    cases_bytestream,
    cases_cas,
    cases_execution,
    cases_sandbox,
    cases_services,
)
from conformance.reapi.cases import CASES, Case
from conformance.reapi.client import Endpoint
from conformance.results import Report

_ORDER = [
    module.__name__
    for module in (cases_cas, cases_bytestream, cases_action_cache, cases_services, cases_execution, cases_sandbox)
]


def chosen(only: Collection[str]) -> list[Case]:
    """Return the cases whose name or letter is in `only`; all when it is empty."""
    ordered = sorted(CASES, key=lambda case: _ORDER.index(case.check.__module__))
    return [case for case in ordered if not only or case.name in only or case.name.partition(".")[0] in only]


def read_expectations(path: Path) -> dict[str, str]:
    """Read lines of `case-name: reason`; `#` starts a comment."""
    expected: dict[str, str] = {}
    for line in path.read_text().splitlines():
        name, colon, reason = line.partition("#")[0].partition(":")
        if colon:
            expected[f"reapi/{name.strip()}"] = reason.strip()
    return expected


def run(
    report: Report, address: str, instance: str = "", *, only: Collection[str] = (), cache_only: bool = False
) -> None:
    """Run the cases against HOST:PORT and add the results to the report."""
    server = Endpoint(address, instance)
    try:
        for case in chosen(only):
            if not (cache_only and case.need == "execution"):
                report.run(f"reapi/{case.name}", lambda case=case: case(server))  # type: ignore[misc]
    finally:
        server.close()
