"""Which worker may run what."""

from __future__ import annotations

import pytest

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.errors import InvalidInput
from tvix.executor.platform_policy import (
    Kind,
    PlatformPolicy,
    Property,
    Rule,
    nearest_unmatched,
    parse_number,
    properties_of,
    unmatched,
)

POLICY = PlatformPolicy()


def props(**pairs: str) -> list[Property]:
    return [Property(name.replace("_", "-"), value) for name, value in pairs.items()]


def lacks(wanted: list[Property], offered: list[Property], cpu_millis: int = 0, memory_bytes: int = 0) -> list[str]:
    offer = POLICY.offer(offered, cpu_millis=cpu_millis, memory_bytes=memory_bytes)
    return [name for name, _ in unmatched(POLICY.requirements(wanted), offer)]


@pytest.mark.parametrize(
    ("reason", "wanted", "offered", "missing"),
    [
        ("nothing asked", [], [], []),
        ("reclient writes Linux", props(OSFamily="Linux"), props(OSFamily="linux"), []),
        ("names without case", props(osfamily="linux"), props(OSFamily="Linux"), []),
        ("another system", props(OSFamily="windows"), props(OSFamily="linux"), ["osfamily"]),
        ("a worker that does not say", props(OSFamily="linux"), [], ["osfamily"]),
        ("BuildBuddy's Arch is ISA", props(Arch="amd64"), props(ISA="x86-64"), []),
        ("another machine", props(Arch="arm64"), props(ISA="x86-64"), ["isa"]),
        ("unknown names are exact", props(gpu="a100"), props(gpu="a100"), []),
        ("unknown names are refused", props(gpu="a100"), props(gpu="t4"), ["gpu"]),
        ("values keep their case", props(gpu="A100"), props(gpu="a100"), ["gpu"]),
        ("any value", props(gpu="A100"), props(gpu="*"), []),
        ("the default pool is everywhere", props(Pool="default"), [], []),
        ("another pool is not", props(Pool="big"), [], ["pool"]),
        ("the worker's business", props(container_image="docker://debian", dockerNetwork="off"), [], []),
        ("others' business", props(recycle_runner="true", persistentWorkerKey="abc"), [], []),
        ("BuildStream", props(OSFamily="linux", ISA="x86-64", unixUID="0"), props(OSFamily="linux", ISA="x86-64"), []),
        ("custom resources", [Property("resources:gpu", "2")], [Property("resources:gpu", "4")], []),
        ("too few", [Property("resources:gpu", "5")], [Property("resources:gpu", "4")], ["resources:gpu"]),
        ("our own", [Property("tvix:profile", "input-root")], [], []),
    ],
)
def test_matching(reason: str, wanted: list[Property], offered: list[Property], missing: list[str]) -> None:
    assert lacks(wanted, offered) == missing, reason


def test_a_name_that_stands_twice_must_match_twice() -> None:
    wanted = [Property("feature", "kvm"), Property("feature", "big")]
    assert lacks(wanted, [Property("feature", "kvm")]) == ["feature"]
    assert lacks(wanted, [Property("feature", "big"), Property("feature", "kvm")]) == []


def test_minimums_compare_with_the_machine_and_estimates_do_not() -> None:
    assert lacks(props(min_cores="2"), [], cpu_millis=2000) == []
    assert lacks(props(cores="3"), [], cpu_millis=2000) == ["cpu"]
    assert lacks([Property("memory_kb", "2048")], [], memory_bytes=2**20) == ["memory"]
    assert lacks(props(EstimatedCPU="64", EstimatedMemory="1TB"), [], cpu_millis=1, memory_bytes=1) == []
    requirements = POLICY.requirements(props(EstimatedCPU="500m", EstimatedMemory="2GB"))
    assert (requirements.cpu_millis, requirements.memory_bytes) == (500, 2 * 10**9)


def test_equal_wishes_are_equal_requirements_however_they_are_written() -> None:
    one = POLICY.requirements(props(OSFamily="Linux", Arch="amd64", recycle_runner="true"))
    two = POLICY.requirements(props(ISA="x86-64", osfamily="linux", container_image="x"))
    assert one == two


@pytest.mark.parametrize(
    ("value", "unit", "number"),
    [
        ("2", "cores", 2000),
        ("500m", "cores", 500),
        ("0.5", "cores", 500),
        ("1.0001", "cores", 1001),
        ("7", "bytes", 7),
        ("7B", "bytes", 7),
        ("2GB", "bytes", 2 * 10**9),
        ("2gib", "bytes", 2 * 2**30),
        ("1.5K", "bytes", 1500),
        ("64", "megabytes", 64 * 2**20),
        ("64", "kilobytes", 64 * 1024),
        ("3", "count", 3),
    ],
)
def test_numbers(value: str, unit: str, number: int) -> None:
    assert parse_number("x", value, unit) == number  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "unit"),
    [
        ("", "count"),
        ("-1", "count"),
        ("many", "cores"),
        ("2GB", "cores"),
        ("1m", "count"),
        ("1XB", "bytes"),
        ("1e3", "bytes"),
    ],
)
def test_what_is_no_number_is_refused_by_name_and_value(value: str, unit: str) -> None:
    with pytest.raises(InvalidInput, match=rf"min-mem='{value}'"):
        parse_number("min-mem", value, unit)  # type: ignore[arg-type]


def test_the_nearest_worker_tells_what_lacks() -> None:
    wanted = POLICY.requirements(props(OSFamily="linux", gpu="a100"))
    offers = [POLICY.offer(props(OSFamily="windows")), POLICY.offer(props(OSFamily="linux"))]
    assert nearest_unmatched(wanted, offers) == [Property("gpu", "a100")]
    assert nearest_unmatched(wanted, []) == [Property("gpu", "a100"), Property("osfamily", "linux")]


def test_the_table_can_be_changed() -> None:
    policy = PlatformPolicy({"gpu": Rule(Kind.IGNORE), "OSFamily": Rule(Kind.FORWARD)}, unknown=Rule(Kind.IGNORE))
    assert policy.requirements(props(GPU="x", OSFamily="plan9", colour="red")) == policy.requirements([])


def platform(**pairs: str) -> re_pb2.Platform:
    message = re_pb2.Platform()
    for name, value in pairs.items():
        message.properties.add(name=name, value=value)
    return message


def test_the_actions_platform_wins_and_the_commands_is_the_fallback() -> None:
    command = re_pb2.Command(platform=platform(a="command"))
    assert properties_of(re_pb2.Action(platform=platform(a="action")), command) == [Property("a", "action")]
    assert properties_of(re_pb2.Action(), command) == [Property("a", "command")]


def test_overrides_replace_all_values_of_a_name() -> None:
    action = re_pb2.Action(platform=platform(Pool="one", other="x"))
    found = properties_of(action, re_pb2.Command(), [Property("pool", "two")])
    assert found == [Property("other", "x"), Property("pool", "two")]
