"""The syntax tree: nodes compare by value, and sets do not share what they hold."""

from __future__ import annotations

from tvix.eval.nodes import AttrSet, Binding, Int, Var


def test_nodes_compare_by_value() -> None:
    assert Int(0, 1) == Int(0, 1)
    assert Int(0, 1) != Int(1, 1)
    assert Var(0, "a") != Var(0, "b")


def test_sets_do_not_share_their_bindings() -> None:
    one, other = AttrSet(0, recursive=False), AttrSet(0, recursive=True)
    one.bindings["a"] = Binding(0, Int(0, 1))
    assert other.bindings == {}
    assert not one.bindings["a"].inherited
