"""From what a command left behind to an ActionResult and the blobs it names.

The files are another's, and maybe hostile: they are read by descriptor, without following symlinks and
never outside the input root (safe_paths.py), with bounds on depth and number. First everything is
looked at and hashed, in threads; then what the store lacks is stored. Regular files, directories and
symlinks can be outputs; sockets, pipes and devices are refused.

Reference: ActionResult, OutputDirectory, OutputSymlink in remote_apis/remote_execution.proto.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import EMPTY, FUNCTIONS, Digest, DigestFunction, digest_of, digest_to_proto
from tvix.cas.directory import encode_directory, tree_from_directories
from tvix.cas.interfaces import CHUNK_BYTES, BlobStore
from tvix.errors import FailedPrecondition, ResourceExhausted
from tvix.executor.command import CommandPlan, Expected, OutputSpec
from tvix.executor.safe_paths import open_below, opened_directory, opened_root

SMALL_FILE_BYTES = 256 * 1024
"""Files up to this size are stored in batches, larger ones as streams."""
PARALLEL_FILE_BYTES = 1024 * 1024
"""Files from this size on are hashed side by side."""
BATCH_BYTES = 4 * 1024 * 1024
MAX_HELD_BYTES = 64 * 1024 * 1024
"""Contents of small files kept in memory between hashing and storing; beyond, they are read again."""
MAX_ENTRIES = 2_000_000
MAX_DEPTH = 400


@dataclass(frozen=True, slots=True)
class FileSource:
    """Where a blob to be stored comes from."""

    location: str
    """Relative to the input root."""
    contents: bytes | None
    """What is in it, when it is small and was kept."""


@dataclass(slots=True)
class Collected:
    """Outputs looked at and hashed, not stored yet."""

    result: re_pb2.ActionResult = field(default_factory=re_pb2.ActionResult)
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    """Directories, Trees and small files."""
    files: dict[Digest, str] = field(default_factory=dict)
    """Locations of the other files."""
    mismatches: list[str] = field(default_factory=list)
    """Outputs that are of another type than output_files or output_directories say."""


async def store_outputs(blobs: BlobStore, root: Path, collected: Collected) -> None:
    """Store what `scan_outputs` found, as far as the store lacks it; raises the first refusal."""
    await store_blobs(blobs, collected.blobs)
    await _store_files(blobs, root, collected.files)


async def store_blobs(blobs: BlobStore, contents: dict[Digest, bytes]) -> None:
    """Store what is small, in batches; raises the first refusal."""
    if len(contents) > 8:
        absent = await blobs.find_missing(contents.keys())
        contents = {digest: data for digest, data in contents.items() if digest in absent}
    for batch in _batches(contents.items()):
        for error in await blobs.put_many(batch):
            if error is not None:
                raise error


def _batches(items: Iterable[tuple[Digest, bytes]]) -> Iterable[list[tuple[Digest, bytes]]]:
    batch: list[tuple[Digest, bytes]] = []
    size_bytes = 0
    for digest, data in items:
        if batch and size_bytes + len(data) > BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
        batch.append((digest, data))
        size_bytes += len(data)
    if batch:
        yield batch


async def _store_files(blobs: BlobStore, root: Path, files: dict[Digest, str]) -> None:
    if not files:
        return
    for digest in await blobs.find_missing(files.keys()):
        await blobs.write(digest, _file_chunks(root, files[digest]))


async def _file_chunks(root: Path, location: str) -> AsyncIterator[bytes]:
    with opened_root(root) as root_descriptor:
        descriptor = _open_regular(root_descriptor, location)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk


def _open_regular(root: int, location: str) -> int:
    parent, _, name = location.rpartition("/")
    with opened_directory(root, parent) as directory:
        return _open_entry(directory, name, os.O_RDONLY)


def scan_outputs(root: Path, plan: CommandPlan, function: DigestFunction) -> Collected:
    """Look for the plan's outputs below `root`, hash them and make the result that names them.

    Outputs that are not there are left out. FailedPrecondition for what cannot be an output,
    ResourceExhausted for too many or too deep. Reads files: not for the event loop.
    """
    with opened_root(root) as descriptor:
        large = _large_files(descriptor, plan)
        scan = _Scan(descriptor, plan, function, _hash_all(descriptor, large, function) if len(large) > 1 else {})
        for spec in plan.outputs:
            scan.add(spec)
    return scan.collected


def _large_files(root: int, plan: CommandPlan) -> list[str]:
    """Return the locations of files that are worth hashing side by side; what cannot be read is left out."""
    found: list[str] = []
    pending = [spec.location for spec in plan.outputs]
    while pending and len(found) < MAX_ENTRIES:
        location = pending.pop()
        # Opened by its whole path, so that no descriptor is held; deeper than this the scan refuses.
        if location.count("/") > MAX_DEPTH:
            continue
        with contextlib.suppress(OSError), opened_directory(root, location.rpartition("/")[0]) as parent:
            name = location.rpartition("/")[2] or "."
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode) and status.st_size >= PARALLEL_FILE_BYTES:
                found.append(location)
            elif stat.S_ISDIR(status.st_mode):
                directory = _open_entry(parent, name, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    found += _look_into(directory, location, pending)
                finally:
                    os.close(directory)
    return list(dict.fromkeys(found))


def _look_into(directory: int, location: str, pending: list[str]) -> list[str]:
    """Return the large files of a directory, and put its subdirectories on `pending`."""
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            place = f"{location}/{entry.name}" if location else entry.name
            if entry.is_dir(follow_symlinks=False):
                pending.append(place)
            elif entry.is_file(follow_symlinks=False) and entry.stat().st_size >= PARALLEL_FILE_BYTES:
                found.append(place)
    return found


def _hash_all(root: int, locations: list[str], function: DigestFunction) -> dict[str, Digest]:
    """Hash files in parallel: the hash functions let go of the interpreter's lock."""

    def hash_one(location: str) -> Digest:
        with os.fdopen(_open_regular(root, location), "rb", buffering=0) as file:
            return _digest_of_file(file, function)

    with ThreadPoolExecutor(max_workers=min(len(locations), os.cpu_count() or 1)) as pool:
        return dict(zip(locations, pool.map(hash_one, locations), strict=True))


