"""Writers that note what was acknowledged, a server that is killed under them, and a look at what is there then."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc

from conformance.harness import Server, scratch_folder, tvix
from conformance.reapi.client import (
    CALL_SECONDS,
    Endpoint,
    check,
    check_ran,
    digest_of,
    finish,
    fresh,
    key,
    metadata_of,
    shell,
)
from conformance.results import Report
from remote_apis import bytestream_pb2 as bs_pb2
from remote_apis import remote_execution_pb2 as re_pb2

ROUNDS = 4
PIECE = 256 * 1024


class Writer(threading.Thread):
    """Writes blobs and action results until it is told to stop or the server is gone."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self._address = address
        self.stopped = threading.Event()
        self.blobs: dict[str, bytes] = {}
        self.actions: list[re_pb2.Digest] = []
        self.unfinished: list[re_pb2.Digest] = []

    def run(self) -> None:
        """Write, and note what was acknowledged."""
        client = Endpoint(self._address)
        try:
            while not self.stopped.is_set():
                self._write_some(client)
        except grpc.RpcError:
            pass
        finally:
            client.close()

    def _write_some(self, client: Endpoint) -> None:
        small = [fresh(size) for size in (50, 3000, 20_000)]
        for digest, data in zip(client.put_many(small), small, strict=True):
            self.blobs[key(digest)] = data
        large = fresh(3_000_000)
        self.unfinished.append(digest_of(large))
        client.write(
            client.upload_name(digest_of(large)), [large[at : at + PIECE] for at in range(0, len(large), PIECE)]
        )
        self.unfinished.pop()
        self.blobs[key(digest_of(large))] = large
        output = re_pb2.OutputFile(path="f", digest=digest_of(large))
        action = client.put_action(shell("true"))
        client.cache(action, re_pb2.ActionResult(output_files=[output], stdout_raw=b"x"))
        self.actions.append(action)


