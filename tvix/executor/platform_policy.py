"""Which worker may run which action: platform properties and the table that says what each one means. Pure.

Rivals compare whole property sets, so that one new property of a client breaks a farm. Here every name has a
rule: *exact* (a worker must offer the value), *minimum* (a number the worker must reach, and of which the
action takes its part while it runs), *estimate* (the same, but a wish: it never rules a worker out), *forward*
(the worker reads it), *ignore*. Names are case-insensitive. Names without a rule are exact: an action that
asks for something nobody knows is refused, not run wrongly. Reference: platform.md of the Remote Execution
API, and the properties of BuildBuddy, Buildfarm, reclient, NativeLink and BuildStream.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.errors import InvalidInput

Unit = Literal["count", "bytes", "kilobytes", "megabytes", "cores"]
Resource = Literal["cpu_millis", "memory_bytes"]


class Kind(enum.Enum):
    """What a property means for matching."""

    EXACT = "exact"
    MINIMUM = "minimum"
    ESTIMATE = "estimate"
    FORWARD = "forward"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class Rule:
    """How one property name is treated."""

    kind: Kind
    unit: Unit = "count"
    """Of a minimum or estimate without suffix. `cores` are kept in thousandths."""
    resource: Resource | None = None
    """What the action takes from the worker while it runs."""
    canonical: str = ""
    """The name under which this one is compared, when it is a synonym."""
    fold_case: bool = False
    """Whether values differing in case are equal."""
    synonyms: Mapping[str, str] = field(default_factory=dict)
    """Values (lowercase) that stand for others."""
    anywhere: frozenset[str] = frozenset()
    """Values that every worker satisfies."""


class Property(NamedTuple):
    """One platform property."""

    name: str
    value: str


class Requirements(NamedTuple):
    """What an action needs of a worker. Equal requirements are interchangeable: the queue groups by them."""

    exact: tuple[Property, ...] = ()
    minimum: tuple[tuple[str, int], ...] = ()
    cpu_millis: int = 0
    memory_bytes: int = 0

    def __str__(self) -> str:
        parts = [f"{name}={value}" for name, value in (*self.exact, *self.minimum)]
        return " ".join(parts) or "any"


@dataclass(frozen=True, slots=True)
class Offer:
    """What a worker has, in the form requirements are compared with."""

    values: Mapping[str, frozenset[str]]
    numbers: Mapping[str, int]


_ISA = {
    "amd64": "x86-64",
    "x86_64": "x86-64",
    "x64": "x86-64",
    "aarch64": "arm64",
    "arm64v8": "arm64",
    "arm-a64": "arm64",
}
_IGNORE = Rule(Kind.IGNORE)
_FORWARD = Rule(Kind.FORWARD)
_EXACT = Rule(Kind.EXACT)
_ISA_RULE = Rule(Kind.EXACT, fold_case=True, synonyms=_ISA, canonical="isa")
_POOL_RULE = Rule(Kind.EXACT, anywhere=frozenset({"", "default"}), canonical="pool")

_CPU_MINIMUM = Rule(Kind.MINIMUM, "cores", "cpu_millis", canonical="cpu")
_CPU_ESTIMATE = Rule(Kind.ESTIMATE, "cores", "cpu_millis")


def _memory(kind: Kind, unit: Unit) -> Rule:
    return Rule(kind, unit, "memory_bytes", canonical="memory" if kind is Kind.MINIMUM else "")


def _names(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


DEFAULT_RULES: dict[str, Rule] = {
    "OSFamily": Rule(Kind.EXACT, fold_case=True, canonical="osfamily"),
    "ISA": _ISA_RULE,
    "Arch": _ISA_RULE,
    "cpu_arch": _ISA_RULE,
    "Pool": _POOL_RULE,
    "choose-queue": _POOL_RULE,
    "cores": _CPU_MINIMUM,
    "min-cores": _CPU_MINIMUM,
    "cpus": _CPU_MINIMUM,
    "cpu_count": _CPU_MINIMUM,
    "min-mem": _memory(Kind.MINIMUM, "megabytes"),
    "memory": _memory(Kind.MINIMUM, "bytes"),
    "memory_kb": _memory(Kind.MINIMUM, "kilobytes"),
    "EstimatedCPU": _CPU_ESTIMATE,
    "EstimatedComputeUnits": _CPU_ESTIMATE,
    "EstimatedMemory": _memory(Kind.ESTIMATE, "bytes"),
    "EstimatedFreeDiskBytes": Rule(Kind.ESTIMATE, "bytes"),
    "resources:*": Rule(Kind.MINIMUM),
    "label:*": _EXACT,
    "tvix:*": _FORWARD,
    # What the worker itself acts upon.
    **_names(
        _FORWARD,
        "unixUID unixGID network capability remoteApisSocketPath container-image container-registry-username"
        " container-registry-password workload-isolation-type dockerNetwork dockerUser dockerRunAsRoot dockerInit"
        " dockerRuntime dockerChrootPath dockerPrivileged InputRootAbsolutePath input-root-is-root sandbox-profile"
        " block-network nonroot-workspace env-overrides env-overrides-base64 env-vars extra-args max-mem max-cores"
        " termination-grace-period default-timeout",
    ),
    # How other servers run things; it does not change what an action gives.
    **_names(
        _IGNORE,
        "recycle-runner preserve-workspace clean-workspace-inputs affinity-routing runner-recycling-max-wait"
        " overlayfs-workspace enable-vfs persistent-workers persistentWorkers persistentWorkerKey"
        " persistentWorkerProtocol persistentWorkerCommand supports-workers supports-multiplex-workers"
        " requires-worker-protocol init-dockerd dockerAddCapabilities dockerDropCapabilities dockerSiblingContainers"
        " dockerReuse dockerShmSize dockerUseURandom dockerMountSysFs include-secrets use-self-hosted-executors"
        " hosted-bazel-affinity-key snapshot-key-override snapshot-save-policy snapshot-read-policy retry"
        " skip-resaving-action-snapshots disable-measured-task-size disable-predicted-task-size"
        " linux-sandbox as-nobody fake-hostname tmpfs debug-before-execution debug-after-execution debug-tests-only"
        " skip-sleep time-shift cache-silo gceMachineType jdk-version priority cpu_model kernel_version"
        " requires-network no-remote-cache Machine JavaVersion SubtreeReadOnly",
    ),
}
"""Every property name that clients of other servers are known to send. A name ending in `*` is a prefix."""

_NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
_BYTE_SUFFIXES = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_DEFAULT_FACTOR: dict[Unit, int] = {"count": 1, "bytes": 1, "kilobytes": 1024, "megabytes": 1024**2, "cores": 1000}


def parse_number(name: str, value: str, unit: Unit) -> int:
    """Return a quantity as a whole number (bytes, thousandths of a core, or a count), rounded up.

    Accepts `500m` for cores, and `2GB`, `2GiB`, `2G` for bytes (decimal without the `i`). Raises InvalidInput.
    """
    parsed = _NUMBER.fullmatch(value)
    factor: int | float | None = None
    if parsed:
        factor = _factor(parsed[2].lower(), unit)
    if parsed is None or factor is None:
        raise InvalidInput(f"platform property {name}={value!r} is not a number of {unit}", field="platform")
    return -int(-float(parsed[1]) * factor // 1)


def _factor(suffix: str, unit: Unit) -> int | float | None:
    if not suffix:
        return _DEFAULT_FACTOR[unit]
    if unit == "cores":
        return 1 if suffix == "m" else None
    if unit == "count":
        return None
    if suffix == "b":
        return 1
    base = _BYTE_SUFFIXES.get(suffix[0])
    if base is None or suffix[1:] not in ("", "b", "i", "ib"):
        return None
    return 1024 ** "_kmgt".index(suffix[0]) if "i" in suffix else base


class PlatformPolicy:
    """The table, ready to be applied. `rules` are added to, or replace, the default ones."""

    def __init__(self, rules: Mapping[str, Rule] | None = None, *, unknown: Rule = _EXACT) -> None:
        table = {name.lower(): rule for name, rule in {**DEFAULT_RULES, **(rules or {})}.items()}
        self._prefixes = [(name[:-1], rule) for name, rule in table.items() if name.endswith("*")]
        self._rules = {name: rule for name, rule in table.items() if not name.endswith("*")}
        self._unknown = unknown

    def __repr__(self) -> str:
        return f"<PlatformPolicy {len(self._rules)} names>"

    def rule(self, name: str) -> Rule:
        """Return the rule for a property name."""
        key = name.lower()
        rule = self._rules.get(key)
        if rule is None:
            rule = next((rule for prefix, rule in self._prefixes if key.startswith(prefix)), self._unknown)
        return rule

    def key(self, name: str) -> str:
        """Return the name under which a property is compared."""
        return _key(name, self.rule(name))

    def requirements(self, properties: Iterable[Property]) -> Requirements:
        """Return what an action with these properties needs; InvalidInput when a number is none.

        A name that stands several times must be satisfied in each of its values.
        """
        exact: set[Property] = set()
        minimum: dict[str, int] = {}
        resources: dict[str, int] = {}
        for name, value in properties:
            rule = self.rule(name)
            if rule.kind is Kind.EXACT:
                if value not in rule.anywhere:
                    exact.add(Property(_key(name, rule), _value(value, rule)))
            elif rule.kind in (Kind.MINIMUM, Kind.ESTIMATE):
                number = parse_number(name, value, rule.unit)
                if rule.kind is Kind.MINIMUM:
                    key = _key(name, rule)
                    minimum[key] = max(number, minimum.get(key, 0))
                if rule.resource:
                    resources[rule.resource] = max(number, resources.get(rule.resource, 0))
        return Requirements(tuple(sorted(exact)), tuple(sorted(minimum.items())), **resources)

    def offer(self, properties: Iterable[Property], *, cpu_millis: int = 0, memory_bytes: int = 0) -> Offer:
        """Return what a worker with these properties has. A value `*` satisfies any."""
        values: dict[str, set[str]] = {}
        numbers: dict[str, int] = {}
        if cpu_millis:
            numbers["cpu"] = cpu_millis
        if memory_bytes:
            numbers["memory"] = memory_bytes
        for name, value in properties:
            rule = self.rule(name)
            key = _key(name, rule)
            if rule.kind is Kind.MINIMUM:
                numbers[key] = max(parse_number(name, value, rule.unit), numbers.get(key, 0))
            else:
                values.setdefault(key, set()).add(_value(value, rule))
        return Offer({key: frozenset(found) for key, found in values.items()}, numbers)


def _key(name: str, rule: Rule) -> str:
    return rule.canonical or name.lower()


def _value(value: str, rule: Rule) -> str:
    if rule.fold_case:
        value = value.lower()
    return rule.synonyms.get(value.lower(), value)


def unmatched(requirements: Requirements, offer: Offer) -> list[Property]:
    """Return the requirements that a worker with this offer does not satisfy; empty when it can run the action."""
    missing = [
        wanted for wanted in requirements.exact if not offer.values.get(wanted.name, frozenset()) & {wanted.value, "*"}
    ]
    missing += [
        Property(name, f">={number}") for name, number in requirements.minimum if offer.numbers.get(name, 0) < number
    ]
    return missing


def nearest_unmatched(requirements: Requirements, offers: Iterable[Offer]) -> list[Property]:
    """Return what the best of several workers lacks; all requirements when there are no workers."""
    gaps = [unmatched(requirements, offer) for offer in offers]
    if gaps:
        return min(gaps, key=len)
    return [*requirements.exact, *(Property(name, f">={number}") for name, number in requirements.minimum)]


def properties_of(action: re_pb2.Action, command: re_pb2.Command, overrides: Sequence[Property] = ()) -> list[Property]:
    """Return an action's platform properties.

    Action.platform wins over the deprecated Command.platform, which buck2, goma and old siso still send
    alone. An override replaces all values of its name.
    """
    platform = action.platform if action.platform.properties else command.platform
    replaced = {override.name.lower() for override in overrides}
    kept = [Property(item.name, item.value) for item in platform.properties if item.name.lower() not in replaced]
    return [*kept, *overrides]


def platform_to_properties(platform: re_pb2.Platform) -> list[Property]:
    """Return the properties of a wire message."""
    return [Property(item.name, item.value) for item in platform.properties]
