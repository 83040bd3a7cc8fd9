"""The loads that all servers get, and the table that comes of them."""

from __future__ import annotations

import os
import statistics
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import load
from benchmarks.load import Void, frame
from conformance.harness import Server
from conformance.reapi.client import Endpoint, digest_of, directory_of, fresh, key, unary
from remote_apis import bytestream_pb2 as bs_pb2
from remote_apis import remote_execution_pb2 as re_pb2

API = "/build.bazel.remote.execution.v2"
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Load:
    """One row: what is sent, how it is measured, and what the project wants to reach."""

    name: str
    unit: str
    wanted: dict[str, float]
    """Rival to the ratio that we want at least."""
    measure: Callable[[Server], float]


@dataclass(slots=True)
class Loads:
    """Blobs put into every server alike, and the request bodies that ask for them."""

    folder: Path
    seconds: float
    large_bytes: int = 64 * MIB
    upload_bytes: int = 8 * MIB
    _answers: dict[tuple[str, str], int] = field(default_factory=dict)

    def prepare(self, servers: Sequence[Server]) -> list[Load]:
        """Store the blobs everywhere and return the rows."""
        small = [fresh(1024) for _ in range(100)]
        large = fresh(self.large_bytes)
        action, result = self._action_result(small)
        for server in servers:
            client = Endpoint(server.grpc_address)
            client.put_many(small)
            client.put(large)
            client.put_many([*self._tree_blobs(small), *action[1]])
            client.cache(action[0], result)
            client.close()
        present = [digest_of(data) for data in small]
        absent = [digest_of(fresh()) for _ in range(100)]
        find, grid, casd = re_pb2.FindMissingBlobsRequest, "buildgrid", "casd"
        get_result = re_pb2.GetActionResultRequest(action_digest=action[0])
        return [
            self._unary("FindMissing, 1 digest", f"{API}.ContentAddressableStorage/FindMissingBlobs",
                        find(blob_digests=present[:1]), {grid: 3.0}),
            self._unary("FindMissing, 100 present", f"{API}.ContentAddressableStorage/FindMissingBlobs",
                        find(blob_digests=present), {casd: 1.0}),
            self._unary("FindMissing, 100 absent", f"{API}.ContentAddressableStorage/FindMissingBlobs",
                        find(blob_digests=absent), {casd: 1.0}),
            self._unary("GetActionResult, 24 blobs checked", f"{API}.ActionCache/GetActionResult",
                        get_result, {grid: 4.0}),
            self._read("Read 1 KiB", present[0], {grid: 2.0}),
            self._unary("BatchRead 100 x 1 KiB", f"{API}.ContentAddressableStorage/BatchReadBlobs",
                        re_pb2.BatchReadBlobsRequest(digests=present), {casd: 1.0}),
            self._read_large("Read 64 MiB", digest_of(large), {casd: 2.0}),
            self._write("Write 8 MiB", {casd: 1.0}),
        ]  # fmt: skip

    def _action_result(self, small: Sequence[bytes]) -> tuple[tuple[re_pb2.Digest, list[bytes]], re_pb2.ActionResult]:
        """Return (action digest, blobs to store) and a result of three files and a tree of twenty."""
        tree = self._tree(small)
        command = re_pb2.Command(arguments=["true"]).SerializeToString()
        action = re_pb2.Action(
            command_digest=digest_of(command), input_root_digest=digest_of(b""), salt=fresh()
        ).SerializeToString()
        files = [re_pb2.OutputFile(path=f"out/{n}", digest=digest_of(data)) for n, data in enumerate(small[:3])]
        directory = re_pb2.OutputDirectory(path="tree", tree_digest=digest_of(tree.SerializeToString()))
        metadata = re_pb2.ExecutedActionMetadata(worker="benchmark")
        result = re_pb2.ActionResult(output_files=files, output_directories=[directory], execution_metadata=metadata)
        return (digest_of(action), [command, action]), result

    def _tree(self, small: Sequence[bytes]) -> re_pb2.Tree:
        return re_pb2.Tree(root=directory_of({f"f{n:02}": digest_of(data) for n, data in enumerate(small[3:23])}))

    def _tree_blobs(self, small: Sequence[bytes]) -> list[bytes]:
        return [self._tree(small).SerializeToString()]

    def _body(self, *messages: re_pb2.FindMissingBlobsRequest | bs_pb2.ReadRequest | object) -> Path:
        path = self.folder / f"body-{uuid.uuid4()}"
        path.write_bytes(frame(*messages))  # type: ignore[arg-type]
        return path

    def _unary(self, name: str, method: str, request: object, wanted: dict[str, float]) -> Load:
        body = self._body(request)

        def measure(server: Server) -> float:
            if (name, server.name) not in self._answers:
                self._answers[name, server.name] = _answer_bytes(server, method, body)
            return load.steady(server.grpc_address, method, body, self.seconds, self._answers[name, server.name])

        return Load(name, "req/s", wanted, measure)

    def _read(self, name: str, digest: re_pb2.Digest, wanted: dict[str, float]) -> Load:
        body = self._body(bs_pb2.ReadRequest(resource_name=f"blobs/{key(digest)}"))

        def measure(server: Server) -> float:
            client = Endpoint(server.grpc_address)
            replies = client.bytestream.Read(bs_pb2.ReadRequest(resource_name=f"blobs/{key(digest)}"))
            size = sum(len(frame(reply)) for reply in replies)
            client.close()
            method = "/google.bytestream.ByteStream/Read"
            return load.steady(server.grpc_address, method, body, self.seconds, size)

        return Load(name, "req/s", wanted, measure)

    def _read_large(self, name: str, digest: re_pb2.Digest, wanted: dict[str, float]) -> Load:
        body = self._body(bs_pb2.ReadRequest(resource_name=f"blobs/{key(digest)}"))

        def measure(server: Server) -> float:
            method = "/google.bytestream.ByteStream/Read"
            return load.streamed(server.grpc_address, method, body, 12, digest.size_bytes)

        return Load(name, "MB/s", wanted, measure)

    def _write(self, name: str, wanted: dict[str, float]) -> Load:
        def measure(server: Server) -> float:
            digests, bodies = [], []
            for _ in range(16):
                data = os.urandom(self.upload_bytes)
                digests.append(digest_of(data))
                bodies.append(self._body(*_write_requests(data)))
            try:
                speed = load.uploaded(
                    server.grpc_address, "/google.bytestream.ByteStream/Write", bodies, self.upload_bytes
                )
            finally:
                for body in bodies:
                    body.unlink()
            client = Endpoint(server.grpc_address)
            missing = client.missing(digests)
            client.close()
            if missing:
                raise Void(f"{len(missing)} of {len(digests)} uploads did not arrive")
            return speed

        return Load(name, "MB/s", wanted, measure)


