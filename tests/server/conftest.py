"""One server with two slots, shared by the tests of a module."""

from collections.abc import Iterator

import pytest

from tests.server.running import RunningServer, running_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("server"), "--fronts", "2", "--workers", "2") as running:
        yield running
