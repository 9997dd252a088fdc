"""What a run may survive and its user should know before it starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from actors.tools.registry import toolbox_of
from cluster.manifests.members import teams
from cluster.preflight.checks import starts_ray_here
from cluster.preflight.model_files import read_json
from configs.schema import Config
from learner.families.lookup import family_of_folder, find_shape
from learner.memory import GIB

UNITS = {"absolute": "pixels of the picture", "relative": "0 to 1000 of the picture's sides"}


def run_warnings(config: Config) -> Iterator[str]:
    """All of them, for a config whose model folder is valid."""
    for warning in (host_memory_warning(config), coordinates_warning(config)):
        if warning is not None:
            yield warning


def coordinates_warning(config: Config) -> str | None:
    """Why a model may miss with its boxes; None if no tool takes any, or they are as the model was taught.

    A warning, as a model may have been taught others since it was published.
    """
    tools, folder = config.rollout.tools, Path(config.model.path)
    if not any(tool.shows == "region" for tool in toolbox_of(tools).tools):
        return None
    family = family_of_folder(folder)
    if tools.coordinates == family.coordinates:
        return None
    return (
        f"rollout.tools.coordinates={tools.coordinates}: published models of {family.title} give boxes in "
        f"{UNITS[family.coordinates]}; unless this one was taught otherwise, set it to {family.coordinates}"
    )


def host_memory_warning(config: Config) -> str | None:
    """Why the system may kill a process of the run for its memory; None if all fit, or go to other machines.

    A warning, as the need is estimated: of copies of the learner's state, which come and go, all count at once.
    """
    shape = find_shape(read_json(Path(config.model.path) / "config.json"))
    if shape is None or not starts_ray_here():
        return None
    needed = sum(team.minimum * team.member.memory_gib for team in teams(config, shape))
    held = psutil.virtual_memory().total / GIB
    if needed <= held:
        return None
    return (
        f"the run may need {needed:.0f} GiB of host memory, this machine has {held:.0f} and {os.cpu_count()} CPUs, and "
        "the system kills a process when none is left: spread the run over nodes (`visionthink cluster plan`), or set "
        "learner.copy_state=false"
    )
