"""One server, shared by the tests of a module, that the command line finds by its environment."""

from collections.abc import Iterator

import pytest

from tests.server.running import RunningServer, running_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("server"), "--fronts", "1", "--workers", "2") as running:
        yield running


@pytest.fixture(autouse=True)
def server_of_the_environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "server" in request.fixturenames:
        monkeypatch.setenv("TVIX_SERVER", f"grpc://{request.getfixturevalue('server').grpc_address}")
