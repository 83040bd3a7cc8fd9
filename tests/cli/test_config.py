"""`tvix config`."""

from pathlib import Path

from tests.server.running import tvix
from tvix.server.config import example


def test_the_example_is_printed() -> None:
    assert tvix("config", "example").stdout.strip() == example().strip()


def test_a_good_file_is_said_to_be_good(tmp_path: Path) -> None:
    file = tmp_path / "tvix.toml"
    file.write_text('[server]\ngrpc = "127.0.0.1:1234"\n')
    done = tvix("config", "check", str(file))
    assert (done.returncode, "good; gRPC on 127.0.0.1:1234" in done.stdout) == (0, True)


def test_every_mistake_is_a_line(tmp_path: Path) -> None:
    file = tmp_path / "tvix.toml"
    file.write_text('[server]\ngrcp = "127.0.0.1:1234"\n[worker]\nslots = "many"\n')
    done = tvix("config", "check", str(file))
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert first == f"tvix: error: {file}: server.grcp: no such option; did you mean 'grpc'?"
    assert second.startswith(f"tvix: error: {file}: worker.slots = 'many': ")