def _write_requests(data: bytes) -> Iterator[bs_pb2.WriteRequest]:
    name = f"uploads/{uuid.uuid4()}/blobs/{key(digest_of(data))}"
    for start in range(0, len(data), MIB):
        yield bs_pb2.WriteRequest(
            resource_name=name if not start else "",
            write_offset=start,
            data=data[start : start + MIB],
            finish_write=start + MIB >= len(data),
        )


def _answer_bytes(server: Server, method: str, body: Path) -> int:
    """Ask once as a real client and return the length of the framed answer."""
    client = Endpoint(server.grpc_address)
    try:
        return 5 + len(unary(client.channel, method, body.read_bytes()[5:]))
    finally:
        client.close()


@dataclass(frozen=True, slots=True)
class Row:
    """The medians of one load."""

    load: Load
    medians: dict[str, float]
    """Server name to the median; absent when it failed."""
    failures: dict[str, str]

    def ratio(self, rival: str) -> float | None:
        """Return ours divided by theirs, or None when either is missing."""
        if "tvix" in self.medians and rival in self.medians:
            return self.medians["tvix"] / self.medians[rival]
        return None


def measure_row(row: Load, servers: Sequence[Server], rounds: int) -> Row:
    """Run a load on all servers in turn, several times, so that a busy moment hits all alike."""
    samples: dict[str, list[float]] = {}
    failures: dict[str, str] = {}
    for _ in range(rounds):
        for server in servers:
            if server.name not in failures:
                try:
                    samples.setdefault(server.name, []).append(row.measure(server))
                except Exception as error:
                    failures[server.name] = f"{type(error).__name__}: {str(error)[:160]}"
    medians = {name: statistics.median(values) for name, values in samples.items() if values and name not in failures}
    return Row(row, medians, failures)


def to_markdown(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Return the table, ours first, ratios last."""
    rivals = [name for name in names if name != "tvix"]
    head = ["", *names, *[f"tvix / {name}" for name in rivals], "wanted"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        cells = [f"{row.load.name}, {row.load.unit}"]
        cells += [f"{row.medians[name]:,.0f}" if name in row.medians else "failed" for name in names]
        for rival in rivals:
            ratio = row.ratio(rival)
            cells.append("-" if ratio is None else f"**{ratio:.2f}**" if rival in row.load.wanted else f"{ratio:.2f}")
        cells.append(", ".join(f"{wanted:g} x {name}" for name, wanted in row.load.wanted.items()))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
