"""One evaluation: files, imports, the search path, and the values that come of them.

An Evaluator is used by one thread, one with a large stack (tvix.eval.stack). What it raises on purpose is an
EvalError with its position; callers at the edge wrap work in `reporting()`, which turns the Python errors of
emitted code (calls of what is no function, selections from what is no set, recursion too deep) into such.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType

from tvix.eval.builtins import make_registry
from tvix.eval.code_cache import CodeCache
from tvix.eval.error_report import report, to_eval_error
from tvix.eval.errors import EvalError, InfiniteRecursion, NixTypeError, Position
from tvix.eval.io import EvalIO
from tvix.eval.runtime import ENTRY, evaluator_namespace, file_namespace, formals_of
from tvix.eval.search_path import SearchPath
from tvix.eval.settings import Settings
from tvix.eval.source import Source, decode_source
from tvix.eval.strings import Strings, canonical_path
from tvix.eval.values import (
    MISSING,
    Attrs,
    Built,
    Context,
    ContextString,
    DeepDerivation,
    Lazy,
    Opaque,
    Path,
    Value,
    force,
    show_type,
    with_context,
)

COMMAND_LINE = "«string»"
"""The name of a source that is no file."""


class Evaluator:
    """Evaluates Nix. `code_cache` keeps compiled files on disk; without one each process compiles anew."""

    def __init__(self, io: EvalIO, settings: Settings | None = None, code_cache: CodeCache | None = None) -> None:
        self.io = io
        self.settings = settings or Settings()
        self.start_time = int(time.time())
        self.strings = Strings(self.copy_to_store)
        self.search_path = SearchPath.from_settings(self.settings, io)
        self.registry = make_registry(self)
        self._code_cache = code_cache
        self._namespace = evaluator_namespace(self)
        self._files: dict[str, Value] = {}
        self._copies: dict[str, str] = {}
        self._sources: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Evaluator {len(self._files)} files>"

    # Evaluating.

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Raise what fails within as an EvalError with its position."""
        try:
            yield
        except Exception as error:
            found = to_eval_error(error)
            if found is error:
                raise
            raise found.with_traceback(error.__traceback__) from None

    def evaluate_text(self, text: str, base_directory: str = "/", name: str = COMMAND_LINE) -> Value:
        """Return the value of an expression; relative paths in it are relative to `base_directory`."""
        self._sources[name] = text
        return self._run(Source(text, name, base_directory), None)

    def evaluate_file(self, path: str) -> Value:
        """Return the value of a file, or of a directory's default.nix; each file is evaluated once."""
        resolved = self.resolve_file(path)
        found = self._files.get(resolved, MISSING)
        if found is self:
            raise InfiniteRecursion(f"infinite recursion encountered: '{resolved}' imports itself")
        if found is MISSING:
            self._files[resolved] = self  # stands for "being evaluated"
            try:
                found = self._run(self._read(resolved), None)
            except BaseException:
                del self._files[resolved]
                raise
            self._files[resolved] = found
        return found

    def evaluate_file_in_scope(self, path: str, scope: Attrs) -> Value:
        """Return the value of a file in which the names of `scope` are bound; nothing is kept."""
        return self._run(self._read(self.resolve_file(path)), scope)

    def _run(self, source: Source, scope: Attrs | None) -> Value:
        namespace = file_namespace(self._namespace, source, scope)
        exec(self._code(source, scope), namespace)
        return namespace[ENTRY]()

    def _code(self, source: Source, scope: Attrs | None) -> CodeType:
        names = frozenset(scope or ())
        cache = self._code_cache
        if cache is None:
            return self._compiled(source, names)
        key = cache.key(source.text, names, self.registry.fingerprint)
        code = cache.get(key)
        if code is None:
            code = self._compiled(source, names)
            cache.put(key, code)
        return code

    def _compiled(self, source: Source, scoped: frozenset[str]) -> CodeType:
        from tvix.eval.compiler import compile_tree, to_code  # not needed when all is in the code cache
        from tvix.eval.parser import parse

        registry = self.registry
        tree = parse(source)
        module = compile_tree(tree, source, globals_=registry.globals, saturated=registry.saturated, scoped=scoped)
        code: CodeType = to_code(module, source)
        return code

    # Files.

    def resolve_file(self, path: str) -> str:
        """Return the file that an import of a path reads: symlinks followed, default.nix of directories."""
        resolved = self.io.resolve(path)
        if self.io.file_type(resolved) == "directory":
            resolved = self.io.resolve(f"{resolved}/default.nix")
        return resolved

    def _read(self, path: str) -> Source:
        return Source(decode_source(self.io.read_file(path)), path, path.rpartition("/")[0] or "/")

    def read_line(self, position: Position) -> str | None:
        """Return a line of a source, None if it cannot be read: for error messages."""
        text = self._sources.get(position.file)
        try:
            if text is None:
                if not position.file.startswith("/"):
                    return None
                text = decode_source(self.io.read_file(position.file))
        except EvalError:
            return None
        return Source(text, position.file, "/").line(position.line)

    def report(self, error: EvalError, *, show_trace: bool = False) -> str:
        """Return an error's message for people."""
        return report(error, self.read_line, show_trace=show_trace)

    def to_path(self, value: Value, what: str) -> str:
        """Return the absolute path that a path, or a string or set that stands for one, names.

        Store paths that it refers to are built or fetched first.
        """
        if value.__class__ is Path:
            return value.text
        text = self.strings.coerce(value, copy=False)
        if not text.startswith("/"):
            raise EvalError(f"string '{text}' doesn't represent an absolute path, in {what}")
        if text.__class__ is ContextString:
            self.realise(text.context)
        return canonical_path(str(text))

    def realise(self, context: Context) -> None:
        """Have all that a context names at hand: derivations are built, store paths fetched."""
        wanted: dict[str, set[str]] = {}
        for element in context:
            if isinstance(element, Built):
                wanted.setdefault(element.derivation, set()).add(element.output)
            elif isinstance(element, Opaque):
                wanted.setdefault(element.path, set())
            else:
                assert isinstance(element, DeepDerivation)
                wanted.setdefault(element.derivation, set())
        if any(wanted.values()) and not self.settings.allow_import_from_derivation:
            built = min(path for path, outputs in wanted.items() if outputs)
            raise EvalError(f"cannot build '{built}' during evaluation: import from derivation is not allowed")
        self.io.realise({path: frozenset(outputs) for path, outputs in wanted.items()})

    def copy_to_store(self, path: str) -> str:
        """Return the store path of a copy of a file or tree, as a string with context; copies once."""
        copied = self._copies.get(path)
        if copied is None:
            store_path = self.io.import_path(path.rpartition("/")[2], path, None)
            copied = self._copies[path] = with_context(store_path, frozenset([Opaque(store_path)]))
        return copied

    # The search path.

    def search_path_value(self) -> Value:
        """Return builtins.nixPath."""
        return [Attrs(prefix=prefix, path=path) for prefix, path in self.search_path.entries]

    # Values.

    def auto_call(self, value: Value, arguments: Mapping[str, Lazy]) -> Value:
        """Call a function that takes a set with those of the arguments that it names; return other values as
        they are. NixTypeError for a parameter that has neither an argument nor a default.
        """
        if value.__class__ is Attrs and "__functor" in value:
            return self.auto_call(force(value["__functor"])(value), arguments)
        formals = formals_of(value)
        if formals is None:
            return value
        if formals.ellipsis:
            return value(Attrs(arguments))
        for name in sorted(formals.required):
            if name not in arguments:
                raise NixTypeError(
                    f"cannot evaluate a function that has an argument without a value ('{name}'): "
                    f"give one with --arg or --argstr"
                )
        return value(Attrs({name: arguments[name] for name in formals.names if name in arguments}))

    def select_path(self, value: Value, path: Iterable[str], arguments: Mapping[str, Lazy]) -> Value:
        """Return the attribute at a path, as `-A` means it: functions on the way are called, numbers index lists."""
        for name in path:
            value = self.auto_call(value, arguments)
            if value.__class__ is list:
                value = self._index(value, name)
            elif value.__class__ is Attrs:
                value = force(value[name])
            else:
                raise NixTypeError(
                    f"the expression selected by the attribute path has '{name}' in it, but there is {show_type(value)}"
                )
        return value

    def _index(self, items: list[Lazy], name: str) -> Value:
        if not name.isdecimal() or int(name) >= len(items):
            raise EvalError(f"'{name}' is no index of a list of {len(items)} elements, in the attribute path")
        return force(items[int(name)])
