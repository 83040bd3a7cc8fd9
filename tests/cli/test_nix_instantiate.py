"""The output of the real nix-instantiate, 2.8."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from tvix.cli.nix_instantiate import parse_arguments, run

A = 'derivation { name = "a"; system = "x"; builder = "b"; }'
A_PATH = "/nix/store/nnqh7675wghd0xmrywqm2yh9psrkk13q-a.drv\n"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TVIX_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("NIX_PATH", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "default.nix").write_text(f"{{ x ? 1 }}: {{ a = {A}; n.m = x; }}")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "stdout"),
    [
        (["--eval", "-E", "1 + 1"], "2\n"),
        (["--eval", "--json", "--strict", "-E", '{ a = [ 1 "x" null ]; }'], '{"a":[1,"x",null]}'),
        (["--eval", "-E", "1", "2"], "1\n2\n"),
        (["--eval", "-E", "{ a ? 1 }: a"], "<LAMBDA>\n"),
        (["--eval", "-E", "{ a ? 1 }: a", "--arg", "a", "5"], "5\n"),
        (["--eval", "-A", "n.m"], "1\n"),
        (["--eval", "-A", "n.m", "--argstr", "x", "t"], '"t"\n'),
        ([], A_PATH),
        (["-A", "a", "--add-root", "r", "--indirect", "--option", "cores", "1", "."], A_PATH),
        (["-E", A, "--store", "elsewhere"], A_PATH),
        (["--find-file", "x", "-I", "x=/tmp", "-I", "/"], "/tmp\n"),
        (["--find-file", "x", "-Ix=/tmp"], "/tmp\n"),
    ],
)
def test_prints_what_the_real_one_prints(words: list[str], stdout: str, capfd: pytest.CaptureFixture[str]) -> None:
    run(words)
    assert capfd.readouterr().out == stdout


def test_nothing_is_printed_when_the_search_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["-E", f'[ ({A}) (throw "later") ]'])
    captured = capfd.readouterr()
    assert (ended.value.code, captured.out) == (1, "")
    assert "later" in captured.err


@pytest.mark.parametrize(("words", "reason"), [(["--foo"], "unrecognised flag '--foo'"), (["-A"], "'-A' requires")])
def test_bad_flags(words: list[str], reason: str) -> None:
    with pytest.raises(click.UsageError, match=reason):
        parse_arguments(words)
