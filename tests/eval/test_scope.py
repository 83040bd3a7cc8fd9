"""What names stand for."""

from tvix.eval.scope import FromWith, Global, Local, PythonNames, Scoped, outermost


def test_inner_bindings_win_and_with_comes_last() -> None:
    file = outermost(frozenset({"map", "true"}), frozenset({"extra"}))
    inner = file.inside({"x": Local("x_1")}).inside_with("with_2").inside_with("with_3")
    assert inner.resolve("x") == Local("x_1")
    assert inner.resolve("map") == Global("map")
    assert inner.resolve("extra") == Scoped("extra")
    assert inner.resolve("y") == FromWith("y", ("with_3", "with_2"))
    assert inner.inside({"map": Local("map_4")}).resolve("map") == Local("map_4")


def test_a_name_bound_nowhere_is_unknown() -> None:
    assert outermost(frozenset(), frozenset()).resolve("x") is None


def test_python_names_are_identifiers_and_never_repeat() -> None:
    names = PythonNames()
    made = [names.fresh(name) for name in ("x", "x", "a'b-c", "class")]
    assert len(set(made)) == 4
    assert all(name.isidentifier() for name in made)
