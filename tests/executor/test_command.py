"""From Action and Command to a plan; every refusal names field and value."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.errors import InvalidInput
from tvix.executor.command import (
    DEFAULT_PATH,
    CommandPlan,
    Expected,
    clean_path,
    parse_cpu_millis,
    parse_size,
    plan_command,
)
from tvix.executor.interfaces import Limits, Profile


def plan(*arguments: str, properties: dict[str, str] | None = None, **fields: Any) -> CommandPlan:
    platform = re_pb2.Platform(
        properties=[re_pb2.Platform.Property(name=name, value=value) for name, value in (properties or {}).items()]
    )
    return plan_command(re_pb2.Action(platform=platform), re_pb2.Command(arguments=arguments or ["x"], **fields))


@pytest.mark.parametrize(
    ("base", "path", "expected"),
    [
        ("", "", ""),
        ("", ".", ""),
        ("", "a/./b//c/", "a/b/c"),
        ("a/b", "", "a/b"),
        ("a/b", "..", "a"),
        ("a/b", "../../c", "c"),
        ("a/b", "../..", ""),
        ("a/b/c/d", "../../../../buildstream-install", "buildstream-install"),
        ("", "a/../b", "b"),
    ],
)
def test_clean_path(base: str, path: str, expected: str) -> None:
    assert clean_path(base, path, "field") == expected


@pytest.mark.parametrize(
    ("path", "reason"),
    [("..", "leads out"), ("a/../../b", "leads out"), ("/a", "is absolute"), ("a\0", "contains a NUL")],
)
def test_clean_path_refuses(path: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason) as caught:
        clean_path("", path, "command.output_paths")
    assert caught.value.field == "command.output_paths"
    assert repr(path) in str(caught.value)


@given(st.lists(st.sampled_from(["a", "b", "..", ".", ""])), st.lists(st.sampled_from(["a", "b"])))
def test_clean_paths_never_leave_the_root(segments: list[str], base: list[str]) -> None:
    try:
        cleaned = clean_path("/".join(base), "/".join(segments), "f")
    except InvalidInput:
        return
    assert all(part not in ("..", ".") for part in cleaned.split("/"))
    assert not cleaned.startswith("/")
    assert "//" not in cleaned


def test_output_paths_win() -> None:
    outputs = plan(output_paths=["a/b", "c"], output_files=["d"], output_directories=["e"]).outputs
    assert [(spec.path, spec.expected) for spec in outputs] == [("a/b", Expected.ANY), ("c", Expected.ANY)]


def test_deprecated_outputs_keep_their_type() -> None:
    outputs = plan(output_files=["d"], output_directories=["e", ""]).outputs
    assert [(spec.path, spec.expected) for spec in outputs] == [
        ("d", Expected.FILE),
        ("e", Expected.DIRECTORY),
        ("", Expected.DIRECTORY),
    ]


def test_parents_are_the_leading_directories_only() -> None:
    made = plan(working_directory="w", output_paths=["a/b/c", "d", "../x/y", "../z"]).parents
    assert made == ("w", "w/a/b", "x")


def test_path_is_given_when_absent_only() -> None:
    assert plan().environment == {"PATH": DEFAULT_PATH}
    variables = [re_pb2.Command.EnvironmentVariable(name="PATH", value="")]
    assert plan(environment_variables=variables).environment == {"PATH": ""}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arguments": [""]}, "command.arguments: is empty"),
        ({"arguments": ["a\0b"]}, "command.arguments: 'a\\x00b' contains a NUL"),
        ({"output_paths": ["../x"]}, "command.output_paths: '../x' leads out of the input root"),
        ({"output_files": ["/x"]}, "command.output_files: '/x' is absolute"),
        ({"output_files": [""]}, "command.output_files: '' does not name a file"),
        ({"output_files": ["x"], "output_directories": ["x"]}, "command.output_directories: 'x' is in output_files"),
        ({"working_directory": "/w"}, "command.working_directory: '/w' is absolute"),
        ({"output_node_properties": ["owner"]}, "command.output_node_properties: 'owner' is not supported"),
        (
            {"environment_variables": [re_pb2.Command.EnvironmentVariable(name="A=B")]},
            "command.environment_variables: 'A=B' is not a name",
        ),
    ],
)
def test_refusals_name_field_and_value(fields: dict[str, Any], message: str) -> None:
    fields = {"arguments": ["x"], **fields}
    with pytest.raises(InvalidInput) as caught:
        plan_command(re_pb2.Action(), re_pb2.Command(**fields))
    assert str(caught.value).startswith(message)


def test_no_arguments_at_all() -> None:
    with pytest.raises(InvalidInput, match=r"command\.arguments: is empty"):
        plan_command(re_pb2.Action(), re_pb2.Command())


def test_platform_of_the_action_wins_and_the_commands_is_the_fallback() -> None:
    on = re_pb2.Platform(properties=[re_pb2.Platform.Property(name="network", value="on")])
    command = re_pb2.Command(arguments=["x"], platform=on)
    assert plan_command(re_pb2.Action(), command).network is True
    assert plan_command(re_pb2.Action(platform=re_pb2.Platform()), command).network is None


@pytest.mark.parametrize(
    ("properties", "field", "value"),
    [
        ({}, "profile", None),
        ({"TVIX:Profile": "input-root"}, "profile", Profile.INPUT_ROOT),
        ({"tvix:profile": "auto"}, "profile", "auto"),
        ({"sandbox-profile": "host-tools"}, "profile", Profile.HOST_TOOLS),
        ({"input-root-is-root": "true"}, "profile", Profile.INPUT_ROOT),
        ({"dockerChrootPath": "."}, "profile", Profile.INPUT_ROOT),
        ({}, "network", None),
        ({"network": "on"}, "network", True),
        ({"dockerNetwork": "off"}, "network", False),
        ({"dockernetwork": "Bridge"}, "network", True),
        ({"requires-network": ""}, "network", True),
        ({"network": "on", "block-network": "true"}, "network", False),
        ({"unixUID": "0", "unixGID": "5"}, "uid", 0),
        ({"unixUID": "0", "unixGID": "5"}, "gid", 5),
        ({"max-mem": "2GB", "max-cores": "2"}, "limits", Limits(memory_bytes=2 << 30, cpu_millis=2000)),
        ({"tvix:processes": "9"}, "limits", Limits(processes=9)),
        ({"EstimatedMemory": "2GB", "EstimatedCPU": "500m"}, "limits", Limits()),
    ],
)
def test_platform_properties(properties: dict[str, str], field: str, value: object) -> None:
    assert getattr(plan(properties=properties), field) == value


@pytest.mark.parametrize(
    "properties",
    [{"network": "maybe"}, {"unixUID": "-1"}, {"unixGID": "staff"}, {"tvix:profile": "vm"}, {"max-mem": "much"}],
)
def test_bad_properties_are_named(properties: dict[str, str]) -> None:
    ((name, value),) = properties.items()
    with pytest.raises(InvalidInput, match=f"platform property {name}: '{value}' is not understood"):
        plan(properties=properties)


def test_quantities() -> None:
    assert [parse_size(text) for text in ("1", "1k", "2MB", "1.5GiB")] == [1, 1024, 2 << 20, 3 << 29]
    assert [parse_cpu_millis(text) for text in ("2", "0.5", "250m")] == [2000, 500, 250]
    for bad in ("", "0", "-1", "1x", "1.m"):
        with pytest.raises(ValueError, match=f"^{re.escape(bad)}$"):
            parse_size(bad)
