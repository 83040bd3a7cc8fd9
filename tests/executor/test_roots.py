"""What is done to a root before the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from remote_apis import remote_execution_pb2 as re_pb2
from tvix.errors import FailedPrecondition, InvalidInput
from tvix.executor.command import CommandPlan, ProfileChoice, plan_command
from tvix.executor.interfaces import Profile
from tvix.executor.roots import choose_profile, has_own_tmp, prepare_root


def plan(program: str = "sh", profile: str = "", **fields: Any) -> CommandPlan:
    command = re_pb2.Command(arguments=[program], **fields)
    if profile:
        command.platform.properties.add(name="tvix:profile", value=profile)
    return plan_command(re_pb2.Action(), command)


@pytest.mark.parametrize(
    ("folders", "program", "expected"),
    [
        (["bin", "dev", "proc"], "sh", Profile.INPUT_ROOT),
        (["usr", "dev", "proc", "tmp"], "/usr/bin/make", Profile.INPUT_ROOT),
        (["usr", "dev", "proc"], "bin/tool", Profile.HOST_TOOLS),
        (["bin", "dev/x", "proc"], "sh", Profile.HOST_TOOLS),
        (["bin", "dev"], "sh", Profile.HOST_TOOLS),
        (["dev", "proc"], "sh", Profile.HOST_TOOLS),
        ([], "sh", Profile.HOST_TOOLS),
    ],
)
def test_auto_recognises_root_file_systems(tmp_path: Path, folders: list[str], program: str, expected: Profile) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    assert choose_profile(tmp_path, plan(program), "auto") is expected


@pytest.mark.parametrize(
    ("asked", "default", "expected"),
    [
        ("", Profile.INPUT_ROOT, Profile.INPUT_ROOT),
        ("host-tools", Profile.INPUT_ROOT, Profile.HOST_TOOLS),
        ("input-root", "auto", Profile.INPUT_ROOT),
        ("auto", Profile.INPUT_ROOT, Profile.HOST_TOOLS),
    ],
)
def test_what_the_action_says_wins(tmp_path: Path, asked: str, default: ProfileChoice, expected: Profile) -> None:
    assert choose_profile(tmp_path, plan(profile=asked), default) is expected


def test_own_tmp(tmp_path: Path) -> None:
    assert not has_own_tmp(tmp_path, plan(output_paths=["tmpfile"]))
    assert has_own_tmp(tmp_path, plan(output_paths=["tmp/f"]))
    assert has_own_tmp(tmp_path, plan(output_paths=["tmp"]))
    (tmp_path / "tmp").mkdir()
    assert not has_own_tmp(tmp_path, plan())
    (tmp_path / "tmp" / "input").write_text("")
    assert has_own_tmp(tmp_path, plan())


def test_folders_for_outputs_are_made(tmp_path: Path) -> None:
    prepare_root(tmp_path, plan(output_paths=["a/b/c", "d"]), "auto")
    assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a" / "b" / "c").exists()
    assert not (tmp_path / "d").exists()


def test_working_directory_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    for name in ("absent", "f"):
        with pytest.raises(InvalidInput, match=f"working_directory: '{name}' is not a directory"):
            prepare_root(tmp_path, plan(working_directory=name, output_paths=["x/y"]), "auto")


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(FailedPrecondition, match="output folder 'f/g' cannot be made: Not a directory"):
        prepare_root(tmp_path, plan(output_paths=["f/g/h"]), "auto")
