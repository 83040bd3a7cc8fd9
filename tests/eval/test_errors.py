"""The tree of evaluation errors: what tryEval catches, and what else."""

from __future__ import annotations

import pytest

from tvix.errors import InvalidInput
from tvix.eval import errors


@pytest.mark.parametrize("kind", [errors.Thrown, errors.AssertionFailed])
def test_what_try_eval_catches(kind: type[errors.EvalError]) -> None:
    assert issubclass(kind, errors.CatchableError)


@pytest.mark.parametrize(
    "kind",
    [
        errors.Aborted,
        errors.InfiniteRecursion,
        errors.MissingAttribute,
        errors.NixSyntaxError,
        errors.NixTypeError,
        errors.StackOverflow,
        errors.UndefinedVariable,
    ],
)
def test_what_it_does_not_catch(kind: type[errors.EvalError]) -> None:
    assert issubclass(kind, errors.EvalError)
    assert not issubclass(kind, errors.CatchableError)


def test_errors_are_the_callers_fault_and_keep_place_and_trace() -> None:
    error = errors.Thrown("no", errors.Position("/a.nix", 3, 5))
    error.add_trace("while testing")
    assert isinstance(error, InvalidInput)
    assert str(error.position) == "/a.nix:3:5"
    assert error.trace == [(None, "while testing")]
