"""The configuration: defaults, overrides, and errors that tell what to do."""

import os
import re
import tomllib
from pathlib import Path

import pytest

from tvix.errors import FailedPrecondition, InvalidInput
from tvix.server.address import Address
from tvix.server.config import Config, check_config, example, load_config, parse_size

DOCUMENTED = Path(__file__).resolve().parents[2] / "docs" / "config.md"


def test_without_a_file_everything_has_a_default_on_loopback() -> None:
    config = load_config()
    assert config.server.grpc == Address("127.0.0.1", 8980)
    assert config.server.http == Address("127.0.0.1", 8981)
    assert config.worker.slots == len(os.sched_getaffinity(0))
    assert not config.server.insecure


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "tvix.toml"
    file.write_text('[server]\ngrpc = "127.0.0.1:1"\nhttp = "127.0.0.1:2"\n[store]\nmax_size = "3 GiB"\n')
    config = load_config(file, {"server": {"grpc": "[::1]:5"}, "worker": {"slots": 0}})
    assert (config.server.grpc, config.server.http) == (Address("::1", 5), Address("127.0.0.1", 2))
    assert (config.store.max_size, config.worker.slots) == (3 * 2**30, 0)


def test_a_configuration_survives_the_way_to_a_child() -> None:
    config = load_config(None, {"server": {"grpc": "[::1]:5"}, "worker": {"platform": {"pool": ["a", "b"]}}})
    assert Config.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\ngrcp = 1", "server.grcp: no such option; did you mean 'grpc'?"),
        ("[workers]\n", "workers: no such option; did you mean 'worker'?"),
        ("[store]\nzzz = 1", "store.zzz: no such option; known here: max_size, min_free, fsync, compress"),
        ('[server]\ngrpc = "8980"', "server.grpc = '8980': '8980' is not HOST:PORT; write for example 127.0.0.1:8980"),
        ('[store]\nmax_size = "1 XB"', "store.max_size = '1 XB': write a size as a number of bytes or as"),
        ("[store]\nmax_size = -1", "store.max_size = -1: Input should be greater than or equal to 0"),
        ('[worker]\nsandbox = "docker"', "worker.sandbox = 'docker': Input should be 'auto', 'bubblewrap', 'oci'"),
        ("[worker]\nslots = 1.5", "worker.slots = 1.5: Input should be a valid integer"),
        ("[execution]\ndefault_timeout_seconds = -3", "execution.default_timeout_seconds = -3: Input should be"),
        ('[execution.platform]\nISA = "maybe"', "execution.platform.ISA = 'maybe': Input should be 'exact', 'minimum'"),
        ("[server", "not TOML"),
        ("server = 3", "server = 3: "),
    ],
)
def test_mistakes_name_file_key_value_and_what_to_do(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "tvix.toml"
    file.write_text(text)
    with pytest.raises(InvalidInput, match=re.escape(message)) as raised:
        load_config(file)
    assert str(raised.value).startswith(f"{file}: ")


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "tvix.toml"
    file.write_text("[server]\nfronts = 0\n[store]\nroom = 3\n")
    with pytest.raises(InvalidInput) as raised:
        load_config(file)
    assert len(str(raised.value).splitlines()) == 2


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"absent.toml: No such file"):
        load_config(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput, match=r"binary.toml: not UTF-8"):
        load_config(tmp_path / "binary.toml")


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("10", 10), ("1 KiB", 1024), ("1.5G", 3 * 2**29), ("2 MB", 2_000_000), ("7B", 7)]
)
def test_sizes_have_units(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


def test_the_example_is_valid_with_every_option_switched_on(tmp_path: Path) -> None:
    text = re.sub(r"^# (\w+ = )", r"\1", example(), flags=re.MULTILINE)
    file = tmp_path / "tvix.toml"
    file.write_text(text)
    config = load_config(file)
    assert config.store == Config().store
    assert config.execution == Config().execution
    parsed = tomllib.loads(text)
    assert {name: set(table) for name, table in parsed.items()} == {
        name: set(getattr(config, name).model_fields_set) for name in Config.model_fields
    }


def test_checking_a_file_refuses_what_starting_would(tmp_path: Path) -> None:
    file = tmp_path / "tvix.toml"
    file.write_text('[server]\ngrpc = "0.0.0.0:8980"\n')
    with pytest.raises(FailedPrecondition, match="anybody who reaches this address"):
        check_config(file)
    file.write_text('[server]\ngrpc = "0.0.0.0:8980"\ninsecure = true\n')
    check_config(file)


def test_the_manual_holds_the_example() -> None:
    assert example() in DOCUMENTED.read_text()
