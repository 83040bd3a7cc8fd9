"""Helpers of emitted code."""

from __future__ import annotations

import pytest

from tvix.eval import operators
from tvix.eval.errors import EvalError, NixTypeError
from tvix.eval.runtime import EXPORTED, SHARED, add_dynamic, attribute_name, formals_of, static_name
from tvix.eval.values import Attrs


def test_all_that_is_exported_is_there() -> None:
    assert all(SHARED[name] is getattr(operators, name) for name in EXPORTED)


def test_null_names_no_attribute() -> None:
    assert attribute_name(None) is None
    assert add_dynamic(Attrs(a=1), None, 2, "b", 3) == {"a": 1, "b": 3}
    with pytest.raises(NixTypeError):
        static_name(None)
    with pytest.raises(NixTypeError, match="an integer"):
        attribute_name(1)


def test_a_dynamic_attribute_cannot_be_defined_twice() -> None:
    with pytest.raises(EvalError, match="'a' already defined"):
        add_dynamic(Attrs(a=1), "a", 2)


def test_only_set_patterns_have_formals() -> None:
    assert formals_of(lambda x: x) is None
    assert formals_of(1) is None
