"""What a suite found: one line per case, and the closing count."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TextIO

Outcome = Literal["ok", "FAIL", "skip"]


class Skipped(Exception):
    """A case cannot be tried here; the text says why."""


class Failed(AssertionError):
    """A case did not do what it should; the text says what it did."""


@dataclass(frozen=True, slots=True)
class Result:
    """How one case ended."""

    case: str
    outcome: Outcome
    seconds: float
    note: str = ""

    def __str__(self) -> str:
        line = f"{self.outcome:4} {self.case} ({self.seconds:.1f} s)"
        return f"{line}: {self.note}" if self.note else line


@dataclass(slots=True)
class Report:
    """Collects the results of all suites and prints each as it comes."""

    out: TextIO = field(default_factory=lambda: sys.stdout)
    results: list[Result] = field(default_factory=list)
    expected: dict[str, str] = field(default_factory=dict)
    """Cases that are known to differ on this server, with the reason: they count as skipped."""

    def add(self, result: Result) -> None:
        """Keep a result and print its line."""
        self.results.append(result)
        print(result, file=self.out, flush=True)

    def note(self, text: str) -> None:
        """Print a line that is not a case: figures, versions."""
        print(f"     {text}", file=self.out, flush=True)

    def run(self, case: str, check: Callable[[], str | None]) -> bool:
        """Run one check and keep how it ended; its return value becomes the note. True unless it failed."""
        started = time.monotonic()

        def ended(outcome: Outcome, note: str) -> None:
            self.add(Result(case, outcome, time.monotonic() - started, note))

        try:
            note = check()
        except Skipped as reason:
            ended("skip", str(reason))
        except Exception as error:
            text = _one_line(error)
            if case in self.expected:
                ended("skip", f"known: {self.expected[case]} ({text})")
                return True
            ended("FAIL", text)
            return False
        else:
            ended("ok", note or "")
        return True

    def count(self, outcome: Outcome) -> int:
        """Return how many cases ended so."""
        return sum(result.outcome == outcome for result in self.results)

    def close(self) -> int:
        """Print the closing line and return the exit code."""
        skipped = self.count("skip")
        tail = f", {skipped} skipped" if skipped else ""
        print(f"{self.count('ok')} passed, {self.count('FAIL')} failed{tail}", file=self.out, flush=True)
        return 1 if self.count("FAIL") or not self.results else 0


def _one_line(error: Exception) -> str:
    if isinstance(error, Failed):
        return " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}" if frames else "?"
    for frame in reversed(frames):
        if "/conformance/" in frame.filename:
            where = f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
            break
    return f"{type(error).__name__} at {where}: {' '.join(str(error).split())[:600]}"
