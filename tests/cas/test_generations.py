"""Generations: one process's change is every other's."""

import subprocess
import sys
from pathlib import Path

import pytest

from tvix.cas.generations import SLOTS, Generations
from tvix.errors import CorruptData, Unavailable


def test_a_token_stays_until_the_key_changes(tmp_path: Path) -> None:
    with Generations(tmp_path / "new folder" / "generations") as generations:
        before, other = generations.token(b"key"), generations.token(b"other")
        assert generations.token(b"key") == before
        generations.changed(b"key")
        assert generations.token(b"key") != before
        assert generations.token(b"other") == other


def test_two_maps_of_one_file_share_tokens_and_the_file_keeps_them(tmp_path: Path) -> None:
    path = tmp_path / "generations"
    with Generations(path) as one, Generations(path) as two:
        assert one.token(b"key") == two.token(b"key")
        one.changed(b"key")
        token = one.token(b"key")
        assert two.token(b"key") == token
    with Generations(path) as later:
        assert later.token(b"key") == token
    assert [entry.name for entry in tmp_path.iterdir()] == ["generations"]
    assert path.stat().st_size == SLOTS * 8


def test_another_process_sees_the_change(tmp_path: Path) -> None:
    path = tmp_path / "generations"
    with Generations(path) as generations:
        before = generations.token(b"key")
        program = (
            "import sys; from pathlib import Path; from tvix.cas.generations import Generations\n"
            "with Generations(Path(sys.argv[1])) as g: g.changed(b'key'); print(g.token(b'key'))"
        )
        printed = subprocess.run([sys.executable, "-c", program, str(path)], check=True, capture_output=True, text=True)
        assert generations.token(b"key") == int(printed.stdout) != before


def test_a_file_of_the_wrong_size_is_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "generations"
    path.write_bytes(b"short")
    with pytest.raises(CorruptData, match=r"has 5 bytes, not 524288; stop the server and delete it"):
        Generations(path)


def test_a_path_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=str(tmp_path)):
        Generations(tmp_path)
