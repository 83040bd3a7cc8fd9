"""Builtins that read files and the environment."""

from __future__ import annotations

from tvix.eval.builtins.expect import expect_list, expect_set, expect_text
from tvix.eval.builtins.registry import Registry
from tvix.eval.errors import EvalError
from tvix.eval.strings import canonical_path
from tvix.eval.values import MISSING, Attrs, ContextString, Lazy, Opaque, Path, Value, force, with_context


def register(registry: Registry) -> None:
    """Add this module's builtins."""
    files = _Files(registry)
    registry.add("import", "s", files.import_)
    registry.add("scopedImport", "ss", files.scoped_import)
    registry.add("readFile", "s", files.read_file)
    registry.add("readDir", "s", files.read_dir)
    registry.add("readFileType", "s", files.read_file_type)
    registry.add("pathExists", "s", files.path_exists)
    registry.add("findFile", "ss", files.find_file)
    registry.add("toPath", "s", files.to_path)
    registry.add("getEnv", "s", files.get_env)


class _Files:
    def __init__(self, registry: Registry) -> None:
        self.evaluator = registry.evaluator
        self.io = registry.evaluator.io

    def import_(self, path: Value) -> Value:
        return self.evaluator.evaluate_file(self.evaluator.to_path(path, "builtins.import"))

    def scoped_import(self, scope: Value, path: Value) -> Value:
        names = expect_set(scope, "builtins.scopedImport")
        return self.evaluator.evaluate_file_in_scope(self.evaluator.to_path(path, "builtins.scopedImport"), names)

    def read_file(self, path: Value) -> Value:
        place = self.evaluator.to_path(path, "builtins.readFile")
        data = self.io.read_file(place)
        if b"\0" in data:
            raise EvalError(f"the contents of the file '{place}' cannot be represented as a Nix string")
        text = data.decode("utf-8", "surrogateescape")
        store_dir = self.evaluator.settings.store_dir
        if not place.startswith(f"{store_dir}/"):
            return text
        return with_context(text, self._referenced(path, text))

    def _referenced(self, path: Value, text: str) -> frozenset[Opaque]:
        """Of the store paths that a file's path refers to, those whose hashes the file contains."""
        context = path.context if path.__class__ is ContextString else frozenset()
        start = len(self.evaluator.settings.store_dir) + 1
        return frozenset(
            element for element in context if isinstance(element, Opaque) and element.path[start : start + 32] in text
        )

    def read_dir(self, path: Value) -> Value:
        return Attrs(self.io.read_dir(self.evaluator.to_path(path, "builtins.readDir")))

    def read_file_type(self, path: Value) -> Value:
        place = self.evaluator.to_path(path, "builtins.readFileType")
        found = self.io.file_type(place)
        if found is None:
            raise EvalError(f"getting status of '{place}': No such file or directory")
        return found

    def path_exists(self, path: Value) -> bool:
        must_be_directory = isinstance(path, str) and path.endswith(("/", "/."))
        place = self.evaluator.to_path(path, "builtins.pathExists")
        if must_be_directory:
            return self.io.file_type(self.io.resolve(place)) == "directory"
        return self.io.file_type(place) is not None

    def find_file(self, entries: Value, name: Value) -> Value:
        found: list[tuple[str, str]] = []
        for lazy in expect_list(entries, "builtins.findFile"):
            entry = expect_set(force(lazy), "an element for builtins.findFile")
            found.append(self._entry(entry))
        return Path(self.evaluator.search_path.find(found, expect_text(name, "builtins.findFile")))

    def _entry(self, entry: Attrs) -> tuple[str, str]:
        prefix: Lazy = entry.get("prefix", MISSING)
        path = self.evaluator.strings.coerce(force(entry["path"]), copy=False)
        if path.__class__ is ContextString:
            self.evaluator.realise(path.context)
        return ("" if prefix is MISSING else str(expect_text(force(prefix), "prefix for builtins.findFile")), str(path))

    def to_path(self, path: Value) -> Value:
        text = self.evaluator.strings.coerce(path, copy=False)
        if not text.startswith("/"):
            raise EvalError(f"string '{text}' doesn't represent an absolute path, in builtins.toPath")
        context = text.context if text.__class__ is ContextString else frozenset()
        return with_context(canonical_path(str(text)), context)

    def get_env(self, name: Value) -> str:
        expect_text(name, "builtins.getEnv")
        settings = self.evaluator.settings
        return "" if settings.pure or settings.restrict else self.io.get_env(name)
