"""What an ActionResult from a client must be like. Pure.

Output paths are relative to the command's working directory and may hold `..` (BuildStream, siso), as
long as they stay below the input root.
"""

from __future__ import annotations

from collections.abc import Iterator

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.cas.digest import Digest, digest_from_proto, function_to_wire
from tvix.errors import InvalidInput


def check_action_result(result: re_pb2.ActionResult, action_digest: Digest, working_directory: str) -> None:
    """Raise InvalidInput naming the first field that is not as it should be."""
    for field, path in _paths(result):
        _check_path(field, path, working_directory)
    function_value = function_to_wire(action_digest.function)
    for field, message in _digests(result):
        digest_from_proto(message, function_value, field=field)


def _paths(result: re_pb2.ActionResult) -> Iterator[tuple[str, str]]:
    for index, output in enumerate(result.output_files):
        yield f"action_result.output_files[{index}].path", output.path
    for index, directory in enumerate(result.output_directories):
        yield f"action_result.output_directories[{index}].path", directory.path
    for name in ("output_symlinks", "output_file_symlinks", "output_directory_symlinks"):
        for index, symlink in enumerate(getattr(result, name)):
            yield f"action_result.{name}[{index}].path", symlink.path
            if not symlink.target:
                raise InvalidInput(f"action_result.{name}[{index}].target: empty", field=f"action_result.{name}.target")


def _check_path(field: str, path: str, working_directory: str) -> None:
    # An output directory may be the working directory itself, whose path is empty.
    if not path and "output_directories" not in field:
        raise InvalidInput(f"{field}: empty", field=field)
    if path.startswith("/"):
        raise InvalidInput(f"{field}: {path!r} is absolute", field=field)
    depth = 0
    for segment in [*working_directory.split("/"), *path.split("/")]:
        if segment == "..":
            depth -= 1
        elif segment not in ("", "."):
            depth += 1
        if depth < 0:
            raise InvalidInput(f"{field}: {path!r} leads out of the input root", field=field)


def _digests(result: re_pb2.ActionResult) -> Iterator[tuple[str, re_pb2.Digest]]:
    for index, output in enumerate(result.output_files):
        yield f"action_result.output_files[{index}].digest", output.digest
    for index, directory in enumerate(result.output_directories):
        field = f"action_result.output_directories[{index}]"
        if not directory.HasField("tree_digest") and not directory.HasField("root_directory_digest"):
            raise InvalidInput(f"{field}: has neither tree_digest nor root_directory_digest", field=field)
        if directory.HasField("tree_digest"):
            yield f"{field}.tree_digest", directory.tree_digest
        if directory.HasField("root_directory_digest"):
            yield f"{field}.root_directory_digest", directory.root_directory_digest
    if result.HasField("stdout_digest"):
        yield "action_result.stdout_digest", result.stdout_digest
    if result.HasField("stderr_digest"):
        yield "action_result.stderr_digest", result.stderr_digest
