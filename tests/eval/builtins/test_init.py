"""All builtins together."""

from __future__ import annotations

from importlib import import_module

import pytest

from tests.eval.support import make_evaluator
from tvix.eval.builtins import MODULES
from tvix.eval.builtins.registry import Registry


@pytest.mark.parametrize("name", MODULES)
def test_each_module_registers_something(name: str) -> None:
    registry = Registry(make_evaluator())
    import_module(f"tvix.eval.builtins.{name}").register(registry)
    assert registry.primops or registry.constants


def test_the_set_has_all_functions_and_constants() -> None:
    registry = make_evaluator().registry
    assert registry.builtins.keys() == registry.primops.keys() | registry.constants.keys()
    assert len(registry.builtins) >= 110
