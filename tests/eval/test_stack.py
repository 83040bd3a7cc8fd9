"""Deep recursion has room, and an end."""

import pytest

from tvix.eval.stack import run_with_large_stack


def down(depth: int) -> int:
    return 0 if not depth else 1 + down(depth - 1)


def test_two_hundred_thousand_calls_nest() -> None:
    assert run_with_large_stack(lambda: down(200_000)) == 200_000


def test_too_many_are_an_error_not_a_crash() -> None:
    with pytest.raises(RecursionError):
        run_with_large_stack(lambda: down(10_000_000))


def test_results_and_errors_come_back() -> None:
    assert run_with_large_stack(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        run_with_large_stack(lambda: 1 // 0)
