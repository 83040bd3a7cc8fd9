"""Builtins that put files into the store, and that name what is there."""

from __future__ import annotations

from typing import NoReturn

from tvix.errors import InvalidInput
from tvix.eval.builtins.derivation import hash_or_placeholder, output_string
from tvix.eval.builtins.expect import expect_bool, expect_function, expect_set, expect_text
from tvix.eval.builtins.registry import Registry
from tvix.eval.errors import EvalError
from tvix.eval.io import FileType, Filter
from tvix.eval.strings import canonical_path, without_context
from tvix.eval.values import (
    MISSING,
    Attrs,
    Context,
    DeepDerivation,
    Lazy,
    Opaque,
    Path,
    Value,
    context_of,
    force,
    with_context,
)
from tvix.nix.derivation import DRV_SUFFIX, parse_aterm
from tvix.nix.derivation_hashes import placeholder
from tvix.nix.hashes import Hash
from tvix.nix.store_path import parse_store_path, split_store_path


def register(registry: Registry) -> None:
    """Add this module's builtins."""
    paths = _Paths(registry)
    registry.add("import", "s", paths.import_)
    registry.add("path", "s", paths.path)
    registry.add("filterSource", "ss", paths.filter_source)
    registry.add("toFile", "ss", paths.to_file)
    registry.add("storePath", "s", paths.store_path)
    registry.add("placeholder", "s", paths.placeholder)


def store_string(path: str) -> str:
    """Return a store path as a string with itself as context."""
    return with_context(path, frozenset([Opaque(path)]))


class _Paths:
    def __init__(self, registry: Registry) -> None:
        self.evaluator = registry.evaluator
        self.io = registry.evaluator.io
        self.settings = registry.evaluator.settings
        self.prefix = f"{self.settings.store_dir}/"

    # Importing.

    def import_(self, value: Value) -> Value:
        path = self.evaluator.to_path(value, "builtins.import")
        if path.endswith(DRV_SUFFIX) and path.startswith(self.prefix) and path.count("/") == self.prefix.count("/"):
            return self._import_derivation(path)
        return self.evaluator.evaluate_file(path)

    def _import_derivation(self, path: str) -> Attrs:
        """Return what `derivation` would have made of the .drv file, as far as it tells."""
        try:
            derivation = parse_aterm(self.io.read_file(path), path)
        except EvalError:
            raise
        except InvalidInput as error:
            raise EvalError(str(error)) from error
        names = sorted(derivation.outputs)
        common = Attrs(
            drvPath=with_context(path, frozenset([DeepDerivation(path)])),
            name=derivation.environment.get("name", ""),
            type="derivation",
        )
        found = [Attrs(outPath=output_string(path, name, derivation.outputs[name]), outputName=name) for name in names]
        common.update(zip(names, found, strict=True))
        common["all"] = found
        for output in found:
            output.update(common)
        return found[0]

    # Copying.

    def path(self, argument: Value) -> Value:
        """builtins.path { path, name ? …, filter ? …, recursive ? true, sha256 ? … }"""
        given = expect_set(argument, "builtins.path")
        source = name = ""
        keep: Filter | None = None
        recursive = True
        expected: Hash | None = None
        for key in sorted(given):
            value = force(given[key])
            if key == "path":
                source = self.evaluator.to_path(value, "builtins.path")
            elif key == "name":
                name = _plain(value, "as the name for builtins.path")
            elif key == "filter":
                keep = self._filter(expect_function(value, "as the filter of builtins.path"))
            elif key == "recursive":
                recursive = expect_bool(value, "'recursive' of builtins.path")
            elif key == "sha256":
                expected = self._expected(_plain(value, "as the hash for builtins.path"))
            else:
                raise EvalError(f"unsupported argument '{key}' to builtins.path")
        if not source:
            raise EvalError("'path' required, in builtins.path")
        return self._add(name or source.rpartition("/")[2], source, keep, recursive, expected)

    def filter_source(self, function: Value, path: Value) -> Value:
        """builtins.filterSource: a copy of a tree, without what the function refuses."""
        keep = self._filter(expect_function(function, "builtins.filterSource"))
        source = self.evaluator.to_path(path, "builtins.filterSource")
        return self._add(source.rpartition("/")[2], source, keep, True, None)

    def _filter(self, function: Value) -> Filter:
        def keep(path: str, kind: FileType) -> bool:
            return expect_bool(function(path)(kind), "as what a filter of paths returns")

        return keep

    def _expected(self, text: str) -> Hash:
        try:
            return hash_or_placeholder(text, "sha256", self.settings.log)
        except InvalidInput as error:
            raise EvalError(f"{error}, in builtins.path") from error

    def _add(self, name: str, source: str, keep: Filter | None, recursive: bool, expected: Hash | None) -> str:
        try:
            return store_string(self.io.import_path(name, source, keep, recursive=recursive, expected=expected))
        except EvalError as error:
            error.add_trace(f"while copying '{source}' to the store")
            raise

    def to_file(self, name: Value, contents: Value) -> Value:
        """builtins.toFile: a text file in the store, which may refer to other store paths, but not to outputs."""
        file_name = _plain(name, "as the name for builtins.toFile")
        text = expect_text(contents, "builtins.toFile")
        references: list[str] = []
        for element in context_of(text):
            if not isinstance(element, Opaque):
                raise EvalError(
                    f"in 'toFile': the file named '{file_name}' must not contain a reference to a derivation "
                    f"but contains ({element.derivation})"
                )
            references.append(element.path)
        return store_string(self.io.add_text(file_name, text.encode("utf-8", "surrogateescape"), references))

    # Naming.

    def store_path(self, value: Value) -> Value:
        """builtins.storePath: a path in the store, with the context that makes it a dependency."""
        if self.settings.pure:
            _refuse_in_pure("builtins.storePath")
        text: str = value.text if value.__class__ is Path else self.evaluator.strings.coerce(value, copy=False)
        path = canonical_path(str(text))
        if not self._is_store_path(path):
            path = self.io.resolve(path)
        try:
            whole, _ = split_store_path(path, self.settings.store_dir)
        except InvalidInput as error:
            raise EvalError(f"path '{path}' is not in the Nix store") from error
        store_path = whole.absolute(self.settings.store_dir)
        self.io.realise({store_path: frozenset()})
        context: Context = context_of(text) | {Opaque(store_path)}
        return with_context(path, context)

    def _is_store_path(self, path: str) -> bool:
        try:
            parse_store_path(path, self.settings.store_dir)
        except InvalidInput:
            return False
        return True

    def placeholder(self, name: Value) -> str:
        """builtins.placeholder: what the builder replaces by the path of one of its outputs."""
        return placeholder(_plain(name, "builtins.placeholder"))


def _plain(value: Value, what: str) -> str:
    return str(without_context(expect_text(value, what), what))


def _refuse_in_pure(what: str) -> NoReturn:
    raise EvalError(f"'{what}' is not allowed in pure evaluation")


def optional(attributes: Attrs, name: str) -> Lazy | None:
    """Return an attribute's value, None if there is none."""
    lazy = attributes.get(name, MISSING)
    return None if lazy is MISSING else force(lazy)