class Scenarios:
    """One server on one state folder."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def acknowledged(self) -> str:
        """What was acknowledged before a kill -9 of everything is there after the next start."""
        blobs = actions = 0
        for number in range(ROUNDS):
            writers = [Writer(self.server.grpc_address) for _ in range(3)]
            for writer in writers:
                writer.start()
            time.sleep(0.7 + 0.3 * number)
            left = self.server.kill()
            for writer in writers:
                writer.stopped.set()
                writer.join(CALL_SECONDS)
            check(not left, f"outlived the server: {left}")
            self.server.start()
            for writer in writers:
                self._verify(writer)
                blobs += len(writer.blobs)
                actions += len(writer.actions)
        check(blobs, "nothing was written")
        return f"{blobs} blobs and {actions} results over {ROUNDS} kills"

    def _verify(self, writer: Writer) -> None:
        client = Endpoint(self.server.grpc_address)
        try:
            digests = [digest_of(data) for data in writer.blobs.values()]
            missing = client.missing(digests)
            check(not missing, f"{len(missing)} of {len(digests)} acknowledged blobs are gone")
            for name, data in writer.blobs.items():
                check(client.read(f"blobs/{name}") == data, f"blob {name} differs")
            for action in writer.actions:
                check(client.cached(action) is not None, "an acknowledged action result is gone")
            for digest in writer.unfinished:
                if not client.missing([digest]):
                    check(len(client.read_blob(digest)) == digest.size_bytes, "a half blob is served")
        finally:
            client.close()

    def partial_upload(self) -> str:
        """An upload cut by the kill is taken up again afterwards, wherever the server says."""
        client = Endpoint(self.server.grpc_address)
        data = fresh(4_000_000)
        name = client.upload_name(digest_of(data))
        hold = threading.Event()

        def half() -> Iterator[bs_pb2.WriteRequest]:
            yield bs_pb2.WriteRequest(resource_name=name, data=data[:2_000_000])
            hold.wait(10)

        call = client.bytestream.Write.future(half(), timeout=CALL_SECONDS)
        time.sleep(0.3)
        self.server.kill()
        hold.set()
        call.cancel()
        client.close()
        self.server.start()
        client = Endpoint(self.server.grpc_address)
        check(client.missing([digest_of(data)]), "a half blob is visible")
        query = bs_pb2.QueryWriteStatusRequest(resource_name=name)
        offset = client.bytestream.QueryWriteStatus(query, timeout=CALL_SECONDS).committed_size
        client.write(name, [data[offset:]], offset=offset)
        check(client.read_blob(digest_of(data)) == data, "the blob differs")
        client.close()
        return f"taken up at {offset}"

    def _running_action(self, client: Endpoint, seconds: int) -> str:
        stream = client.start(client.put_action(shell(f"sleep {seconds}; echo whole")), seconds=120)
        for operation in stream:
            if metadata_of(operation).stage == re_pb2.ExecutionStage.EXECUTING:
                return str(operation.name)
        raise AssertionError("the action ended before it ran")

    def _wait_anew(self, name: str) -> None:
        client = Endpoint(self.server.grpc_address)
        request = re_pb2.WaitExecutionRequest(name=name)
        done = finish(client.execution.WaitExecution(request, timeout=60))
        check_ran(done)
        check(client.stdout(done.result) == b"whole\n", "stdout differs")
        client.close()

    def running_action(self) -> str:
        """An action that runs while everything is killed: WaitExecution by its name brings its end afterwards."""
        client = Endpoint(self.server.grpc_address)
        name = self._running_action(client, 2)
        client.close()
        left = self.server.kill()
        check(not left, f"outlived the server: {left}")
        self.server.start()
        started = time.monotonic()
        self._wait_anew(name)
        return f"{time.monotonic() - started:.1f} s after the start"

    def finished_operation(self) -> None:
        """A finished operation can be asked for after a restart."""
        client = Endpoint(self.server.grpc_address)
        done = client.execute(client.put_action(shell("echo whole"), do_not_cache=True))
        client.close()
        self.server.stop()
        self.server.start()
        self._wait_anew(done.operations[-1].name)

    def _part_killed(self, word: str) -> str:
        client = Endpoint(self.server.grpc_address)
        name = self._running_action(client, 3)
        program = self.server.running()
        victims = program.find(word)
        check(victims, f"no process {word}")
        started = time.monotonic()
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        strays = program.strays()
        check(not strays, f"left behind: {strays}")
        client.close()
        deadline = time.monotonic() + 20
        while True:
            try:
                self._wait_anew(name)
                break
            except grpc.RpcError as error:
                check(time.monotonic() < deadline, f"WaitExecution still fails: {error}")
                time.sleep(0.2)
        return f"{time.monotonic() - started:.1f} s until the action of 3 s was done"

    def worker(self) -> str:
        """The worker is killed under an action: it runs again, and its processes are gone."""
        return self._part_killed("tvix.server.worker")

    def fuse(self) -> str:
        """The FUSE process is killed under an action: it runs to its end, at once or again."""
        return self._part_killed("fuse_process")

    def scheduler(self) -> str:
        """The scheduler is killed under an action: clients reconnect and get its end."""
        return self._part_killed("tvix.server.scheduler")

    def fronts(self) -> str:
        """The front processes are killed: clients reconnect."""
        return self._part_killed("tvix.server.front")

    def all(self) -> list[tuple[str, Callable[[], str | None]]]:
        """Return the scenarios in order."""
        return [
            ("acknowledged", self.acknowledged),
            ("partial-upload", self.partial_upload),
            ("running-action", self.running_action),
            ("finished-operation", self.finished_operation),
            ("worker", self.worker),
            ("fuse", self.fuse),
            ("scheduler", self.scheduler),
            ("fronts", self.fronts),
        ]


def run(report: Report, make: Callable[[Path], Server] = tvix, only: tuple[str, ...] = ()) -> None:
    """Run the scenarios against a server of its own."""
    with scratch_folder("conformance-crash") as folder:
        (folder / "state").mkdir()
        server = make(folder / "state")
        try:
            if not report.run("crash/server", lambda: server.start()):
                return
            scenarios = Scenarios(server)
            for name, scenario in scenarios.all():
                if not only or name in only:
                    report.run(f"crash/{name}", scenario)
                    if server.program is None:
                        server.start()
        finally:
            server.stop()
