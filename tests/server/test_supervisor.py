"""The whole server: real processes, killed and stopped."""

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from remote_apis import remote_execution_pb2 as re_pb2
from remote_apis import remote_execution_pb2_grpc as re_grpc
from tests.server.running import RunningServer, alive, children_of, running_server, tvix, wait_until

pytestmark = pytest.mark.timeout(180)


def test_capabilities_health_and_reflection_are_served(server: RunningServer) -> None:
    with server.channel() as channel:
        capabilities = re_grpc.CapabilitiesStub(channel).GetCapabilities(re_pb2.GetCapabilitiesRequest(), timeout=20)
        assert capabilities.execution_capabilities.exec_enabled
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "build.bazel.remote.execution.v2.Execution", "google.bytestream.ByteStream"):
            response = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)
            assert response.status == health_pb2.HealthCheckResponse.SERVING


def test_what_one_front_stores_every_front_serves(server: RunningServer) -> None:
    digest = server.put(b"shared between processes")
    for _ in range(8):  # connections are spread over the fronts by the kernel
        assert server.get(digest) == b"shared between processes"
    url = f"http://{server.http_address}/cas/{digest.hash}"
    assert urllib.request.urlopen(url, timeout=20).read() == b"shared between processes"


def test_metrics_count_the_calls_of_all_fronts(server: RunningServer) -> None:
    def metrics() -> str:
        text: bytes = urllib.request.urlopen(f"http://{server.http_address}/metrics", timeout=20).read()
        return text.decode()

    server.put(b"counted")
    name = 'method="build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs"'
    wait_until(lambda: f'tvix_grpc_calls_by_seconds_total{{le="+Inf",{name}}}' in metrics(), "calls counted")
    assert 'tvix_process_resident_bytes{process="scheduler"}' in metrics()


@pytest.mark.parametrize("role", ["front", "scheduler"])
def test_a_killed_process_is_started_again_and_nothing_is_lost(server: RunningServer, role: str) -> None:
    digest = server.put(f"before the {role} was killed".encode())
    before = server.children(role)
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: len(server.children(role)) == len(before) and before[0] not in server.children(role), "restart")
    wait_until(lambda: "ended='killed by SIGKILL' restarting" in server.log, "a line in the log")
    assert server.get(digest) == f"before the {role} was killed".encode()
    assert server.get(server.put(f"after the {role} was killed".encode()))


def test_execute_waits_for_a_scheduler_that_is_being_started_again(server: RunningServer) -> None:
    wait_until(lambda: len(server.children("scheduler")) == 1, "a scheduler")
    (scheduler,) = server.children("scheduler")
    os.kill(scheduler, signal.SIGKILL)
    with server.channel() as channel, pytest.raises(grpc.RpcError) as raised:
        list(re_grpc.ExecutionStub(channel).Execute(re_pb2.ExecuteRequest(), timeout=60))
    # The scheduler's own answer, not that it could not be reached.
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_second_server_on_the_same_folder_is_refused(server: RunningServer) -> None:
    refused = tvix("serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", state=server.state)
    assert refused.returncode == 1
    assert f"in use by the server with process id {server.process.pid}" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_port_in_use_is_refused(server: RunningServer, tmp_path: Path) -> None:
    for options in (
        ["--grpc", server.grpc_address, "--http", "127.0.0.1:0"],
        ["--grpc", "127.0.0.1:0", "--http", server.http_address],
    ):
        refused = tvix("serve", *options, state=tmp_path / "other")
        assert refused.returncode == 1
        assert "the port is in use by another program" in refused.stderr


def test_addresses_for_strangers_are_refused(tmp_path: Path) -> None:
    refused = tvix("serve", "--grpc", "0.0.0.0:0", state=tmp_path / "other")
    assert refused.returncode == 1
    assert refused.stderr.startswith("tvix: error: --grpc 0.0.0.0:0: anybody who reaches this address")


def test_the_announcement_can_be_put_into_bazelrc(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tvix.cli", "serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    command += ["--state-dir", str(tmp_path / "state"), "--workers", "0", "--fronts", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(7)]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert any(line.startswith("  build --remote_executor=grpc://127.0.0.1:") for line in lines)
    assert any(line.startswith("  build --remote_cache=http://127.0.0.1:") for line in lines)


def test_a_stopped_server_leaves_nothing_and_keeps_its_blobs(tmp_path: Path) -> None:
    with running_server(tmp_path, "--workers", "0", "--fronts", "1") as server:
        digest = server.put(b"kept")
        children = list(children_of(server.process.pid))
        assert server.stop() == 0
        assert not any(alive(pid) for pid in children)
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"http://{server.http_address}/healthz", timeout=5)
    with running_server(tmp_path, "--workers", "0", "--fronts", "1") as server:
        assert server.get(digest) == b"kept"


def test_a_killed_server_takes_its_processes_along_and_loses_nothing(tmp_path: Path) -> None:
    with running_server(tmp_path, "--workers", "0", "--fronts", "2") as server:
        digest = server.put(b"acknowledged")
        children = list(children_of(server.process.pid))
        server.stop(signal.SIGKILL)
        wait_until(lambda: not any(alive(pid) for pid in children), "the children's end")
    with running_server(tmp_path, "--workers", "0", "--fronts", "1") as server:
        assert server.get(digest) == b"acknowledged"
