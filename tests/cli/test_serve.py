"""`tvix serve`: flags. What it starts is tested in tests/server."""

from pathlib import Path

import pytest

from tests.server.running import tvix
from tvix.cli.serve import OPTIONS
from tvix.server.config import Config


def test_every_flag_sets_an_option_that_exists() -> None:
    for section, key in OPTIONS.values():
        assert key in type(getattr(Config(), section)).model_fields


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--grpc", "8980"), "server.grpc = '8980': '8980' is not HOST:PORT"),
        (("--workers", "-1"), "worker.slots = -1: "),
        (("--sandbox", "docker"), "worker.sandbox = 'docker': "),
        (("--config", "/nowhere.toml"), "/nowhere.toml: No such file"),
        (("--log-level", "loud"), "server.log_level = 'loud': "),
    ],
)
def test_bad_flags_are_told_before_anything_is_started(tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    done = tvix("serve", *flags, state=tmp_path / "state")
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "state").exists()
