"""One expression through real Nix and through ours: equal output, or equally an error."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache

from tvix.eval.builtins.control import force_deep
from tvix.eval.errors import EvalError
from tvix.eval.evaluator import Evaluator
from tvix.eval.io import FileSystem
from tvix.eval.printing import JsonPrinter, to_nix
from tvix.eval.settings import Settings
from tvix.eval.stack import run_with_large_stack

TIMEOUT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Outcome:
    """What evaluating gave: text, or the message of the error."""

    text: str
    failed: bool

    def __str__(self) -> str:
        return f"error: {self.text}" if self.failed else self.text


@lru_cache(maxsize=1)
def nix_program() -> str | None:
    """Return the path of nix-instantiate, None if Nix is not installed."""
    return shutil.which("nix-instantiate")


def with_nix(expression: str, *, as_json: bool = False) -> Outcome:
    """Evaluate deeply with real Nix; relative paths are relative to /."""
    program = nix_program()
    assert program is not None
    environment = {**os.environ, "NIX_PATH": ""}
    done = subprocess.run(
        [
            program,
            "--eval",
            "--strict",
            *(["--json"] if as_json else []),
            "-E",
            f" {expression}" if expression.startswith("-") else expression,
        ],
        capture_output=True,
        timeout=TIMEOUT_SECONDS,
        cwd="/",
        env=environment,
        check=False,
    )
    if done.returncode == 0:
        return Outcome(done.stdout.decode("utf-8", "surrogateescape").rstrip("\n"), failed=False)
    errors = done.stderr.decode("utf-8", "replace")
    message = errors[errors.find("error:") :].splitlines()[0] if "error:" in errors else errors.strip()
    return Outcome(message.removeprefix("error:").strip(), failed=True)


def with_ours(expression: str, *, as_json: bool = False) -> Outcome:
    """Evaluate deeply with ours."""
    evaluator = Evaluator(FileSystem(), Settings(use_nix_path=False, log=lambda text: None))

    def run() -> str:
        with evaluator.reporting():
            value = force_deep(evaluator.evaluate_text(expression, "/"))
            return JsonPrinter(evaluator.strings).show(value) if as_json else to_nix(value, computed=True)

    try:
        return Outcome(run_with_large_stack(run), failed=False)
    except EvalError as error:
        return Outcome(error.message, failed=True)


def differs(ours: Outcome, nix: Outcome) -> bool:
    """Whether the outcomes are not the same: messages of errors are our own."""
    return ours.failed != nix.failed or (not ours.failed and ours.text != nix.text)


def with_nix_batch(expressions: list[str], expected_to_fail: list[bool]) -> list[Outcome]:
    """Evaluate with real Nix, those that should give values in one process.

    When that process fails, the culprit is searched by halving; those expected to fail run one by one.
    """
    outcomes: list[Outcome | None] = [None] * len(expressions)
    good = [index for index, fails in enumerate(expected_to_fail) if not fails]
    _fill(expressions, good, outcomes)
    return [outcome or with_nix(expression) for outcome, expression in zip(outcomes, expressions, strict=True)]


def _fill(expressions: list[str], indexes: list[int], outcomes: list[Outcome | None]) -> None:
    if len(indexes) <= 1:
        return
    listed = " ".join(f"(builtins.toXML ({expressions[index]}))" for index in indexes)
    together = with_nix(f"[ {listed} ]", as_json=True)
    if together.failed:
        middle = len(indexes) // 2
        _fill(expressions, indexes[:middle], outcomes)
        _fill(expressions, indexes[middle:], outcomes)
        return
    for index, text in zip(indexes, json.loads(together.text), strict=True):
        if text == with_ours_xml(expressions[index]):
            outcomes[index] = with_ours(expressions[index])


def with_ours_xml(expression: str) -> str:
    """Return what builtins.toXML gives for an expression that has a value."""
    outcome = with_ours(f"builtins.toXML ({expression})", as_json=True)
    return "" if outcome.failed else str(json.loads(outcome.text))
