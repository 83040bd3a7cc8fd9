"""`tvix status`."""

from rich.console import Console

from remote_apis import admin_pb2
from tests.server.running import RunningServer, tvix
from tvix.cli.status import render


def printed(status: admin_pb2.Status, now_seconds: float = 1000.0) -> str:
    console = Console(width=200, highlight=False)
    with console.capture() as capture:
        for part in render(status, now_seconds):
            console.print(part)
    return capture.get()


def test_a_running_server_tells_of_its_worker_and_its_store(server: RunningServer) -> None:
    server.execute(server.put_action("echo one"))
    text = tvix("status").stdout
    assert "of 2 slots busy on 1 worker(s), 0 actions queued" in text
    assert "actions: 1 completed" in text
    assert f"{server.state}/cas" in text
    assert "OSFamily=linux" in text


def test_rates_ages_and_states() -> None:
    status = admin_pb2.Status(version="9", queued=3, running=1)
    status.started.FromSeconds(400)
    status.counters.cache_hits, status.counters.cache_misses = 3, 1
    status.workers.add(id="w1", connected=True, slots=4, busy=1)
    status.workers.add(id="w2", silent_seconds=130)
    status.actions.add(
        action="ab/1", worker_id="w1", running_seconds=65, mnemonic="CppCompile", target="//a:b", attempt=2
    )
    status.queue.add(requirements="pool=gpu", count=3, waiting_seconds=0.5)
    status.stores.add(name="/s", blobs=5, used_bytes=1024, max_bytes=4096, free_disk_bytes=2**30)
    text = printed(status)
    assert "tvix 9, up 10 min 00 s: 1 of 4 slots busy on 1 worker(s), 3 actions queued" in text
    assert "75 % hits of 4 look-ups" in text
    assert "away for 2 min 10 s" in text
    assert "CppCompile //a:b" in text
    assert "pool=gpu" in text
    assert "1.0 KiB of 4.0 KiB (25 %)" in text


def test_an_idle_server_has_no_empty_tables() -> None:
    text = printed(admin_pb2.Status(version="9"))
    assert "Running" not in text
    assert "action cache: - hits of 0 look-ups" in text
