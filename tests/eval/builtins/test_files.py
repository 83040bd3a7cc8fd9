"""Files and the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.eval.support import make_evaluator, shown
from tvix.eval.errors import EvalError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("text")
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("dir")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "zero").write_bytes(b"a\0b")
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        'builtins.readFile ./file == "text"',
        'removeAttrs (builtins.readDir ./.) [ "zero" ] == '
        '{ file = "regular"; dir = "directory"; link = "symlink"; dangling = "symlink"; }',
        'builtins.readFileType ./link == "symlink"',
        "builtins.pathExists ./file && builtins.pathExists ./dangling && !(builtins.pathExists ./absent)",
        'builtins.pathExists (toString ./dir + "/") && !(builtins.pathExists (toString ./file + "/"))',
        'builtins.toPath "/a/../b" == "/b"',
        'builtins.findFile [ { prefix = "x"; path = ./dir; } { prefix = ""; path = ./.; } ] "file" == ./file',
        '(builtins.tryEval (builtins.findFile [ ] "file")).success == false',
        'builtins.hashFile "md5" ./file == builtins.hashString "md5" "text"',
    ],
)
def test_it_holds(text: str, tree: Path) -> None:
    assert shown(text, base_directory=str(tree)) == "true"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("builtins.readFile ./absent", "absent.*No such file"),
        ("builtins.readFile ./dir", "dir.*directory"),
        ("builtins.readFile ./zero", "cannot be represented"),
        ("builtins.readDir ./file", "Not a directory"),
        ("builtins.readFileType ./absent", "absent"),
        ('builtins.pathExists "relative"', "absolute path"),
        ('builtins.toPath "a"', "absolute path"),
        ("import ./absent", "absent"),
    ],
)
def test_errors_tell_the_cause(text: str, message: str, tree: Path) -> None:
    with pytest.raises(EvalError, match=message):
        shown(text, base_directory=str(tree))


def test_the_environment_is_closed_when_restricted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVIX_TEST_VARIABLE", "x")
    assert shown('builtins.getEnv "TVIX_TEST_VARIABLE"', make_evaluator(restrict=True)) == '""'
