from __future__ import annotations

import os
import subprocess
from pathlib import Path

from click.testing import CliRunner

from tvix.cli.compat import compat


def test_installed_program_runs(tmp_path: Path) -> None:
    result = CliRunner().invoke(compat, ["install", str(tmp_path / "bin")])
    program = tmp_path / "bin" / "nix-instantiate"
    assert (result.exit_code, result.stdout) == (0, f"{program}\n")
    done = subprocess.run(
        [program, "--eval", "-E", "1 + 1"],
        env={**os.environ, "TVIX_STATE_DIR": str(tmp_path), "NIX_PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")


def test_what_is_there_is_replaced_only_by_force(tmp_path: Path) -> None:
    (tmp_path / "nix-instantiate").write_text("mine")
    result = CliRunner().invoke(compat, ["install", str(tmp_path)])
    assert result.exit_code == 1
    assert "is there already" in result.stderr
    assert (tmp_path / "nix-instantiate").read_text() == "mine"
    assert CliRunner().invoke(compat, ["install", str(tmp_path), "--force"]).exit_code == 0
