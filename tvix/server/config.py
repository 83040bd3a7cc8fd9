"""The server's configuration: one TOML file, every option of which has a default.

Options on the command line win over the file. Unknown keys are errors. The descriptions below are the
manual: `tvix config example` prints them as a commented file, docs/config.md holds the same.
"""

from __future__ import annotations

import difflib
import os
import re
import textwrap
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from tvix.errors import InvalidInput
from tvix.server.address import Address, parse_address, refuse_strangers
from tvix.server.state import StateDir, default_state_dir

_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate(("K", "M", "G", "T"), start=1)
    for suffix, base in (("", 1024), ("iB", 1024), ("B", 1000))
}


def parse_size(value: object) -> object:
    """Return the bytes that `10 GiB`, `500MB` or a plain number means; ValueError otherwise."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
    if not match or match[2] not in _UNITS:
        raise ValueError('write a size as a number of bytes or as for example "100 GiB"')
    return int(float(match[1]) * _UNITS[match[2]])


def _address(value: object) -> Address:
    if isinstance(value, str):
        try:
            return parse_address(value)
        except InvalidInput as error:
            raise ValueError(str(error)) from error
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return Address(str(value[0]), int(value[1]))
    raise ValueError('write an address as "HOST:PORT"')


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]
Listen = Annotated[Address, BeforeValidator(_address), PlainSerializer(str, when_used="always")]
Seconds = Annotated[float, Field(ge=0, le=10 * 365 * 86400)]


class Section(BaseModel):
    """One table of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, hide_input_in_errors=False)


class ServerSection(Section):
    """Addresses, folders and processes."""

    grpc: Listen = Field(default=Address("127.0.0.1", 8980), description="Where all gRPC services are served.")
    http: Listen = Field(
        default=Address("127.0.0.1", 8981),
        description="Where /healthz, /metrics and Bazel's HTTP cache protocol (/ac/, /cas/) are served.",
    )
    state_dir: Path = Field(
        default_factory=default_state_dir,
        description="Where everything is kept that survives a restart. One server per folder. The default is "
        "$TVIX_STATE_DIR, or tvix below $XDG_STATE_HOME, or ~/.local/state/tvix.",
    )
    fronts: int = Field(
        default_factory=lambda: max(1, min(4, _cpus())),
        ge=1,
        le=64,
        description="How many processes answer calls; they share the two ports. The default is the number of "
        "CPUs, at most 4.",
    )
    insecure: bool = Field(
        default=False,
        description="Allow addresses that other machines can reach. There is neither TLS nor an authenticator yet: "
        "everybody who can reach the server may then read and replace what it stores and run programs as its user.",
    )
    drain_seconds: Seconds = Field(
        default=30.0,
        description="How long running actions and open calls get to finish when the server is told to stop.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="What is logged, to stderr."
    )


class StoreSection(Section):
    """The content-addressed store on disk."""

    max_size: Size = Field(
        default=100 * 2**30,
        description="Blobs beyond this many bytes in all are evicted, those unused for longest first.",
    )
    min_free: Size = Field(
        default=2 * 2**30, description="Blobs are also evicted when less than this is left free on the file system."
    )
    fsync: Literal["never", "interval", "always"] = Field(
        default="interval",
        description="When blobs are flushed to the disk. No process's death loses anything acknowledged under any of "
        "these; a power cut loses nothing with always (slow), the last seconds with interval, half a minute with "
        "never. What was lost is found at the next start.",
    )
    compress: bool = Field(default=False, description="Keep blobs compressed with zstd on disk: more room, less speed.")


class ExecutionSection(Section):
    """Running actions."""

    enabled: bool = Field(default=True, description="Serve Execution at all; false makes this a cache only.")
    default_timeout_seconds: Seconds = Field(default=3600.0, description="The time limit of actions that name none.")
    max_timeout_seconds: Seconds = Field(
        default=86400.0, description="Actions that ask for a longer time limit than this are refused."
    )
    max_attempts: int = Field(
        default=3, ge=1, le=100, description="How often an action is tried when workers vanish while they run it."
    )
    result_retention_seconds: Seconds = Field(
        default=3600.0, description="How long finished operations can still be asked for (WaitExecution, GetOperation)."
    )
    platform: Mapping[str, Literal["exact", "minimum", "ignore", "forward"]] = Field(
        default_factory=dict,
        description="How a platform property of an action is matched with what workers offer, by name: exact (a "
        "worker must offer this very value), minimum (a number that a worker must offer at least), ignore (no "
        "matter), forward (no matter for the choice, but the worker is told). Adds to the built-in "
        "table; see docs/operations.md.",
    )


class AssetsSection(Section):
    """Remote Asset: content by URI."""

    fetch_hosts: tuple[str, ...] = Field(
        default=("*",),
        description="Hosts that may be fetched from, as shell patterns; with none, only what was pushed is found.",
    )


