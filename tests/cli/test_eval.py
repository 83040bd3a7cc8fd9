"""`tvix eval`: what it prints, and how it fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FILE = """
{ x ? 1 }: { inherit x; name = "n"; list = [ 1 (1 + 1) ]; f = { y }: x + y; bad = throw "no\\n"; }
"""


def run(*arguments: str, cwd: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "TVIX_STATE_DIR": str(cwd / "state"), "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-m", "tvix.cli", "eval", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, input=stdin, cwd=cwd, env=environment, timeout=60, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "default.nix").write_text(FILE)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["-E", "1 + 1"], "2\n"),
        (["-A", "x"], "1\n"),
        (["default.nix", "-A", "x", "--arg", "x", "2 + 3"], "5\n"),
        (["-A", "x", "--argstr", "x", "t"], '"t"\n'),
        (["-A", "name", "-A", "list.1"], '"n"\n2\n'),
        (["-A", "name", "--raw"], "n"),
        (["-A", "list"], "[ 1 <CODE> ]\n"),
        (["-A", "list", "--strict"], "[ 1 2 ]\n"),
        (["-A", "list", "--json"], "[1,2]\n"),
        (["-A", "f", "--argstr", "y", "z", "--argstr", "x", "w"], '"wz"\n'),
        (["-I", "n=.", "-E", "(import <n> { }).name"], '"n"\n'),
        (["--xml", "-E", "1"], "<?xml version='1.0' encoding='utf-8'?>\n<expr>\n  <int value=\"1\" />\n</expr>\n"),
        (["-"], "3\n"),
    ],
)
def test_it_prints_as_nix_does(arguments: list[str], output: str, folder: Path) -> None:
    done = run(*arguments, cwd=folder, stdin="1 + 2")
    assert (done.stdout, done.stderr, done.returncode) == (output, "", 0)


def test_errors_are_told_with_their_place_and_no_python(folder: Path) -> None:
    done = run("-A", "bad", cwd=folder)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: no\n")
    assert f"{folder}/default.nix:2:" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_and_an_expression_are_too_much(folder: Path) -> None:
    done = run("default.nix", "-E", "1", cwd=folder)
    assert done.returncode == 2
    assert "default.nix" in done.stderr


def test_a_file_that_is_not_there_is_named(folder: Path) -> None:
    done = run("absent.nix", cwd=folder)
    assert done.returncode == 1
    assert "absent.nix" in done.stderr
