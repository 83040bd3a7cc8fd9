"""Generates the Python stubs beside the .proto files: `python -m remote_apis.generate [--check]`.

Needs grpcio-tools and mypy-protobuf. With --check nothing is written; the exit code tells whether
the committed stubs are what the .proto files give.
"""

import filecmp
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def generate(destination: Path) -> list[Path]:
    """Write the stubs of every .proto file below `destination` and return their paths."""
    import grpc_tools
    from google.rpc import status_pb2
    from grpc_tools import protoc

    sources = sorted(f"remote_apis/{path.name}" for path in HERE.glob("*.proto"))
    common_protos = Path(status_pb2.__file__).parent.parent.parent
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    # The package ships this file under another name than the one it registers.
    operations = destination / "imports" / "google" / "longrunning" / "operations.proto"
    operations.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(common_protos / "google" / "longrunning" / "operations_proto.proto", operations)
    arguments = [
        "protoc",
        f"-I{destination / 'imports'}",
        f"-I{HERE.parent}",
        f"-I{common_protos}",
        f"-I{well_known}",
        f"--python_out={destination}",
        f"--grpc_python_out={destination}",
        f"--mypy_out=quiet:{destination}",
        f"--mypy_grpc_out=quiet:{destination}",
        *sources,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; see the messages above")
    return sorted((destination / "remote_apis").glob("*_pb2*"))


def stale_stubs() -> list[str]:
    """Return the names of committed stubs that differ from freshly generated ones."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = generate(Path(scratch))
        wanted = {path.name for path in fresh}
        stale = [
            path.name
            for path in fresh
            if not (HERE / path.name).exists() or not filecmp.cmp(path, HERE / path.name, shallow=False)
        ]
        stale += [path.name for path in HERE.glob("*_pb2*") if path.name not in wanted]
    return sorted(stale)


def main() -> None:
    """Generate, or with --check compare."""
    if "--check" not in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as scratch:
            for path in generate(Path(scratch)):
                shutil.copyfile(path, HERE / path.name)
        return
    stale = stale_stubs()
    if stale:
        raise SystemExit(f"stale stubs: {', '.join(stale)}; run python -m remote_apis.generate")


if __name__ == "__main__":
    main()
