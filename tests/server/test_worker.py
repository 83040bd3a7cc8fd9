"""The built-in worker: what it offers, what becomes of actions when processes die, draining."""

import os
import signal
import threading
from pathlib import Path

import grpc
import pytest

from remote_apis import remote_execution_pb2 as re_pb2
from remote_apis import remote_execution_pb2_grpc as re_grpc
from tests.server.running import RunningServer, alive, children_of, running_server, wait_until
from tvix.executor.interfaces import Profile
from tvix.server.config import WorkerSection
from tvix.server.worker import local_config, make_cgroups, offered_properties

pytestmark = pytest.mark.timeout(240)


def test_configured_properties_are_offered_beside_the_machines_own() -> None:
    offered = offered_properties(WorkerSection(platform={"pool": ["a", "b"], "disk": "fast"}), "bubblewrap")
    assert {("pool", "a"), ("pool", "b"), ("disk", "fast"), ("OSFamily", "linux")} <= set(offered)


def test_limits_come_from_the_configuration(tmp_path: Path) -> None:
    options = WorkerSection(max_memory=1000, max_processes=10, profile="input-root", network=True)
    config = local_config("w", tmp_path, options)
    assert (config.limits.memory_bytes, config.limits.processes, config.limits.cpu_millis) == (1000, 10, None)
    assert config.profile is Profile.INPUT_ROOT
    assert config.network
    assert make_cgroups(WorkerSection(cgroup_parent="")) is None


def test_an_action_runs_and_its_outputs_can_be_read(server: RunningServer) -> None:
    response = server.execute(server.put_action("echo said; echo made > out.txt", "out.txt"))
    assert (response.status.code, response.result.exit_code, response.cached_result) == (0, 0, False)
    assert server.get(response.result.output_files[0].digest) == b"made\n"
    assert response.result.execution_metadata.worker


def test_the_second_time_the_result_comes_from_the_cache(server: RunningServer) -> None:
    action = server.put_action("echo once > out.txt", "out.txt")
    assert not server.execute(action).cached_result
    assert server.execute(action).cached_result
    assert not server.execute(action, skip_cache_lookup=True).cached_result


class _Running:
    """An action that takes two seconds, executed in a thread."""

    def __init__(self, server: RunningServer, name: str) -> None:
        self._action = server.put_action(f"sleep 2; echo {name}")
        self._server = server
        self.response: re_pb2.ExecuteResponse | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.response = self._server.execute(self._action, skip_cache_lookup=True)

    def result(self) -> re_pb2.ExecuteResponse:
        self._thread.join(120)
        assert self.response
        return self.response


def _descendants(pid: int) -> dict[int, str]:
    found = children_of(pid)
    for child in list(found):
        found |= _descendants(child)
    return found


def _is_running(server: RunningServer) -> bool:
    return any(command.startswith("sleep 2") for command in _descendants(server.process.pid).values())


@pytest.mark.parametrize("role", ["worker", "scheduler"])
def test_an_action_outlives_the_death_of_a_process(server: RunningServer, role: str) -> None:
    running = _Running(server, f"outlives-{role}")
    wait_until(lambda: _is_running(server), "the action runs")
    (victim,) = server.children(role)
    os.kill(victim, signal.SIGKILL)
    response = running.result()
    assert (response.status.code, response.result.exit_code) == (0, 0), response
    assert response.result.stdout_raw == f"outlives-{role}\n".encode()


def test_a_killed_worker_leaves_no_process_and_no_mount(server: RunningServer) -> None:
    running = _Running(server, "killed")
    wait_until(lambda: _is_running(server), "the action runs")
    (worker,) = server.children("worker")
    below = list(_descendants(worker))
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not any(alive(pid) for pid in below), "the end of all below the worker")
    assert str(server.state) not in Path("/proc/self/mounts").read_text()
    assert running.result().result.exit_code == 0


def test_stopping_lets_a_running_action_finish_and_the_client_learns_its_result(tmp_path: Path) -> None:
    with running_server(tmp_path, "--fronts", "1", "--workers", "1") as server:
        running = _Running(server, "drained")
        wait_until(lambda: _is_running(server), "the action runs")
        assert server.stop() == 0
        assert running.result().result.stdout_raw == b"drained\n"


def test_a_second_signal_ends_everything_at_once(tmp_path: Path) -> None:
    with running_server(tmp_path, "--fronts", "1", "--workers", "1") as server:
        action = server.put_action("sleep 2; sleep 100")
        with server.channel() as channel:
            stream = re_grpc.ExecutionStub(channel).Execute(re_pb2.ExecuteRequest(action_digest=action), timeout=90)
            next(stream)
            wait_until(lambda: _is_running(server), "the action runs")
            below = list(_descendants(server.process.pid))
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "draining" in server.log, "draining")
            assert server.stop() == 0
            with pytest.raises(grpc.RpcError) as raised:
                list(stream)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        wait_until(lambda: not any(alive(pid) for pid in below), "the end of all processes")


def test_an_action_that_was_queued_runs_after_a_restart(tmp_path: Path) -> None:
    with running_server(tmp_path, "--fronts", "1", "--workers", "0") as server:
        action = server.put_action("echo at last")
        with server.channel() as channel:
            stream = re_grpc.ExecutionStub(channel).Execute(re_pb2.ExecuteRequest(action_digest=action), timeout=90)
            name = next(stream).name
            server.stop(signal.SIGKILL)
    with running_server(tmp_path, "--fronts", "1", "--workers", "1") as server, server.channel() as channel:
        wait = re_pb2.WaitExecutionRequest(name=name)
        *_, last = re_grpc.ExecutionStub(channel).WaitExecution(wait, timeout=90)
        response = re_pb2.ExecuteResponse()
        last.response.Unpack(response)
        assert response.result.stdout_raw == b"at last\n"
