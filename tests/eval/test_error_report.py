"""Messages for people."""

from __future__ import annotations

import pytest

from tests.eval.support import make_evaluator, shown
from tvix.eval.error_report import to_eval_error
from tvix.eval.errors import EvalError


def report_of(text: str, *, show_trace: bool = False) -> str:
    evaluator = make_evaluator()
    with pytest.raises(EvalError) as caught:
        shown(text, evaluator)
    return evaluator.report(caught.value, show_trace=show_trace)


def test_a_report_has_message_place_line_and_caret() -> None:
    assert report_of("let\n\tx = 1 + { }.abc;\nin x").splitlines()[:4] == [
        "error: attribute 'abc' missing",
        "       at «string»:2:10:",
        "            2| \tx = 1 + { }.abc;",
        "             | \t        ^",
    ]


def test_syntax_errors_are_reported_alike() -> None:
    lines = report_of("1 +\n  ]").splitlines()
    assert lines[0].startswith("error: syntax error, unexpected ']'")
    assert lines[1:] == ["       at «string»:2:3:", "            2|   ]", "             |   ^"]


def test_near_names_are_suggested() -> None:
    assert "did you mean 'version'?" in report_of("{ version = 1; }.verson")


def test_contexts_are_shown_always_and_frames_when_asked_for() -> None:
    text = 'let f = x:\n x.a; in builtins.addErrorContext "while testing" (f { })'
    assert "… while testing" in report_of(text)
    assert "use --show-trace" in report_of(text)
    traced = report_of(text, show_trace=True)
    assert "… from «string»:2:" in traced


def test_a_long_trace_is_shortened_in_the_middle() -> None:
    lines = report_of("let f = n: 1 + g (n + 1); g = n: 1 + f n; in f 0", show_trace=True).splitlines()
    assert len(lines) < 400
    assert any("more)" in line for line in lines)


def test_what_is_no_error_of_nix_is_raised_as_it_is() -> None:
    with pytest.raises(ValueError, match="ours"):
        to_eval_error(ValueError("ours"))
    with pytest.raises(TypeError, match="ours"):
        to_eval_error(TypeError("ours"))
