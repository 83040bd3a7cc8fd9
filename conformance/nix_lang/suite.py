"""The language against real Nix: a table of expressions, and generated programs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from conformance import tools
from conformance.harness import Server
from conformance.nix_lang.compare import Outcome, differs, nix_program, with_nix, with_nix_batch, with_ours
from conformance.nix_lang.programs import programs
from conformance.results import Failed, Report, Skipped
from tvix.eval.stack import MAX_FRAMES

EXPRESSIONS = Path(__file__).parent / "expressions.txt"
DIFFERENT_ON_PURPOSE = {
    "__curPos": "2.8 gives the text of the expression as its file",
    "builtins.filter 1 []": "newer Nix does not look at the function when there is nothing to filter",
    'builtins.replaceStrings ["a"] [1] "bbb"': "replacements are lazy since 2.16",
    'builtins.match "[[.-.]]" "-"': "a collating element that libstdc++ does not know by its character",
}
"""Expressions whose outcome in Nix 2.8 is not ours, and why."""
PROGRAMS_PER_BATCH = 40
BATCHES = 50
_SHOWN = 10


def expressions() -> list[str]:
    """Return the expressions of the table."""
    lines = EXPRESSIONS.read_text(encoding="utf-8").splitlines()
    return [line.replace("⏎", "\n") for line in lines[1:] if line.strip()]


def differences(cases: list[str], theirs: list[Outcome]) -> list[str]:
    """Return a description of each case that we evaluate otherwise than Nix."""
    found = []
    for case, nix in zip(cases, theirs, strict=True):
        ours = with_ours(case)
        if differs(ours, nix) and case not in DIFFERENT_ON_PURPOSE:
            found.append(f"{case}\n       Nix:  {nix}\n       ours: {ours}")
    return found


def _check(found: list[str], count: int) -> str:
    if found:
        raise Failed(f"{len(found)} of {count} differ:\n     " + "\n     ".join(found[:_SHOWN]))
    return f"{count} equal"


def check_table() -> str:
    """Compare all expressions of the table."""
    _need_nix()
    cases = expressions()
    with ThreadPoolExecutor(2) as threads:
        theirs = list(threads.map(with_nix, cases))
    return _check(differences(cases, theirs), len(cases))


def check_programs() -> str:
    """Compare generated programs, a batch per process of Nix; what differs is shrunk."""
    _need_nix()
    sys.setrecursionlimit(MAX_FRAMES)  # what evaluation sets; Hypothesis minds a change while it runs
    counts = {"programs": 0, "errors": 0}

    @seed(1)
    @settings(
        max_examples=BATCHES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(programs(), min_size=PROGRAMS_PER_BATCH, max_size=PROGRAMS_PER_BATCH))
    def check(batch: list[str]) -> None:
        ours = [with_ours(program) for program in batch]
        theirs = with_nix_batch(batch, [outcome.failed for outcome in ours])
        counts["programs"] += len(batch)
        counts["errors"] += sum(outcome.failed for outcome in ours)
        found = [
            f"{program}\n       Nix:  {nix}\n       ours: {own}"
            for program, own, nix in zip(batch, ours, theirs, strict=True)
            if differs(own, nix)
        ]
        _check(found, len(batch))

    check()
    return f"{counts['programs']} equal, {counts['errors']} of them errors"


def _need_nix() -> None:
    if nix_program() is None:
        tools.require_packages("nix-bin")
        nix_program.cache_clear()
    if nix_program() is None:
        raise Skipped("nix-instantiate is not installed")


def run(report: Report, make: Callable[[Path], Server], only: tuple[str, ...]) -> None:
    """Run the suite; it needs no server."""
    for case, check in (("expressions", check_table), ("programs", check_programs)):
        if not only or case in only:
            report.run(f"nix_lang/{case}", check)
