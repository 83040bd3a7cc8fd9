"""What an Action and its Command ask of a worker. Pure: no file is looked at here.

Reference: Command, Action and Platform in remote_apis/remote_execution.proto. Output and working
directory paths are made relative to the input root and cleaned; `..` is fine while it stays inside
(BuildStream and siso send such paths). Platform property names are matched without regard to case.

Properties that change how a command runs, the first of a name counting:

    tvix:profile, sandbox-profile   input-root | host-tools | auto
    input-root-is-root    true is input-root
    dockerChrootPath      `.` is input-root (reclient)
    network, dockerNetwork   on true yes 1 bridge host standard | off false no 0 none
    block-network         true: no network (Buildfarm)
    requires-network      true or empty: network
    unixUID, unixGID      ids that the command sees itself under (BuildStream)
    tvix:memory, max-mem, tvix:cpu, max-cores, tvix:processes   limits

Estimates (EstimatedMemory, EstimatedCPU, EstimatedComputeUnits) are wishes to the scheduler and no
limits: a command that takes more than was guessed must not die of it.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.errors import InvalidInput
from tvix.executor.interfaces import Limits, Profile

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""PATH of commands that set none: buck2 sends `sh` and an environment without PATH."""

NODE_PROPERTIES = ("mtime", "unix_mode")
"""The properties that outputs can be asked for, in lower case."""

ProfileChoice = Literal["auto"] | Profile
T = TypeVar("T")


class Expected(enum.Enum):
    """What the client says an output will be."""

    ANY = "output_paths"
    FILE = "output_files"
    DIRECTORY = "output_directories"


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One output that the client wants back."""

    path: str
    """As the client wrote it; the result names it the same way."""
    location: str
    """Relative to the input root, clean; empty for the input root itself."""
    expected: Expected


@dataclass(frozen=True, slots=True)
class CommandPlan:
    """All that a worker has to know to run a command and to collect what it made."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    working_directory: str
    """Relative to the input root, clean; empty for the input root itself."""
    outputs: tuple[OutputSpec, ...]
    parents: tuple[str, ...]
    """Directories to create before the run, each after those above it named here."""
    directory_format: re_pb2.Command.OutputDirectoryFormat.ValueType
    node_properties: frozenset[str]
    profile: ProfileChoice | None
    """None when the client does not say."""
    network: bool | None
    limits: Limits
    """Without `wall_seconds`, which the caller decides."""
    uid: int | None
    gid: int | None
    directories_for_files: bool = False
    """Whether a directory may stand where `output_files` asks for a file, against the letter of the API: Bazel
    before 5 names there what a genrule makes, and takes a directory."""


def plan_command(action: re_pb2.Action, command: re_pb2.Command) -> CommandPlan:
    """Return how to run `command`. InvalidInput names the field and value at fault."""
    if not command.arguments or not command.arguments[0]:
        raise InvalidInput("command.arguments: is empty; it must name a program", field="command.arguments")
    for argument in command.arguments:
        _refuse_nul(argument, "command.arguments")
    working_directory = clean_path("", command.working_directory, "command.working_directory")
    outputs = _outputs(command, working_directory)
    platform = action.platform if action.HasField("platform") else command.platform
    properties = _Properties(platform)
    return CommandPlan(
        arguments=tuple(command.arguments),
        environment=_environment(command),
        working_directory=working_directory,
        outputs=outputs,
        parents=_parents(outputs),
        directory_format=_directory_format(command),
        node_properties=_node_properties(command.output_node_properties),
        profile=properties.profile(),
        network=properties.network(),
        limits=properties.limits(),
        uid=properties.first(_identity, "unixUID"),
        gid=properties.first(_identity, "unixGID"),
    )


def clean_path(base: str, path: str, field: str) -> str:
    """Return `path`, relative to the clean path `base`, as a clean path below the input root.

    InvalidInput names an absolute path and one that leaves the root. `.` segments, doubled and
    trailing slashes are tolerated; the empty result is the root.
    """
    _refuse_nul(path, field)
    if path.startswith("/"):
        raise InvalidInput(f"{field}: {path!r} is absolute; paths are relative to the input root", field=field)
    segments = base.split("/") if base else []
    for segment in path.split("/"):
        if segment == "..":
            if not segments:
                raise InvalidInput(f"{field}: {path!r} leads out of the input root", field=field)
            segments.pop()
        elif segment not in ("", "."):
            segments.append(segment)
    return "/".join(segments)


def _refuse_nul(text: str, field: str) -> None:
    if "\0" in text:
        raise InvalidInput(f"{field}: {text!r} contains a NUL", field=field)


