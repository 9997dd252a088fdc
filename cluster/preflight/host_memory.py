"""Whether a run's processes fit the memory of the machine that would start its Ray."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from cluster.manifests.members import teams
from cluster.preflight.checks import starts_ray_here
from cluster.preflight.model_files import read_json
from configs.schema import Config
from learner.families.lookup import find_shape
from learner.memory import GIB


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
