"""The builtins, a module per subject.

Each module exports `register(registry)`, which adds its builtins to a Registry and may keep
`registry.evaluator` (I/O, strings, settings) for those that need more than their arguments:

    @registry.primop("elemAt", "ss")
    def element_at(items: Value, index: Value) -> Value: ...

The second argument says, a letter per parameter, what the function is given: `s` (strict) a value already
forced, `l` (lazy) a value or a Thunk. It returns a value, never a Thunk. Modules whose builtins need no
evaluator decorate at module level with a `Table` and add that to the registry.

From this the registry makes what emitted code uses (see tvix.eval.runtime): `D_<name>`, the function itself,
for calls with all arguments written out (strict ones are then computed in place, without a thunk); and
`B_<name>`, a curried function that is the builtin as a value. `registry.saturated` feeds compile_tree.

Names usable without `builtins.` are in `PLAIN_GLOBALS`; all others are global as `__<name>`.
Functions that call Nix functions do it plainly, `function(argument)`, in loops and list comprehensions: see
tvix.eval.values for what may stand on the path of recursion.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from tvix.eval.builtins.registry import Registry

if TYPE_CHECKING:
    from tvix.eval.evaluator import Evaluator

MODULES = (
    "constants",
    "types",
    "numbers",
    "lists",
    "sets",
    "text",
    "versions",
    "hashing",
    "contexts",
    "control",
    "convert",
    "functions",
    "files",
    "derivation",
    "paths",
    "fetch",
)
"""In order of registration: a later module may replace what an earlier one registered."""


def make_registry(evaluator: Evaluator) -> Registry:
    """Return all builtins, for one evaluator."""
    registry = Registry(evaluator)
    for name in MODULES:
        import_module(f"tvix.eval.builtins.{name}").register(registry)
    registry.finish()
    return registry