def _environment(command: re_pb2.Command) -> dict[str, str]:
    environment: dict[str, str] = {}
    field = "command.environment_variables"
    for variable in command.environment_variables:
        if not variable.name or "=" in variable.name:
            raise InvalidInput(f"{field}: {variable.name!r} is not a name of a variable", field=field)
        _refuse_nul(variable.name, field)
        _refuse_nul(variable.value, field)
        environment[variable.name] = variable.value
    environment.setdefault("PATH", DEFAULT_PATH)
    return environment


def _outputs(command: re_pb2.Command, working_directory: str) -> tuple[OutputSpec, ...]:
    named: list[tuple[Expected, Iterable[str]]] = [(Expected.ANY, command.output_paths)]
    if not command.output_paths:
        named = [(Expected.FILE, command.output_files), (Expected.DIRECTORY, command.output_directories)]
    specs: dict[str, OutputSpec] = {}
    for expected, paths in named:
        field = f"command.{expected.value}"
        for path in paths:
            location = clean_path(working_directory, path, field)
            if expected is Expected.FILE and not path.strip("/"):
                raise InvalidInput(f"{field}: {path!r} does not name a file", field=field)
            earlier = specs.setdefault(path, OutputSpec(path, location, expected))
            if earlier.expected is not expected:
                raise InvalidInput(f"{field}: {path!r} is in {earlier.expected.value} as well", field=field)
    return tuple(specs.values())


def _parents(outputs: Iterable[OutputSpec]) -> tuple[str, ...]:
    parents = {spec.location.rpartition("/")[0] for spec in outputs}
    return tuple(sorted(parents - {""}))


def _directory_format(command: re_pb2.Command) -> re_pb2.Command.OutputDirectoryFormat.ValueType:
    known = command.output_directory_format in re_pb2.Command.OutputDirectoryFormat.values()
    return command.output_directory_format if known else re_pb2.Command.TREE_ONLY


def _node_properties(names: Iterable[str]) -> frozenset[str]:
    wanted = frozenset(name.lower() for name in names)
    for name in sorted(wanted.difference(NODE_PROPERTIES)):
        field = "command.output_node_properties"
        raise InvalidInput(f"{field}: {name!r} is not supported; supported are mtime, unix_mode", field=field)
    return wanted


class _Properties:
    """Platform properties by lower-case name."""

    def __init__(self, platform: re_pb2.Platform) -> None:
        self._values: dict[str, str] = {}
        for item in platform.properties:
            self._values.setdefault(item.name.lower(), item.value)

    def first(self, convert: Callable[[str], T], *names: str) -> T | None:
        """Return the converted value of the first property that is there; InvalidInput names a bad one."""
        for name in names:
            value = self._values.get(name.lower())
            if value is not None:
                try:
                    return convert(value.strip().lower())
                except (ValueError, KeyError):
                    raise InvalidInput(
                        f"platform property {name}: {value!r} is not understood", field="platform.properties"
                    ) from None
        return None

    def profile(self) -> ProfileChoice | None:
        """Return the profile asked for, None when none is."""
        if self._values.get("dockerchrootpath") == ".":
            return Profile.INPUT_ROOT
        if self.first(_switch, "input-root-is-root"):
            return Profile.INPUT_ROOT
        return self.first(profile_from_text, "tvix:profile", "sandbox-profile")

    def network(self) -> bool | None:
        """Return whether the network is asked for, None when nothing is said."""
        if self.first(_switch, "block-network"):
            return False
        if self.first(lambda value: _switch(value or "true"), "requires-network"):
            return True
        return self.first(_switch, "network", "dockerNetwork")

    def limits(self) -> Limits:
        """Return the limits asked for."""
        return Limits(
            memory_bytes=self.first(parse_size, "tvix:memory", "max-mem"),
            processes=self.first(_positive, "tvix:processes"),
            cpu_millis=self.first(parse_cpu_millis, "tvix:cpu", "max-cores"),
        )


def profile_from_text(text: str) -> ProfileChoice:
    """Return the profile named `input-root`, `host-tools` or `auto`; ValueError for another."""
    return "auto" if text == "auto" else Profile(text)


_SWITCHES = {
    **dict.fromkeys(("on", "true", "yes", "1", "bridge", "host", "standard"), True),
    **dict.fromkeys(("off", "false", "no", "0", "none", ""), False),
}


def _switch(text: str) -> bool:
    return _SWITCHES[text]


def _identity(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32 - 1:
        raise ValueError(text)
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}


def parse_size(text: str) -> int:
    """Return bytes from `512m`, `2GB`, `1.5GiB` or a plain number (units of 1024); ValueError otherwise."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.lower())
    if not match or not float(match[1]):
        raise ValueError(text)
    return int(float(match[1]) * _UNITS[match[2]])


def parse_cpu_millis(text: str) -> int:
    """Return thousandths of a core from `500m`, `2` or `0.5`; ValueError otherwise."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(m?)", text.lower())
    if not match or not float(match[1]):
        raise ValueError(text)
    return int(float(match[1]) * (1 if match[2] else 1000))
