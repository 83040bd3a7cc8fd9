"""What is measured on our server alone: actions through Execute, large input roots, memory under transfers."""

from __future__ import annotations

import hashlib
import io
import os
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from conformance.bazel import suite as bazel_suite
from conformance.harness import Server, resident_bytes, running, tvix
from conformance.reapi.client import Endpoint, Executed, check_ran, directory_of, fresh, key, shell
from conformance.results import Report
from remote_apis import bytestream_pb2 as bs_pb2
from remote_apis import remote_execution_pb2 as re_pb2

MIB = 1024 * 1024
GIB = 1024 * MIB


def _execute(client: Endpoint, action: re_pb2.Digest) -> tuple[float, Executed]:
    started = time.monotonic()
    done = client.execute(action)
    seconds = time.monotonic() - started
    check_ran(done)
    return seconds, done


def noop_actions(server: Server, rounds: int = 3, count: int = 200, at_once: int = 3) -> str:
    """Actions per second through Execute, each sandboxed, none from the cache; the median of the rounds.

    One client more than two cores have slots keeps all of them busy, and latency still shows an action, not a queue.
    """
    client = Endpoint(server.grpc_address)
    rates, latencies = [], []
    with ThreadPoolExecutor(at_once) as pool:
        for number in range(rounds + 1):
            actions = [client.put_action(re_pb2.Command(arguments=["/bin/true"])) for _ in range(count)]
            started = time.monotonic()
            seconds = [each for each, _ in pool.map(lambda action: _execute(client, action), actions)]
            if number:  # the first round warms the worker up
                rates.append(count / (time.monotonic() - started))
                latencies += seconds
    client.close()
    return (
        f"{statistics.median(rates):.0f} actions/s with {at_once} clients (wanted 60); "
        f"median {statistics.median(latencies) * 1000:.0f} ms under that load"
    )


def latency(server: Server, count: int = 100) -> str:
    """Latency of Execute for one client that waits for each action."""
    client = Endpoint(server.grpc_address)
    actions = [client.put_action(re_pb2.Command(arguments=["/bin/true"])) for _ in range(count)]
    seconds = sorted(_execute(client, action)[0] for action in actions)
    client.close()
    p99 = seconds[int(len(seconds) * 0.99) - 1]
    return f"median {statistics.median(seconds) * 1000:.1f} ms (wanted 60), p99 {p99 * 1000:.1f} ms"


def cached_latency(server: Server, count: int = 200) -> str:
    """Latency of Execute when the action cache answers."""
    client = Endpoint(server.grpc_address)
    action = client.put_action(re_pb2.Command(arguments=["/bin/true"]))
    _execute(client, action)
    seconds = sorted(_execute(client, action)[0] for _ in range(count))
    client.close()
    return f"median {statistics.median(seconds) * 1000:.1f} ms, p99 {seconds[int(count * 0.99) - 1] * 1000:.1f} ms"


