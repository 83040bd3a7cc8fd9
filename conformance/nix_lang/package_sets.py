"""Instantiates all packages of a nixpkgs-like tree by ours and by real Nix, and compares.

    python -m conformance.nix_lang.package_sets TREE [--attributes NAME …] [--skip-failures]

Top-level attributes that are derivations: ours evaluates each in one process, taking down what fails; real Nix
instantiates all that succeeded at once, and tries what failed one at a time. Equal means: the same .drv paths, and
byte-equal .drv files throughout the closure; and what fails with us fails with Nix.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tvix.eval.code_cache import CodeCache
from tvix.eval.errors import EvalError
from tvix.eval.evaluator import Evaluator
from tvix.eval.settings import Settings
from tvix.eval.stack import run_with_large_stack
from tvix.eval.values import Attrs, force
from tvix.translate.eval_io import StoreIO
from tvix.translate.folder_store import FolderStore

_FEATURES = "ca-derivations impure-derivations nix-command flakes"


@dataclass
class Outcome:
    """What came of each attribute."""

    paths: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    """Attributes that are no derivations."""


def ours(tree: str, store: Path, names: list[str], cache: Path) -> Outcome:
    """Instantiate with ours."""
    evaluator = Evaluator(StoreIO(FolderStore(store)), Settings(use_nix_path=False), CodeCache(cache))
    outcome = Outcome()

    def work() -> None:
        packages = evaluator.evaluate_text(f"import {tree} {{ }}", "/")
        for name in names or sorted(packages):
            try:
                with evaluator.reporting():
                    value = force(packages[name])
                    if value.__class__ is Attrs and "type" in value and force(value["type"]) == "derivation":
                        outcome.paths[name] = str(force(value["drvPath"]))
                    else:
                        outcome.others.append(name)
            except EvalError as error:
                outcome.failures[name] = error.message

    run_with_large_stack(work)
    return outcome


def _nix(store: Path, expression: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            "nix-instantiate",
            *("--store", str(store), "--option", "experimental-features", _FEATURES),
            *("--eval", "--strict", "--json", "--read-write-mode", *options, "-E", expression),
        ],
        env={**os.environ, "NIX_PATH": "", "HOME": str(store)},
        capture_output=True,
        text=True,
        check=False,
    )


def theirs(tree: str, store: Path, names: list[str]) -> dict[str, str] | str:
    """Instantiate all the names with Nix at once; return their paths, or what it said when it failed."""
    listed = " ".join(json.dumps(name) for name in names)
    done = _nix(
        store,
        f"let p = import {tree} {{ }}; in builtins.listToAttrs "
        f"(map (n: {{ name = n; value = p.${{n}}.drvPath; }}) [ {listed} ])",
    )
    if done.returncode:
        return done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def succeeds_with_nix(tree: str, store: Path, name: str) -> bool:
    """Tell whether Nix instantiates one attribute."""
    return _nix(store, f"(import {tree} {{ }}).${{{json.dumps(name)}}}.drvPath").returncode == 0


def differing_files(our_store: Path, their_store: Path) -> list[str]:
    """Return the names of .drv files of Nix that ours lacks or has otherwise. Ours may have more: what was made
    before something failed.
    """
    ours_of = {file.name: file for file in our_store.glob("*.drv")}
    return sorted(
        file.name
        for file in their_store.glob("*.drv")
        if file.name not in ours_of or ours_of[file.name].read_bytes() != file.read_bytes()
    )


def main() -> int:
    """Compare and say what is different."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree")
    parser.add_argument("--attributes", nargs="+", default=[])
    parser.add_argument("--skip-failures", action="store_true", help="Do not ask Nix about what fails with ours.")
    parser.add_argument("--code-cache", type=Path)
    given = parser.parse_args()
    tree = os.path.abspath(given.tree)
    with tempfile.TemporaryDirectory() as folder:
        store, their_root = Path(folder) / "ours", Path(folder) / "theirs"
        begin = time.process_time()
        mine = ours(tree, store, given.attributes, given.code_cache or Path(folder) / "code")
        print(
            f"ours: {len(mine.paths)} derivations, {len(mine.others)} others, {len(mine.failures)} failures, "
            f"{time.process_time() - begin:.1f} s CPU, {len(list(store.glob('*.drv')))} .drv files",
            flush=True,
        )
        return _compare(tree, mine, store, their_root, skip_failures=given.skip_failures)


def _compare(tree: str, mine: Outcome, store: Path, their_root: Path, *, skip_failures: bool) -> int:
    before = os.times()
    nix = theirs(tree, their_root, sorted(mine.paths))
    after = os.times()
    if isinstance(nix, str):
        print(f"Nix fails where ours succeeds:\n{nix}")
        return 1
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    unequal = sorted(name for name, path in mine.paths.items() if nix[name] != path)
    files = differing_files(store, their_root / "nix/store")
    print(f"Nix: {seconds:.1f} s CPU; {len(mine.paths) - len(unequal)} of {len(mine.paths)} .drv paths are equal")
    for name in unequal[:20]:
        print(f"  {name}: {mine.paths[name]} ours, {nix[name]} theirs")
    count = len(list((their_root / "nix/store").glob("*.drv")))
    print(f"{count - len(files)} of {count} .drv files are byte-equal", *files[:20], sep="\n  ", flush=True)
    wrong: list[str] = []
    if not skip_failures:
        names = sorted(mine.failures)
        with ThreadPoolExecutor(2) as pool:
            succeeded = list(pool.map(lambda name: succeeds_with_nix(tree, their_root, name), names))
        wrong = [name for name, good in zip(names, succeeded, strict=True) if good]
        print(f"{len(names) - len(wrong)} of {len(names)} failures are failures with Nix too", flush=True)
        for name in wrong:
            print(f"  {name}: {mine.failures[name]}")
    return 1 if unequal or files or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