def _digest_of_file(file: IO[bytes], function: DigestFunction) -> Digest:
    hasher = FUNCTIONS[function].new()
    size_bytes = 0
    while chunk := file.read(CHUNK_BYTES):
        hasher.update(chunk)
        size_bytes += len(chunk)
    return Digest(function, hasher.hexdigest(), size_bytes)


class _Scan:
    """One pass over the outputs of an action."""

    def __init__(self, root: int, plan: CommandPlan, function: DigestFunction, hashed: Mapping[str, Digest]) -> None:
        self._root = root
        self._hashed = hashed
        """Digests that are known already, by location."""
        self._directories_for_files = plan.directories_for_files
        self._properties = plan.node_properties
        self._function = function
        self._with_directories = plan.directory_format != re_pb2.Command.TREE_ONLY
        self._entries = 0
        self._held_bytes = 0
        self._directories: dict[Digest, bytes] = {}
        self.collected = Collected()

    def add(self, spec: OutputSpec) -> None:
        """Add one output to the result, if it is there."""
        if not spec.location:
            self._add_directory(spec, self._root, os.fstat(self._root))
            return
        parent, _, name = spec.location.rpartition("/")
        try:
            with opened_directory(self._root, parent) as directory:
                self._add_entry(spec, directory, name)
        except (FileNotFoundError, NotADirectoryError):
            return  # an output that was not made is no error
        except OSError as error:
            raise FailedPrecondition(f"output {spec.path!r} cannot be read: {error.strerror}") from error

    def _add_entry(self, spec: OutputSpec, directory: int, name: str) -> None:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            self._add_symlink(spec, directory, name, status)
        elif stat.S_ISDIR(status.st_mode):
            descriptor = _open_entry(directory, name, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self._add_directory(spec, descriptor, status)
            finally:
                os.close(descriptor)
        elif self._is_expected(spec, Expected.FILE, "a directory", "a file"):
            node = self._file(directory, name, spec.location, status)
            self.collected.result.output_files.add(
                path=spec.path,
                digest=node.digest,
                is_executable=node.is_executable,
                node_properties=node.node_properties if node.HasField("node_properties") else None,
            )

    def _is_expected(self, spec: OutputSpec, found: Expected, wanted: str, text: str) -> bool:
        if spec.expected in (Expected.ANY, found) or (self._directories_for_files and found is Expected.DIRECTORY):
            return True
        self.collected.mismatches.append(f"output {spec.path!r} in {spec.expected.value} is {text}, not {wanted}")
        return False

    def _add_symlink(self, spec: OutputSpec, directory: int, name: str, status: os.stat_result) -> None:
        """Name a symlink in the lists that old and new clients look into."""
        result = self.collected.result
        symlink = re_pb2.OutputSymlink(
            path=spec.path,
            target=_text(os.readlink(name, dir_fd=directory), f"target of symlink {spec.location!r}"),
            node_properties=self._node_properties(status),
        )
        expected = spec.expected
        if expected is Expected.ANY:
            result.output_symlinks.append(symlink)
            expected = Expected.DIRECTORY if self._leads_to_directory(spec.location) else Expected.FILE
        # Clients from before output_symlinks look here (remote-apis#130).
        legacy = result.output_directory_symlinks if expected is Expected.DIRECTORY else result.output_file_symlinks
        legacy.append(symlink)

    def _leads_to_directory(self, location: str) -> bool:
        try:
            os.close(open_below(self._root, location, os.O_PATH | os.O_DIRECTORY))
        except OSError:
            return False
        return True

    def _add_directory(self, spec: OutputSpec, descriptor: int, status: os.stat_result) -> None:
        if not self._is_expected(spec, Expected.DIRECTORY, "a file", "a directory"):
            return
        root = self._directory(descriptor, spec.location, status, 0)
        tree = tree_from_directories(root, self._directories)
        tree_digest = digest_of(tree, self._function)
        self.collected.blobs[tree_digest] = tree
        output = self.collected.result.output_directories.add(
            path=spec.path, tree_digest=digest_to_proto(tree_digest), is_topologically_sorted=True
        )
        if self._with_directories:
            output.root_directory_digest.CopyFrom(digest_to_proto(root))
            self.collected.blobs |= {digest: data for digest, data in self._directories.items() if data}

    def _directory(self, descriptor: int, location: str, status: os.stat_result, depth: int) -> Digest:
        """Return the digest of a directory, having looked at all below it."""
        if depth > MAX_DEPTH:
            raise ResourceExhausted(f"output directory {location[:200]!r}… is more than {MAX_DEPTH} levels deep")
        message = re_pb2.Directory(node_properties=self._node_properties(status))
        names = sorted(os.listdir(descriptor))
        self._entries += len(names)
        if self._entries > MAX_ENTRIES:
            raise ResourceExhausted(f"the outputs have more than {MAX_ENTRIES} files; the last seen is in {location!r}")
        for name in names:
            self._add_node(message, descriptor, name, f"{location}/{name}" if location else name, depth)
        data = encode_directory(message)
        digest = digest_of(data, self._function)
        self._directories[digest] = data
        return digest

    def _add_node(self, message: re_pb2.Directory, directory: int, name: str, location: str, depth: int) -> None:
        _text(name, f"name of output {location!r}")
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            child = _open_entry(directory, name, os.O_RDONLY | os.O_DIRECTORY)
            try:
                digest = self._directory(child, location, status, depth + 1)
            finally:
                os.close(child)
            message.directories.add(name=name, digest=digest_to_proto(digest))
        elif stat.S_ISLNK(status.st_mode):
            target = _text(os.readlink(name, dir_fd=directory), f"target of symlink {location!r}")
            message.symlinks.add(name=name, target=target, node_properties=self._node_properties(status))
        else:
            message.files.append(self._file(directory, name, location, status))

    def _file(self, directory: int, name: str, location: str, status: os.stat_result) -> re_pb2.FileNode:
        """Return the node of a regular file, having hashed it and noted where its bytes are."""
        if not stat.S_ISREG(status.st_mode):
            raise FailedPrecondition(
                f"output {location!r} is {_kind(status.st_mode)}; "
                "only regular files, directories and symlinks can be outputs"
            )
        digest = self._hash(directory, name, location, status.st_size)
        return re_pb2.FileNode(
            name=name,
            digest=digest_to_proto(digest),
            is_executable=bool(status.st_mode & 0o100),
            node_properties=self._node_properties(status),
        )

    def _hash(self, directory: int, name: str, location: str, size_bytes: int) -> Digest:
        if not size_bytes:
            return EMPTY[self._function]
        with os.fdopen(_open_entry(directory, name, os.O_RDONLY), "rb", buffering=0) as file:
            if size_bytes <= SMALL_FILE_BYTES and self._held_bytes < MAX_HELD_BYTES:
                data = file.read()
                digest = digest_of(data, self._function)
                self._held_bytes += len(data)
                self.collected.blobs[digest] = data
                return digest
            digest = self._hashed.get(location) or _digest_of_file(file, self._function)
        self.collected.files[digest] = location
        return digest

    def _node_properties(self, status: os.stat_result) -> re_pb2.NodeProperties | None:
        if not self._properties:
            return None
        properties = re_pb2.NodeProperties()
        if "mtime" in self._properties:
            properties.mtime.FromNanoseconds(status.st_mtime_ns)
        if "unix_mode" in self._properties:
            properties.unix_mode.value = stat.S_IMODE(status.st_mode)
        return properties


def _open_entry(directory: int, name: str, flags: int) -> int:
    """Open an entry that is not a symlink; one without read permission for its owner gets it."""
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=directory)
    except PermissionError:
        os.chmod(name, 0o700 if flags & os.O_DIRECTORY else 0o600, dir_fd=directory)
        return os.open(name, flags, dir_fd=directory)


def _text(name: str, what: str) -> str:
    """Return a name if it can stand in a message; FailedPrecondition otherwise."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise FailedPrecondition(f"{what} is not UTF-8: {os.fsencode(name)!r}") from None
    return name


def _kind(mode: int) -> str:
    kinds: Sequence[tuple[int, str]] = (
        (stat.S_IFIFO, "a named pipe"),
        (stat.S_IFSOCK, "a socket"),
        (stat.S_IFCHR, "a character device"),
        (stat.S_IFBLK, "a block device"),
    )
    return dict(kinds).get(stat.S_IFMT(mode), "of an unknown type")