def _large_root(client: Endpoint, files: int = 50_000, per_directory: int = 100) -> re_pb2.Directory:
    """Store a tree of that many different files and return its root."""
    marker = fresh(16)
    directories = {}
    for number in range(files // per_directory):
        contents = [marker + b"%08d" % (number * per_directory + index) for index in range(per_directory)]
        names = {f"file-{index:03}": digest for index, digest in enumerate(client.put_many(contents))}
        directories[f"dir-{number:03}"] = client.put(directory_of(names).SerializeToString())
    return directory_of(directories=directories)


def large_input_root(server: Server, rounds: int = 5) -> str:
    """Time until an action with 50,000 input files, of which it reads 20, starts on a worker that has none."""
    client = Endpoint(server.grpc_address)
    starts, fetches, walls = [], [], []
    for _ in range(rounds):
        root = _large_root(client)
        reads = " ".join(f"dir-{number:03}/file-{number % 100:03}" for number in range(0, 500, 25))
        action = client.put_action(shell(f"cat {reads} > /dev/null"), root)
        wall, done = _execute(client, action)
        meta = done.result.execution_metadata
        started = meta.execution_start_timestamp.ToNanoseconds()
        starts.append((started - meta.queued_timestamp.ToNanoseconds()) / 1e6)
        fetches.append((started - meta.input_fetch_start_timestamp.ToNanoseconds()) / 1e6)
        walls.append(wall * 1000)
    client.close()
    return (
        f"command started {statistics.median(starts):.0f} ms after it was queued (wanted 200), "
        f"{statistics.median(fetches):.0f} ms of them to make the root visible; "
        f"{statistics.median(walls):.0f} ms for the whole call"
    )


class MemoryWatch:
    """The highest private resident memory of each process of a server while it is open."""

    def __init__(self, server: Server) -> None:
        self._program = server.running()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.fronts = self._program.find("front") or self._program.tree()[1:]
        self.before = {pid: resident_bytes(pid) for pid in self.fronts}
        self.peak = dict(self.before)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            for pid in self.fronts:
                self.peak[pid] = max(self.peak[pid], resident_bytes(pid))

    def __str__(self) -> str:
        before, peak = max(self.before.values()) / MIB, max(self.peak.values()) / MIB
        return f"at most {peak:.0f} MiB in one front process (wanted 300), {before:.0f} MiB before"


def _gigabyte(seed: bytes, size: int) -> tuple[re_pb2.Digest, Callable[[], Iterator[bytes]]]:
    """Return a blob that is its own (its first MiB is `seed`'s) without holding it in memory."""
    first, rest = hashlib.shake_128(seed).digest(MIB), os.urandom(MIB)

    def pieces() -> Iterator[bytes]:
        yield first
        for _ in range(size // MIB - 1):
            yield rest

    hasher = hashlib.sha256()
    for piece in pieces():
        hasher.update(piece)
    return re_pb2.Digest(hash=hasher.hexdigest(), size_bytes=size), pieces


def _send(address: str, digest: re_pb2.Digest, pieces: Callable[[], Iterator[bytes]]) -> None:
    def requests() -> Iterator[bs_pb2.WriteRequest]:
        offset = 0
        for piece in pieces():
            yield bs_pb2.WriteRequest(
                resource_name=f"uploads/{uuid.uuid4()}/blobs/{key(digest)}" if not offset else "",
                write_offset=offset,
                data=piece,
                finish_write=offset + len(piece) == digest.size_bytes,
            )
            offset += len(piece)

    client = Endpoint(address)
    try:
        client.bytestream.Write(requests(), timeout=600)
    finally:
        client.close()


def _receive(address: str, digest: re_pb2.Digest) -> None:
    client = Endpoint(address)
    try:
        request = bs_pb2.ReadRequest(resource_name=f"blobs/{key(digest)}")
        size = sum(len(reply.data) for reply in client.bytestream.Read(request, timeout=600))
    finally:
        client.close()
    if size != digest.size_bytes:
        raise RuntimeError(f"{size} bytes of {digest.size_bytes}")


def transfer_memory(server: Server, size: int = GIB, at_once: int = 16) -> str:
    """Memory of the front processes while 16 blobs of 1 GiB go up, then 16 come down."""
    blobs = [_gigabyte(fresh(), size) for _ in range(at_once)]
    texts = []
    with ThreadPoolExecutor(at_once) as pool:
        for direction, work in (
            ("up", lambda blob: _send(server.grpc_address, *blob)),
            ("down", lambda blob: _receive(server.grpc_address, blob[0])),
        ):
            started = time.monotonic()
            with MemoryWatch(server) as memory:
                list(pool.map(work, blobs))
            speed = at_once * size / (time.monotonic() - started) / 1e6
            texts.append(f"{direction}: {memory}, {speed:.0f} MB/s through one Python client")
    return "; ".join(texts)


MEASURES: dict[str, Callable[[Server], str]] = {
    "No-op actions": noop_actions,
    "Execute latency": latency,
    "Execute latency, cached": cached_latency,
    "50,000-file input root": large_input_root,
    "Memory, 16 transfers of 1 GiB": transfer_memory,
}


def measure_all(only: str = "") -> str:
    """Start our server, run every measure, return a list in Markdown."""
    lines = []
    with running(tvix) as server:
        for name, measure in MEASURES.items():
            if only.lower() in name.lower():
                try:
                    text = measure(server)
                except Exception as error:
                    text = f"failed: {type(error).__name__}: {str(error)[:200]}"
                lines.append(f"- {name}: {text}.")
                print(lines[-1], flush=True)
    return "\n".join(lines)


def cxx_project() -> str:
    """Build abseil with Bazel: its own sandbox, its --disk_cache, ours cold and from the cache."""
    report = Report(out=io.StringIO())
    bazel_suite.run(report, only=("local", "disk-cache", "remote-cold", "remote-hits", "ratios"))
    notes = {result.case.rpartition("/")[2]: result.note for result in report.results}
    names = {
        "local": "Bazel's local sandboxed build",
        "disk-cache": "rebuilt from its --disk_cache",
        "remote-cold": "remote, cold",
        "remote-hits": "remote, rebuilt from the cache",
        "ratios": "ratios",
    }
    lines = [f"  - {title}: {notes.get(name, 'failed')}" for name, title in names.items()]
    text = "\n".join(["- C++ project, 96 compile actions, wall time:", *lines])
    print(text, flush=True)
    return text
