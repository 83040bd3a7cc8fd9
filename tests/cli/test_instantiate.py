from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tvix.cli.instantiate import default_store_folder, instantiate

A_PATH = "/nix/store/nnqh7675wghd0xmrywqm2yh9psrkk13q-a.drv"
"""What real Nix prints for A."""
A = 'derivation { name = "a"; system = "x"; builder = "b"; }'


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TVIX_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("NIX_PATH", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(instantiate, arguments)


def test_prints_the_path_and_writes_the_file(state: Path) -> None:
    result = run("-E", A)
    assert (result.exit_code, result.stdout) == (0, f"{A_PATH}\n")
    assert (state / "store" / Path(A_PATH).name).read_bytes().startswith(b'Derive([("out","/nix/store/')


def test_store_option_names_the_folder(state: Path) -> None:
    assert run("-E", A, "--store", "elsewhere").stdout == f"{A_PATH}\n"
    assert (state / "elsewhere" / Path(A_PATH).name).exists()


def test_other_outputs_than_out_end_in_their_name() -> None:
    expression = 'derivation { name = "a"; system = "x"; builder = "b"; outputs = [ "out" "dev" ]; }'
    assert run("-E", f"({expression}).dev").stdout == "/nix/store/cd4d25i83nm3pkrp869vbjan20b52ivf-a.drv!dev\n"
    assert run("-E", expression).stdout == "/nix/store/cd4d25i83nm3pkrp869vbjan20b52ivf-a.drv\n"


def test_attributes_and_arguments(state: Path) -> None:
    (state / "default.nix").write_text(
        '{ name, b ? throw "b" }: { x.y = derivation { inherit name; system = "x"; builder = b; }; }'
    )
    result = run("-A", "x.y", "--argstr", "name", "a", "--arg", "b", '"b"')
    assert (result.exit_code, result.stdout) == (0, f"{A_PATH}\n")


def test_sets_are_searched_only_if_they_ask_for_it() -> None:
    assert run("-E", f'{{ x = {A}; y.z = throw "z"; }}').stdout == f"{A_PATH}\n"
    assert run("-E", f"{{ s = {{ recurseForDerivations = true; x = {A}; }}; }}").stdout == f"{A_PATH}\n"
    assert run("-E", f"{{ s = {{ x = {A}; }}; }}").stdout == ""


def test_lists_are_searched_through_and_equal_values_found_once() -> None:
    assert run("-E", f"let a = {A}; in [ a [ {{ q = a; }} ] ]").stdout == f"{A_PATH}\n"


def test_paths_come_out_before_what_fails_later() -> None:
    result = run("-E", f'[ ({A}) (throw "later") ]')
    assert (result.exit_code, result.stdout) == (1, f"{A_PATH}\n")
    assert "later" in result.stderr


def test_a_value_without_derivations_is_an_error() -> None:
    result = run("-E", "1")
    assert result.exit_code == 1
    assert "does not evaluate to a derivation" in result.stderr


def test_state_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_store_folder() == tmp_path / "store"
    monkeypatch.delenv("TVIX_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", "/x")
    assert default_store_folder() == Path("/x/tvix/store")
