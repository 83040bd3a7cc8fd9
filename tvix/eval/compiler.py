"""Syntax tree → Python code. Pure.

Emits Python `ast` nodes whose positions are the Nix positions, so that a Python traceback reads as a Nix
one. A Nix expression is compiled in one of three ways:

    strict   a Python expression that gives the value, never a thunk
    lazy     a Python expression that computes nothing: a value that costs nothing to make, or a Thunk
    tail     statements that end in `return` of the strict value: here `let`, `with`, `if` and `assert`
             become statements

Functions with statements become `def`s placed before the statement that uses them; others are `lambda`s.
The names emitted code may use are listed in `tvix.eval.runtime.EXPORTED`; constants that cannot be Python
constants (paths, position tables, formals) are made once when a file is loaded, as module globals.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from tvix.eval.errors import EvalError, UndefinedVariable
from tvix.eval.nodes import (
    Assert,
    AttrSet,
    Binary,
    Binding,
    Call,
    CurPos,
    Expr,
    Float,
    HasAttr,
    If,
    Int,
    Lambda,
    Let,
    List,
    Negate,
    Not,
    Path,
    SearchPath,
    Select,
    Str,
    Var,
    With,
)
from tvix.eval.runtime import ENTRY
from tvix.eval.scope import FromWith, Global, Local, PythonNames, Scope, Scoped, Variable, outermost
from tvix.eval.source import Source

_ARITHMETIC = {"-": "__sub", "*": "__mul", "/": "__div"}
_HELPERS = {"__sub": "subtract", "__mul": "multiply", "__div": "divide", "__lessThan": "less_than"}
_CONSTANTS: Mapping[str, Any] = {"true": True, "false": False, "null": None}
_GIVES_BOOL = (Not, HasAttr)
_BOOL_OPERATORS = frozenset(["==", "!=", "<", "<=", ">", ">=", "&&", "||", "->"])
_LOAD, _STORE = ast.Load(), ast.Store()


class _Function:
    """The Python function being emitted."""

    __slots__ = ("statements", "unassigned")

    def __init__(self) -> None:
        self.statements: list[ast.stmt] = []
        self.unassigned: set[str] = set()
        """Variables whose assignment is still to come: only code that runs later may read them."""


def compile_tree(
    tree: Expr,
    source: Source,
    *,
    globals_: frozenset[str],
    saturated: Mapping[str, str],
    scoped: frozenset[str] = frozenset(),
) -> ast.Module:
    """Return the Python module of a file. `globals_` are names usable without `builtins.`, `saturated`
    builtin functions with the strictness of their parameters (see tvix.eval.builtins), `scoped` the names that
    scopedImport binds.

    Raises UndefinedVariable for a name that nothing binds.
    """
    compiler = _Compiler(source, saturated)
    return compiler.module(tree, outermost(globals_, scoped))


class _Compiler:
    def __init__(self, source: Source, saturated: Mapping[str, str]) -> None:
        self.source = source
        self.saturated = saturated
        self.names = PythonNames()
        self.function = _Function()
        self.constants: list[ast.stmt] = []
        self._places: dict[int, tuple[int, int]] = {}

    # Python nodes with positions.

    def place(self, at: int) -> tuple[int, int]:
        found = self._places.get(at)
        if found is None:
            line, column = self.source.line_and_column(at)
            found = self._places[at] = (line, column - 1)
        return found

    def name(self, identifier: str, at: int) -> ast.Name:
        line, column = self.place(at)
        return ast.Name(
            id=identifier, ctx=_LOAD, lineno=line, col_offset=column, end_lineno=line, end_col_offset=column + 1
        )

    def constant(self, value: Any, at: int) -> ast.Constant:
        line, column = self.place(at)
        return ast.Constant(value=value, lineno=line, col_offset=column, end_lineno=line, end_col_offset=column + 1)

    def call(self, function: ast.expr, arguments: list[ast.expr], at: int) -> ast.Call:
        line, column = self.place(at)
        return ast.Call(
            func=function,
            args=arguments,
            keywords=[],
            lineno=line,
            col_offset=column,
            end_lineno=line,
            end_col_offset=column + 1,
        )

    def helper(self, helper: str, arguments: list[ast.expr], at: int) -> ast.Call:
        return self.call(self.name(helper, at), arguments, at)

    def subscript(self, value: ast.expr, key: ast.expr, at: int) -> ast.Subscript:
        line, column = self.place(at)
        return ast.Subscript(
            value=value,
            slice=key,
            ctx=_LOAD,
            lineno=line,
            col_offset=column,
            end_lineno=line,
            end_col_offset=column + 1,
        )

    def compare(self, left: ast.expr, operator: ast.cmpop, right: ast.expr, at: int) -> ast.Compare:
        line, column = self.place(at)
        return ast.Compare(
            left=left,
            ops=[operator],
            comparators=[right],
            lineno=line,
            col_offset=column,
            end_lineno=line,
            end_col_offset=column + 1,
        )

    def conditional(self, test: ast.expr, body: ast.expr, orelse: ast.expr, at: int) -> ast.IfExp:
        line, column = self.place(at)
        return ast.IfExp(
            test=test,
            body=body,
            orelse=orelse,
            lineno=line,
            col_offset=column,
            end_lineno=line,
            end_col_offset=column + 1,
        )

    def assign(self, target: str, value: ast.expr, at: int) -> ast.Assign:
        line, column = self.place(at)
        name = ast.Name(
            id=target, ctx=_STORE, lineno=line, col_offset=column, end_lineno=line, end_col_offset=column + 1
        )
        return ast.Assign(
            targets=[name], value=value, lineno=line, col_offset=column, end_lineno=line, end_col_offset=column + 1
        )

    def held(self, value: ast.expr, at: int) -> ast.NamedExpr:
        """`(_t := value)`: keeps a value for the next use of `_t` within the same expression."""
        line, column = self.place(at)
        target = ast.Name(
            id="_t", ctx=_STORE, lineno=line, col_offset=column, end_lineno=line, end_col_offset=column + 1
        )
        return ast.NamedExpr(
            target=target, value=value, lineno=line, col_offset=column, end_lineno=line, end_col_offset=column + 1
        )

    def forced(self, value: ast.expr, at: int) -> ast.expr:
        """The value behind an expression that may give a thunk: the test is inlined, the call is rare."""
        line, column = self.place(at)
        if isinstance(value, ast.Name):
            subject: ast.expr = value
            again: ast.expr = value
        else:
            subject, again = self.held(value, at), self.name("_t", at)
        kind = ast.Attribute(
            value=subject,
            attr="__class__",
            ctx=_LOAD,
            lineno=line,
            col_offset=column,
            end_lineno=line,
            end_col_offset=column + 1,
        )
        test = self.compare(kind, ast.IsNot(), self.name("Thunk", at), at)
        return self.conditional(test, again, self.helper("force", [again], at), at)

    # Functions.

    def arguments(self, parameter: str | None, at: int) -> ast.arguments:
        line, column = self.place(at)
        args = (
            [ast.arg(arg=parameter, lineno=line, col_offset=column, end_lineno=line, end_col_offset=column + 1)]
            if parameter
            else []
        )
        return ast.arguments(posonlyargs=[], args=args, kwonlyargs=[], kw_defaults=[], defaults=[])

    def emit_function(
        self, hint: str, parameter: str | None, at: int, body: Callable[[], None], *, named: bool = False
    ) -> ast.expr:
        """Emit a function whose statements `body` makes; return an expression that gives it."""
        outer, self.function = self.function, _Function()
        try:
            body()
            statements = self.function.statements
        finally:
            self.function = outer
        line, column = self.place(at)
        parameters = self.arguments(parameter, at)
        only = statements[0]
        if len(statements) == 1 and isinstance(only, ast.Return) and not named:
            assert only.value is not None
            return ast.Lambda(
                args=parameters,
                body=only.value,
                lineno=line,
                col_offset=column,
                end_lineno=line,
                end_col_offset=column + 1,
            )
        name = self.names.fresh(hint)
        outer.statements.append(
            ast.FunctionDef(
                name=name,
                args=parameters,
                body=statements,
                decorator_list=[],
                returns=None,
                type_comment=None,
                lineno=line,
                col_offset=column,
                end_lineno=line,
                end_col_offset=column + 1,
            )
        )
        return self.name(name, at)

    def thunk(self, node: Expr, scope: Scope) -> ast.expr:
        code = self.emit_function("thunk", None, node.at, lambda: self.tail(node, scope))
        return self.helper("Thunk", [code], node.at)

    def module(self, tree: Expr, scope: Scope) -> ast.Module:
        self.emit_function(ENTRY, None, tree.at, lambda: self.tail(tree, scope), named=True)
        entry = self.function.statements[-1]
        assert isinstance(entry, ast.FunctionDef)
        entry.name = ENTRY
        return ast.Module(body=[*self.constants, *self.function.statements], type_ignores=[])

    def file_constant(self, hint: str, value: ast.expr, at: int) -> str:
        """Have a value made once when the file is loaded; return the name of its global."""
        name = "K_" + self.names.fresh(hint)
        self.constants.append(self.assign(name, value, at))
        return name

    # Tail.

    def tail(self, node: Expr, scope: Scope) -> None:
        """Emit statements that return the value of `node`."""
        statements = self.function.statements
        line, column = self.place(node.at)
        if isinstance(node, Let):
            self.tail(node.body, self.bind(node.bindings, scope))
        elif isinstance(node, With):
            self.tail(node.body, self.bind_with(node, scope))
        elif isinstance(node, Assert):
            test = self.condition(node.condition, scope)
            failed = self.helper("assertion_failed", [self.constant(self.text_of(node.condition), node.at)], node.at)
            negated = ast.UnaryOp(
                op=ast.Not(), operand=test, lineno=line, col_offset=column, end_lineno=line, end_col_offset=column + 1
            )
            failure = ast.Expr(value=failed, lineno=line, col_offset=column, end_lineno=line, end_col_offset=column + 1)
            statements.append(
                ast.If(
                    test=negated,
                    body=[failure],
                    orelse=[],
                    lineno=line,
                    col_offset=column,
                    end_lineno=line,
                    end_col_offset=column + 1,
                )
            )
            self.tail(node.body, scope)
        elif isinstance(node, If):
            test = self.condition(node.condition, scope)
            then, otherwise = self.branch(node.then, scope), self.branch(node.otherwise, scope)
            statements.append(
                ast.If(
                    test=test,
                    body=then,
                    orelse=otherwise,
                    lineno=line,
                    col_offset=column,
                    end_lineno=line,
                    end_col_offset=column + 1,
                )
            )
        elif isinstance(node, AttrSet) and node.recursive:
            self.return_(self.recursive_set(node, scope), node.at)
        else:
            self.return_(self.strict(node, scope), node.at)

    def return_(self, value: ast.expr, at: int) -> None:
        line, column = self.place(at)
        self.function.statements.append(
            ast.Return(value=value, lineno=line, col_offset=column, end_lineno=line, end_col_offset=column + 1)
        )

    def branch(self, node: Expr, scope: Scope) -> list[ast.stmt]:
        outer, self.function.statements = self.function.statements, []
        self.tail(node, scope)
        made, self.function.statements = self.function.statements, outer
        return made

    def text_of(self, node: Expr) -> str:
        """The source from a node to the end of its line, for messages."""
        return self.source.text[node.at : node.at + 80].split("\n", 1)[0].split(";", 1)[0]

    # Binding.

    def bind(self, bindings: AttrSet, scope: Scope) -> Scope:
        """Emit assignments for a `let` or `rec`; return the scope in which its names are bound."""
        names: dict[str, Variable] = {}
        assigned: list[tuple[str, Binding]] = []
        for name, binding in bindings.bindings.items():
            if binding.inherited:
                outer = self.resolve(name, scope, binding.at)
                if not isinstance(outer, FromWith):
                    names[name] = outer
                    continue
            python_name = self.names.fresh(name)
            names[name] = Local(python_name)
            assigned.append((python_name, binding))
        inner = scope.inside(names)
        unassigned = self.function.unassigned
        unassigned.update(python_name for python_name, _ in assigned)
        sources = self.inherit_sources(bindings, inner)
        for python_name, binding in assigned:
            value = self.binding_value(binding, inner, scope, sources)
            if "__overrides" not in bindings.bindings:  # else what is read now may yet be replaced
                unassigned.discard(python_name)
            self.function.statements.append(self.assign(python_name, value, binding.at))
        unassigned.difference_update([python_name for python_name, _ in assigned])
        return inner

    def inherit_sources(self, bindings: AttrSet, scope: Scope) -> list[str]:
        """Assign the sets of `inherit (…)` to variables, so that all their names share them."""
        sources = []
        for source in bindings.inherit_sources:
            python_name = self.names.fresh("source")
            self.function.statements.append(self.assign(python_name, self.lazy(source, scope), source.at))
            sources.append(python_name)
        return sources

    def binding_value(self, binding: Binding, inner: Scope, outer: Scope, sources: list[str]) -> ast.expr:
        """The lazy value of an attribute; `inherit`ed names are looked up outside the set."""
        if binding.inherit_from is not None:
            assert isinstance(binding.value, Var)
            name = self.constant(binding.value.name, binding.at)

            def select() -> None:
                source = self.forced(self.name(sources[binding.inherit_from or 0], binding.at), binding.at)
                self.return_(self.forced(self.subscript(source, name, binding.at), binding.at), binding.at)

            return self.helper("Thunk", [self.emit_function("thunk", None, binding.at, select)], binding.at)
        return self.lazy(binding.value, outer if binding.inherited else inner)

    def bind_with(self, node: With, scope: Scope) -> Scope:
        python_name = self.names.fresh("with")
        self.function.statements.append(self.assign(python_name, self.lazy(node.subject, scope), node.at))
        return scope.inside_with(python_name)

    def resolve(self, name: str, scope: Scope, at: int) -> Variable:
        variable = scope.resolve(name)
        if variable is None:
            raise UndefinedVariable(f"undefined variable '{name}'", self.source.position(at))
        return variable

    # Lazy.

    def lazy(self, node: Expr, scope: Scope) -> ast.expr:
        """An expression that gives the value of `node` or a thunk of it, and computes nothing."""
        if isinstance(node, Int | Float | Lambda):
            return self.strict(node, scope)
        if isinstance(node, Str | Path):
            if not node.parts or (len(node.parts) == 1 and isinstance(node.parts[0], str)):
                return self.strict(node, scope)
        elif isinstance(node, Var):
            return self.lazy_variable(node, scope)
        elif isinstance(node, List):
            return self.strict(node, scope)
        elif isinstance(node, AttrSet) and not node.recursive and not node.dynamic:
            return self.plain_set(node, scope)
        elif isinstance(node, Select):
            builtin = self.builtin_of(node, scope)
            if builtin is not None:
                return self.global_value(builtin, node.at)
        return self.thunk(node, scope)

    def lazy_variable(self, node: Var, scope: Scope) -> ast.expr:
        variable = self.resolve(node.name, scope, node.at)
        if isinstance(variable, Local) and variable.python_name not in self.function.unassigned:
            return self.name(variable.python_name, node.at)
        if isinstance(variable, Global):
            return self.global_value(variable.name, node.at)
        return self.thunk(node, scope)

    # Strict.

    def strict(self, node: Expr, scope: Scope) -> ast.expr:
        """An expression that computes the value of `node`."""
        method = _STRICT[type(node)]
        return method(self, node, scope)

    def apart(self, node: Expr, scope: Scope) -> ast.expr:
        """What needs statements, in the middle of an expression: a function, called at once."""
        code = self.emit_function("part", None, node.at, lambda: self.tail(node, scope))
        return self.call(code, [], node.at)

    def number(self, node: Int | Float, scope: Scope) -> ast.expr:
        return self.constant(node.value, node.at)

    def string(self, node: Str, scope: Scope) -> ast.expr:
        if not node.parts:
            return self.constant("", node.at)
        if len(node.parts) == 1 and isinstance(node.parts[0], str):
            return self.constant(node.parts[0], node.at)
        return self.helper("interpolate", self.string_parts(node.parts, scope, node.at), node.at)

    def string_parts(self, parts: list[str | Expr], scope: Scope, at: int) -> list[ast.expr]:
        return [self.constant(part, at) if isinstance(part, str) else self.strict(part, scope) for part in parts]

    def path(self, node: Path, scope: Scope) -> ast.expr:
        first = node.parts[0]
        assert isinstance(first, str)
        if len(node.parts) == 1:
            made = self.helper("make_path", [self.constant(first, node.at)], node.at)
            return self.name(self.file_constant("path", made, node.at), node.at)
        return self.helper("interpolate_path", self.string_parts(node.parts, scope, node.at), node.at)

    def search_path(self, node: SearchPath, scope: Scope) -> ast.expr:
        find = self.strict(Var(node.at, "__findFile"), scope)
        paths = self.lazy(Var(node.at, "__nixPath"), scope)
        return self.call(self.call(find, [paths], node.at), [self.constant(node.name, node.at)], node.at)

    def variable(self, node: Var, scope: Scope) -> ast.expr:
        variable = self.resolve(node.name, scope, node.at)
        if isinstance(variable, Local):
            return self.forced(self.name(variable.python_name, node.at), node.at)
        if isinstance(variable, Global):
            return self.global_value(variable.name, node.at, strict=True)
        if isinstance(variable, Scoped):
            scoped = self.subscript(self.name("SCOPE", node.at), self.constant(node.name, node.at), node.at)
            return self.forced(scoped, node.at)
        withs = [self.name(python_name, node.at) for python_name in variable.python_names]
        return self.helper("look_up_with", [self.constant(node.name, node.at), *withs], node.at)

    def global_value(self, name: str, at: int, *, strict: bool = False) -> ast.expr:
        if name in _CONSTANTS:
            return self.constant(_CONSTANTS[name], at)
        value = self.name(f"B_{name}", at)
        return self.forced(value, at) if strict and name not in self.saturated else value

    def builtin_of(self, node: Expr, scope: Scope) -> str | None:
        """The name of the builtin function that an expression certainly is, if it is one."""
        if isinstance(node, Var):
            name, variable = node.name, scope.resolve(node.name)
        elif isinstance(node, Select) and isinstance(node.subject, Var) and node.subject.name == "builtins":
            if len(node.path) != 1 or node.default is not None or not isinstance(node.path[0], str):
                return None
            name, variable = node.path[0], scope.resolve("builtins")
            if name.startswith("__"):
                return None
        else:
            return None
        return name if isinstance(variable, Global) and name in self.saturated else None

    def function_call(self, node: Call, scope: Scope) -> ast.expr:
        builtin = self.builtin_of(node.function, scope)
        arguments = node.arguments
        if builtin is not None and len(self.saturated[builtin]) <= len(arguments):
            count = len(self.saturated[builtin])
            direct = [
                self.strict(argument, scope) if strictness == "s" else self.lazy(argument, scope)
                for strictness, argument in zip(self.saturated[builtin], arguments, strict=False)
            ]
            result: ast.expr = self.helper(f"D_{builtin}", direct, node.at)
            arguments = arguments[count:]
        else:
            result = self.strict(node.function, scope)
        for argument in arguments:
            result = self.call(result, [self.lazy(argument, scope)], node.at)
        return result

    def selection(self, node: Select, scope: Scope) -> ast.expr:
        builtin = self.builtin_of(node, scope)
        if builtin is not None:
            return self.global_value(builtin, node.at)
        if node.default is not None:
            helper = "get_or_missing" if len(node.path) == 1 else "select_or_missing"
            found = self.helper(helper, [self.strict(node.subject, scope), *self.path_names(node, scope)], node.at)
            test = self.compare(self.held(found, node.at), ast.IsNot(), self.name("MISSING", node.at), node.at)
            value = self.forced(self.name("_t", node.at), node.at)
            return self.conditional(test, value, self.strict(node.default, scope), node.at)
        value = self.strict(node.subject, scope)
        for name in self.path_names(node, scope):
            value = self.forced(self.subscript(value, name, node.at), node.at)
        return value

    def path_names(self, node: Select | HasAttr, scope: Scope) -> list[ast.expr]:
        return [
            self.constant(name, node.at)
            if isinstance(name, str)
            else self.helper("attribute_name", [self.strict(name, scope)], name.at)
            for name in node.path
        ]

    def has_attribute(self, node: HasAttr, scope: Scope) -> ast.expr:
        helper = "has_name" if len(node.path) == 1 else "has_path"
        return self.helper(helper, [self.strict(node.subject, scope), *self.path_names(node, scope)], node.at)

    def lambda_(self, node: Lambda, scope: Scope) -> ast.expr:
        if node.formals is not None:
            return self.pattern_lambda(node, scope)
        assert node.parameter is not None
        parameter = self.names.fresh(node.parameter)
        inner = scope.inside({node.parameter: Local(parameter)})
        return self.emit_function("function", parameter, node.at, lambda: self.tail(node.body, inner))

    def pattern_lambda(self, node: Lambda, scope: Scope) -> ast.expr:
        assert node.formals is not None
        parameter = self.names.fresh(node.parameter or "arguments")
        names: dict[str, Variable] = {formal.name: Local(self.names.fresh(formal.name)) for formal in node.formals}
        if node.parameter is not None:
            names[node.parameter] = Local(parameter)
        inner = scope.inside(names)
        formals = self.formals_constant(node)

        def body() -> None:
            at = node.at
            checked = self.helper("match_formals", [self.name(parameter, at), self.name(formals, at)], at)
            self.function.statements.append(self.assign(parameter, checked, at))
            unassigned = self.function.unassigned
            unassigned.update(variable.python_name for variable in names.values() if isinstance(variable, Local))
            unassigned.discard(parameter)
            for formal in node.formals or ():
                variable = names[formal.name]
                assert isinstance(variable, Local)
                key = self.constant(formal.name, formal.at)
                value: ast.expr = self.subscript(self.name(parameter, formal.at), key, formal.at)
                if formal.default is not None:
                    given = self.compare(key, ast.In(), self.name(parameter, formal.at), formal.at)
                    value = self.conditional(given, value, self.lazy(formal.default, inner), formal.at)
                unassigned.discard(variable.python_name)
                self.function.statements.append(self.assign(variable.python_name, value, formal.at))
            self.tail(node.body, inner)

        return self.emit_function(formals, parameter, node.at, body, named=True)

    def formals_constant(self, node: Lambda) -> str:
        """A global that tells a function's formals; the function's name begins with it (see functionArgs)."""
        at = node.at
        flat = [value for formal in node.formals or () for value in (formal.name, formal.default is not None)]
        places = [
            value for formal in node.formals or () for value in (formal.name, *self.source.line_and_column(formal.at))
        ]
        arguments: list[ast.expr] = [
            self.constant(tuple(flat), at),
            self.constant(node.ellipsis, at),
            self.constant(tuple(places), at),
            self.constant(node.parameter, at),
        ]
        return self.file_constant("formals", self.helper("make_formals", arguments, at), at)

    # Operators.

    def condition(self, node: Expr, scope: Scope) -> ast.expr:
        """A strict expression that certainly gives a Boolean."""
        value = self.strict(node, scope)
        if isinstance(node, _GIVES_BOOL) or (isinstance(node, Binary) and node.operator in _BOOL_OPERATORS):
            return value
        if isinstance(value, ast.Constant) and isinstance(value.value, bool):
            return value
        line, column = self.place(node.at)
        again = self.name("_t", node.at)
        true = self.compare(self.held(value, node.at), ast.Is(), self.constant(True, node.at), node.at)
        false = self.compare(again, ast.Is(), self.constant(False, node.at), node.at)
        either = ast.BoolOp(
            op=ast.Or(),
            values=[true, false],
            lineno=line,
            col_offset=column,
            end_lineno=line,
            end_col_offset=column + 1,
        )
        return self.conditional(either, again, self.helper("not_a_boolean", [again], node.at), node.at)

    def not_(self, node: Not, scope: Scope) -> ast.expr:
        line, column = self.place(node.at)
        operand = self.condition(node.operand, scope)
        return ast.UnaryOp(
            op=ast.Not(), operand=operand, lineno=line, col_offset=column, end_lineno=line, end_col_offset=column + 1
        )

    def negate(self, node: Negate, scope: Scope) -> ast.expr:
        return self.desugared("__sub", Int(node.at, 0), node.operand, scope, node.at)

    def desugared(self, function: str, left: Expr, right: Expr, scope: Scope, at: int) -> ast.expr:
        """An operator that stands for a function which the program may have bound anew."""
        if isinstance(scope.resolve(function), Global):
            return self.helper(_HELPERS[function], [self.strict(left, scope), self.strict(right, scope)], at)
        return self.strict(Call(at, Var(at, function), [left, right]), scope)

    def binary(self, node: Binary, scope: Scope) -> ast.expr:
        operator, at = node.operator, node.at
        if operator in _ARITHMETIC:
            return self.desugared(_ARITHMETIC[operator], node.left, node.right, scope, at)
        if operator in ("<", ">", "<=", ">="):
            return self.ordering(node, scope)
        if operator in ("==", "!="):
            return self.equality(node, scope)
        if operator in ("&&", "||", "->"):
            return self.logic(node, scope)
        if operator == "|>":
            return self.function_call(Call(at, node.right, [node.left]), scope)
        if operator == "<|":
            return self.function_call(Call(at, node.left, [node.right]), scope)
        helper = {"+": "add", "++": "concatenate", "//": "update"}[operator]
        operands = [self.strict(operand, scope) for operand in self.chain(node)]
        if len(operands) == 2 and operator != "++":
            helper += "_one"
        return self.helper(helper, operands, at)

    def chain(self, node: Binary) -> list[Expr]:
        """The operands of a chain of one associative operator, in order: long chains must not nest."""
        operands: list[Expr] = []
        current: Expr = node
        if node.operator == "+":
            while isinstance(current, Binary) and current.operator == "+":
                operands.append(current.right)
                current = current.left
            operands.append(current)
            return operands[::-1]
        while isinstance(current, Binary) and current.operator == node.operator:
            operands.append(current.left)
            current = current.right
        operands.append(current)
        return operands

    def ordering(self, node: Binary, scope: Scope) -> ast.expr:
        swapped = node.operator in (">", "<=")
        left, right = (node.right, node.left) if swapped else (node.left, node.right)
        less = self.desugared("__lessThan", left, right, scope, node.at)
        if node.operator in ("<", ">"):
            return less
        line, column = self.place(node.at)
        return ast.UnaryOp(
            op=ast.Not(), operand=less, lineno=line, col_offset=column, end_lineno=line, end_col_offset=column + 1
        )

    def equality(self, node: Binary, scope: Scope) -> ast.expr:
        equal = node.operator == "=="
        left, right = self.strict(node.left, scope), self.strict(node.right, scope)
        for constant, other in ((right, left), (left, right)):
            if isinstance(constant, ast.Constant):
                if constant.value is None:
                    return self.compare(other, ast.Is() if equal else ast.IsNot(), constant, node.at)
                if isinstance(constant.value, str):  # no other value equals a str in Python either
                    return self.compare(other, ast.Eq() if equal else ast.NotEq(), constant, node.at)
        result = self.helper("equal", [left, right], node.at)
        if equal:
            return result
        line, column = self.place(node.at)
        return ast.UnaryOp(
            op=ast.Not(), operand=result, lineno=line, col_offset=column, end_lineno=line, end_col_offset=column + 1
        )

    def logic(self, node: Binary, scope: Scope) -> ast.expr:
        line, column = self.place(node.at)
        left, right = self.condition(node.left, scope), self.condition(node.right, scope)
        if node.operator == "->":
            left = ast.UnaryOp(
                op=ast.Not(), operand=left, lineno=line, col_offset=column, end_lineno=line, end_col_offset=column + 1
            )
        operator: ast.boolop = ast.And() if node.operator == "&&" else ast.Or()
        return ast.BoolOp(
            op=operator,
            values=[left, right],
            lineno=line,
            col_offset=column,
            end_lineno=line,
            end_col_offset=column + 1,
        )

    # Collections.

    def list_(self, node: List, scope: Scope) -> ast.expr:
        line, column = self.place(node.at)
        return ast.List(
            elts=[self.lazy(item, scope) for item in node.items],
            ctx=_LOAD,
            lineno=line,
            col_offset=column,
            end_lineno=line,
            end_col_offset=column + 1,
        )

    def set_(self, node: AttrSet, scope: Scope) -> ast.expr:
        if node.recursive:
            return self.apart(node, scope)
        made = self.plain_set(node, scope)
        return self.with_dynamic(made, node, scope)

    def plain_set(self, node: AttrSet, scope: Scope) -> ast.expr:
        sources = self.inherit_sources(node, scope)
        values = {name: self.binding_value(binding, scope, scope, sources) for name, binding in node.bindings.items()}
        return self.make_set(node, values)

    def make_set(self, node: AttrSet, values: dict[str, ast.expr]) -> ast.expr:
        line, column = self.place(node.at)
        at = node.at
        keys: list[ast.expr | None] = [self.constant(name, node.bindings[name].at) for name in values]
        items = ast.Dict(
            keys=keys,
            values=list(values.values()),
            lineno=line,
            col_offset=column,
            end_lineno=line,
            end_col_offset=column + 1,
        )
        flat = [value for name in values for value in (name, *self.source.line_and_column(node.bindings[name].at))]
        if not flat:
            return self.helper("Attrs", [], at)
        table = self.helper("make_positions", [self.constant(tuple(flat), at)], at)
        return self.helper("new_set", [items, self.name(self.file_constant("positions", table, at), at)], at)

    def recursive_set(self, node: AttrSet, scope: Scope) -> ast.expr:
        """Emit the assignments of a `rec` set in the current function; return the set."""
        inner = self.bind(node, scope)
        values: dict[str, ast.expr] = {}
        for name, binding in node.bindings.items():
            values[name] = self.lazy(Var(binding.at, name), inner)
        made = self.make_set(node, values)
        if "__overrides" in node.bindings:
            made = self.overridden(made, node, inner)
        return self.with_dynamic(made, node, inner)

    def overridden(self, made: ast.expr, node: AttrSet, inner: Scope) -> ast.expr:
        """`__overrides` replaces attributes, also as the set's own expressions see them."""
        python_name = self.names.fresh("overridden")
        made = self.helper("apply_overrides", [made], node.at)
        self.function.statements.append(self.assign(python_name, made, node.at))
        for name, binding in node.bindings.items():
            variable = inner.resolve(name)
            if isinstance(variable, Local) and not binding.inherited:
                value = self.subscript(self.name(python_name, node.at), self.constant(name, node.at), node.at)
                self.function.statements.append(self.assign(variable.python_name, value, node.at))
        return self.name(python_name, node.at)

    def with_dynamic(self, made: ast.expr, node: AttrSet, scope: Scope) -> ast.expr:
        if not node.dynamic:
            return made
        arguments = [made]
        for binding in node.dynamic:
            arguments += [self.strict(binding.name, scope), self.lazy(binding.value, scope)]
        return self.helper("add_dynamic", arguments, node.at)

    def current_position(self, node: CurPos, scope: Scope) -> ast.expr:
        line, column = self.source.line_and_column(node.at)
        return self.helper("current_position", [self.constant(line, node.at), self.constant(column, node.at)], node.at)


