"""Our wire definitions beside independent, compiled ones: those in the BuildGrid wheel (a dev dependency).

BuildGrid's stubs cannot be imported beside ours, since both register the same names; the serialized file
descriptors are taken out of their source instead.
"""

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from remote_apis import (
    bytestream_pb2,
    remote_asset_pb2,
    remote_execution_pb2,
    remote_logstream_pb2,
    semver_pb2,
)

FILES: dict[str, tuple[Any, str]] = {
    "remote execution": (remote_execution_pb2, "build/bazel/remote/execution/v2/remote_execution"),
    "remote asset": (remote_asset_pb2, "build/bazel/remote/asset/v1/remote_asset"),
    "log stream": (remote_logstream_pb2, "build/bazel/remote/logstream/v1/remote_logstream"),
    "byte stream": (bytestream_pb2, "google/bytestream/bytestream"),
    "semver": (semver_pb2, "build/bazel/semver/semver"),
}

NEWER: dict[str, dict[str, str]] = {
    "remote execution": {
        "2.5": "ExecuteOperationMetadata.digest_function",
        "2.9": "ExecuteRequest.inline_output_files ExecuteRequest.inline_stderr ExecuteRequest.inline_stdout",
        "2.12": """
            CacheCapabilities.max_cas_blob_size_bytes DigestFunction.Value.GITSHA1
            CacheCapabilities.split_blob_support CacheCapabilities.splice_blob_support
            CacheCapabilities.fast_cdc_2020_params CacheCapabilities.rep_max_cdc_params
            FastCdc2020Params FastCdc2020Params.avg_chunk_size_bytes FastCdc2020Params.seed
            RepMaxCdcParams RepMaxCdcParams.min_chunk_size_bytes RepMaxCdcParams.horizon_size_bytes
            ChunkingFunction ChunkingFunction.Value.UNKNOWN
            ChunkingFunction.Value.FAST_CDC_2020 ChunkingFunction.Value.REP_MAX_CDC
            ContentAddressableStorage.SplitBlob() ContentAddressableStorage.SpliceBlob()
            SplitBlobRequest SplitBlobRequest.instance_name SplitBlobRequest.blob_digest
            SplitBlobRequest.digest_function SplitBlobRequest.chunking_function
            SplitBlobResponse SplitBlobResponse.chunk_digests SplitBlobResponse.chunking_function
            SpliceBlobRequest SpliceBlobRequest.instance_name SpliceBlobRequest.blob_digest
            SpliceBlobRequest.chunk_digests SpliceBlobRequest.digest_function SpliceBlobRequest.chunking_function
            SpliceBlobResponse SpliceBlobResponse.blob_digest
        """,
    },
    "remote asset": {
        "2.10": """
            FetchBlobRequest.digest_function FetchBlobResponse.digest_function
            FetchDirectoryRequest.digest_function FetchDirectoryResponse.digest_function
            PushBlobRequest.digest_function PushDirectoryRequest.digest_function
        """,
    },
}
"""What BuildGrid's copy does not have yet, by the release of the remote-apis repository that brought it."""


def foreign_descriptor(path: str) -> descriptor_pb2.FileDescriptorProto:
    """Return the descriptor in a stub of BuildGrid's, without running the stub."""
    spec = importlib.util.find_spec("buildgrid")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "_protos" / f"{path}_pb2.py").read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "AddSerializedFile":
            return descriptor_pb2.FileDescriptorProto.FromString(ast.literal_eval(node.args[0]))
    raise AssertionError(f"no descriptor in {path}")


def facts(descriptor: descriptor_pb2.FileDescriptorProto) -> dict[str, Any]:
    """Return all that matters on the wire, by dotted name."""
    found: dict[str, Any] = {"package": descriptor.package}
    for message in descriptor.message_type:
        found.update(_message_facts(message, message.name))
    for enum in descriptor.enum_type:
        found.update(_enum_facts(enum, enum.name))
    for service in descriptor.service:
        for method in service.method:
            found[f"{service.name}.{method.name}()"] = (
                method.input_type,
                method.output_type,
                method.client_streaming,
                method.server_streaming,
            )
    return found


def _message_facts(message: descriptor_pb2.DescriptorProto, name: str) -> Iterator[tuple[str, Any]]:
    yield name, "message"
    for field in message.field:
        oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
        yield f"{name}.{field.name}", (field.number, field.type, field.label, field.type_name, oneof)
    for nested in message.nested_type:
        yield from _message_facts(nested, f"{name}.{nested.name}")
    for enum in message.enum_type:
        yield from _enum_facts(enum, f"{name}.{enum.name}")


def _enum_facts(enum: descriptor_pb2.EnumDescriptorProto, name: str) -> Iterator[tuple[str, Any]]:
    for value in enum.value:
        yield f"{name}.{value.name}", value.number


def our_facts(module: Any) -> dict[str, Any]:
    descriptor = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(descriptor)
    return facts(descriptor)


@pytest.mark.parametrize("name", FILES)
def test_nothing_of_theirs_is_missing_or_different(name: str) -> None:
    module, path = FILES[name]
    ours = our_facts(module)
    theirs = facts(foreign_descriptor(path))
    assert {key: ours.get(key) for key in theirs} == theirs


@pytest.mark.parametrize("name", FILES)
def test_what_only_we_have_is_newer(name: str) -> None:
    module, path = FILES[name]
    ours = set(our_facts(module))
    theirs = set(facts(foreign_descriptor(path)))
    assert ours - theirs == set(" ".join(NEWER.get(name, {}).values()).split())


def test_committed_stubs_are_fresh() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "remote_apis.generate", "--check"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=False,
        # The generator's plug-ins lie beside the interpreter, which need not be on the path.
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    assert result.returncode == 0, result.stderr
