"""Builtins that steer evaluation: failing, catching, forcing, tracing."""

from __future__ import annotations

from tvix.eval.builtins.expect import expect_text
from tvix.eval.builtins.registry import Registry, Table
from tvix.eval.errors import Aborted, CatchableError, EvalError, Thrown
from tvix.eval.values import Attrs, Lazy, Value, force

TABLE = Table()


def register(registry: Registry) -> None:
    """Add this module's builtins."""
    registry.update(TABLE)
    evaluator = registry.evaluator
    strings = evaluator.strings

    @registry.primop("abort", "s")
    def abort(message: Value) -> Value:
        raise Aborted(f"evaluation aborted with the following error message: '{strings.coerce(message)}'")

    @registry.primop("throw", "s")
    def throw(message: Value) -> Value:
        raise Thrown(str(strings.coerce(message)))

    @registry.primop("addErrorContext", "ll")
    def add_error_context(message: Lazy, value: Lazy) -> Value:
        try:
            return force(value)
        except EvalError as error:
            error.add_trace(str(strings.coerce(force(message))))
            raise

    def show(value: Value) -> str:
        if isinstance(value, str):
            return value
        from tvix.eval.printing import to_nix

        return to_nix(value)

    @registry.primop("trace", "sl")
    def trace(message: Value, value: Lazy) -> Value:
        evaluator.settings.log(f"trace: {show(message)}")
        return force(value)

    @registry.primop("traceVerbose", "ll")
    def trace_verbose(message: Lazy, value: Lazy) -> Value:
        if evaluator.settings.trace_verbose:
            evaluator.settings.log(f"trace: {show(force(message))}")
        return force(value)

    @registry.primop("warn", "sl")
    def warn(message: Value, value: Lazy) -> Value:
        text = expect_text(message, "builtins.warn")
        if evaluator.settings.abort_on_warn:
            raise Aborted(f"evaluation aborted because of a warning: {text}")
        evaluator.settings.log(f"evaluation warning: {text}")
        return force(value)


@TABLE.primop("break", "l")
def break_(value: Lazy) -> Value:
    return force(value)


@TABLE.primop("tryEval", "l")
def try_eval(value: Lazy) -> Value:
    try:
        return Attrs(success=True, value=force(value))
    except CatchableError:
        return Attrs(success=False, value=False)


@TABLE.primop("seq", "sl")
def seq(first: Value, second: Lazy) -> Value:
    return force(second)


@TABLE.primop("deepSeq", "sl")
def deep_seq(first: Value, second: Lazy) -> Value:
    force_deep(first)
    return force(second)


def force_deep(value: Lazy) -> Value:
    """Force a value and all within it, each list and set once; return it."""
    value = force(value)
    work = [value]
    seen: set[int] = set()
    while work:
        current = work.pop()
        kind = current.__class__
        if kind is not list and kind is not Attrs:
            continue
        if id(current) in seen:
            continue
        seen.add(id(current))
        inner = current if kind is list else [current[name] for name in sorted(current)]
        forced = [force(item) for item in inner]
        work.extend(item for item in reversed(forced) if item.__class__ is list or item.__class__ is Attrs)
    return value