_STRICT: dict[type, Callable[[_Compiler, Any, Scope], ast.expr]] = {
    Int: _Compiler.number,
    Float: _Compiler.number,
    Str: _Compiler.string,
    Path: _Compiler.path,
    SearchPath: _Compiler.search_path,
    Var: _Compiler.variable,
    Select: _Compiler.selection,
    HasAttr: _Compiler.has_attribute,
    Call: _Compiler.function_call,
    Lambda: _Compiler.lambda_,
    Let: _Compiler.apart,
    With: _Compiler.apart,
    Assert: _Compiler.apart,
    If: lambda compiler, node, scope: compiler.conditional(
        compiler.condition(node.condition, scope),
        compiler.strict(node.then, scope),
        compiler.strict(node.otherwise, scope),
        node.at,
    ),
    Not: _Compiler.not_,
    Negate: _Compiler.negate,
    Binary: _Compiler.binary,
    List: _Compiler.list_,
    AttrSet: _Compiler.set_,
    CurPos: _Compiler.current_position,
}


def to_code(module: ast.Module, source: Source) -> Any:
    """Return the code object of a module; EvalError when the program nests deeper than Python compiles."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of calls and selections that can only fail
            return compile(module, source.name, "exec", dont_inherit=True)
    except RecursionError as error:
        raise EvalError(f"{source.name}: expressions nest too deeply") from error