class WorkerSection(Section):
    """The worker of this machine, part of the server."""

    slots: int = Field(
        default_factory=_cpus,
        ge=0,
        le=4096,
        description="How many actions the built-in worker runs at a time; 0 for no built-in worker. The default is the "
        "number of CPUs.",
    )
    sandbox: Literal["auto", "bubblewrap", "oci", "none"] = Field(
        default="auto",
        description="What keeps actions apart: bubblewrap, oci (crun or runc) or none; auto takes the first that "
        "works.",
    )
    build_root: Literal["auto", "fuse", "copy"] = Field(
        default="auto",
        description="How input trees appear: fuse (files are fetched when they are first read), copy (all are fetched "
        "before the start); auto takes fuse where it works.",
    )
    profile: Literal["auto", "host-tools", "input-root"] = Field(
        default="auto",
        description="What actions that do not say see as their file system: host-tools (the host's system folders, "
        "read-only, and their inputs), input-root (their inputs as /), or auto: input-root for input trees that hold a "
        "root file system.",
    )
    network: bool = Field(default=False, description="Whether actions that do not say may use the network.")
    max_memory: Size = Field(default=0, ge=0, description="The most memory that one action may use; 0 for no limit.")
    max_processes: int = Field(default=0, ge=0, description="The most processes of one action; 0 for no limit.")
    max_cpu_millis: int = Field(
        default=0, ge=0, description="The most CPU time of one action, in thousandths of a CPU; 0 for no limit."
    )
    cgroup_parent: str = Field(
        default="auto",
        description="Where below /sys/fs/cgroup the control groups are made that enforce these limits and those that "
        "actions ask for. auto: tvix, when the server runs as root, and only for actions that have a limit; a name: "
        "for every action, so that all peak figures are of the whole process tree; empty: nowhere, and limits other "
        "than time are not enforced.",
    )
    platform: Mapping[str, str | list[str]] = Field(
        default_factory=dict,
        description='Platform properties that the worker offers besides OSFamily and ISA, for example pool = "small".',
    )


class Config(Section):
    """The whole file."""

    server: ServerSection = Field(default_factory=ServerSection)
    store: StoreSection = Field(default_factory=StoreSection)
    execution: ExecutionSection = Field(default_factory=ExecutionSection)
    assets: AssetsSection = Field(default_factory=AssetsSection)
    worker: WorkerSection = Field(default_factory=WorkerSection)

    @property
    def state(self) -> StateDir:
        """The layout of the state folder."""
        return StateDir(self.server.state_dir.expanduser().absolute())


def load_config(path: Path | None = None, overrides: Mapping[str, Mapping[str, object]] | None = None) -> Config:
    """Return the configuration of a file, if any, with `overrides` by section and key on top.

    Raises InvalidInput that names the file, the key, the value and what to do about it.
    """
    document = _read(path) if path else {}
    for section, values in (overrides or {}).items():
        table = document.setdefault(section, {})
        if isinstance(table, dict):
            table.update(values)
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        where = str(path) if path else "configuration"
        raise InvalidInput("\n".join(f"{where}: {_explain(problem)}" for problem in error.errors())) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: not UTF-8 text: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{path}: not TOML: {error}") from error


def _explain(problem: Mapping[str, Any]) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return _explain_unknown(location)
    message = str(problem["msg"]).removeprefix("Value error, ")
    shown = repr(problem["input"])
    return f"{key} = {shown if len(shown) <= 80 else shown[:79] + '…'}: {message}"


def _explain_unknown(location: list[str]) -> str:
    section, key = location[:-1], location[-1]
    model: type[BaseModel] = Config
    for part in section:
        annotation = model.model_fields[part].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        model = annotation
    known = list(model.model_fields)
    close = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
    return f"{'.'.join(location)}: no such option; {hint}"


def example() -> str:
    """Return a commented TOML file with every option at its default."""
    lines = ["# Every option of the server, at its default. All may be left out.", ""]
    for name, section in Config.model_fields.items():
        model = section.annotation
        assert isinstance(model, type)
        assert issubclass(model, Section)
        lines += [f"# {model.__doc__}", f"[{name}]"]
        for key, info in model.model_fields.items():
            lines += textwrap.wrap(info.description or "", 100, initial_indent="# ", subsequent_indent="# ")
            lines += [f"# {key} = {_default_text(key, info.get_default(call_default_factory=True))}", ""]
    return "\n".join(lines)


_SHOWN_DEFAULTS = {"state_dir": '"~/.local/state/tvix"', "fronts": "2", "slots": "2"}
"""What depends on the machine and its user, so that the example is the same everywhere."""


def _default_text(key: str, value: object) -> str:
    if key in _SHOWN_DEFAULTS:
        return _SHOWN_DEFAULTS[key]
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, tuple) and not isinstance(value, Address):
        return f"[{', '.join(_default_text('', item) for item in value)}]"
    if key in {"max_size", "min_free"} and isinstance(value, int):
        return f'"{value // 2**30} GiB"'
    return f'"{value}"' if isinstance(value, (str, Address)) else str(value)


def check_config(path: Path) -> Config:
    """Return the configuration of a file that would be served as it stands; raises as starting would."""
    config = load_config(path)
    if not config.server.insecure:
        refuse_strangers("server.grpc", config.server.grpc)
        refuse_strangers("server.http", config.server.http)
    return config
