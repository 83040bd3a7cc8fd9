"""What is done to an open build root before the command runs. Blocking calls."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

from tvix.errors import FailedPrecondition, InvalidInput
from tvix.executor.command import CommandPlan, ProfileChoice
from tvix.executor.interfaces import Profile
from tvix.executor.safe_paths import make_directories, opened_directory, opened_root


class Prepared(NamedTuple):
    """How a prepared root is to be shown."""

    profile: Profile
    own_tmp: bool


def prepare_root(root: Path, plan: CommandPlan, default_profile: ProfileChoice) -> Prepared:
    """Check the working directory, create the directories that outputs need, return how to show the root.

    InvalidInput when the working directory is not in the input tree, FailedPrecondition when a
    directory cannot be made, for instance because a file has its name.
    """
    profile = choose_profile(root, plan, default_profile)
    own_tmp = profile is Profile.INPUT_ROOT and has_own_tmp(root, plan)
    with opened_root(root) as descriptor:
        if plan.working_directory:
            _check_working_directory(descriptor, plan.working_directory)
        for parent in plan.parents:
            try:
                make_directories(descriptor, parent)
            except OSError as error:
                raise FailedPrecondition(f"output folder {parent!r} cannot be made: {error.strerror}") from error
    return Prepared(profile, own_tmp)


def _check_working_directory(root: int, path: str) -> None:
    try:
        with opened_directory(root, path):
            return
    except OSError as error:
        field = "command.working_directory"
        raise InvalidInput(f"{field}: {path!r} is not a directory of the input tree", field=field) from error


def choose_profile(root: Path, plan: CommandPlan, default: ProfileChoice) -> Profile:
    """Return the profile to run under: the action's, else the configured one.

    `auto` takes the input root for a complete file system when it has a `bin` or a `usr`, has a `dev`
    and a `proc` that are empty directories, and the command is found without the working directory
    (absolute, or a bare name): that is how BuildStream, which sends no property, sends its roots.
    """
    choice = plan.profile if plan.profile is not None else default
    if choice != "auto":
        return choice
    program = plan.arguments[0]
    if "/" in program and not program.startswith("/"):
        return Profile.HOST_TOOLS
    is_system = (
        _is_empty_directory(root / "dev")
        and _is_empty_directory(root / "proc")
        and any(os.path.lexists(root / name) for name in ("bin", "usr"))
    )
    return Profile.INPUT_ROOT if is_system else Profile.HOST_TOOLS


def has_own_tmp(root: Path, plan: CommandPlan) -> bool:
    """Return whether the input root's `tmp` holds inputs or is to hold outputs."""
    wanted = any(spec.location == "tmp" or spec.location.startswith("tmp/") for spec in plan.outputs)
    return wanted or (os.path.isdir(root / "tmp") and not _is_empty_directory(root / "tmp"))


def _is_empty_directory(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode) and not os.listdir(path)
    except OSError:
        return False
