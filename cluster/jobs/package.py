"""What a job takes along of the folder it is submitted from, and how its command reads on the cluster. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from configs.schema import Config

MIB = 1 << 20
STAYS_HERE = (".git", ".venv", "venv", "runs", "data", "models")
"""Environments, and folders that the configs name: read where the config says, never uploaded."""
EXCLUDES = (
    *(f"/{name}" for name in STAYS_HERE),
    "__pycache__",
    "*.pyc",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    "*.key",
    "*.pem",
    ".env",
)
"""Patterns as in .gitignore: no bulk and no secrets. Ray leaves out what .gitignore and .rayignore name as well."""
KEY_FILE = "judge.llm.api_key_file"
PATH_SETTINGS = (
    "run.dir",
    "model.path",
    "data.train",
    "data.heldout",
    "judge.cache",
    KEY_FILE,
)
"""Settings whose value may lie in what stays here."""
RESULTS = ("run.dir", "judge.cache", KEY_FILE)
"""Settings whose value must not lie in the job's folder."""
START = "cluster/jobs/start.sh"
"""Finds the interpreter of the cluster's environment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """What would be uploaded."""

    entries: tuple[tuple[str, int], ...]
    """Files and folders at the top with their bytes, the largest first."""

    @property
    def num_bytes(self) -> int:
        return sum(size for _, size in self.entries)


def size_problem(package: Package, folder: Path, limit: int) -> str | None:
    """The line for a folder that Ray would not take; names what is largest in it."""
    if package.num_bytes <= limit:
        return None
    largest = ", ".join(f"{name} ({size / MIB:.0f} MiB)" for name, size in package.entries[:3])
    return (
        f"{folder} has {package.num_bytes / MIB:.0f} MiB to upload, Ray takes {limit / MIB:.0f} MiB: the largest are "
        f"{largest}; move them out of the folder, or list them in .rayignore"
    )


def entrypoint(arguments: Sequence[str]) -> str:
    """The shell command of a job: `visionthink` with these arguments, by the interpreter of the cluster."""
    return f"exec sh {START} {shlex.join(arguments)}"


def stays_here(path: str) -> bool:
    """Whether a relative path lies in what is not uploaded, or outside of the folder."""
    parts = Path(path).parts
    return (_is_relative(path) and parts[0] in (*STAYS_HERE, "..")) or path.startswith("~")


def absolute_settings(config: Config, folder: Path) -> list[str]:
    """Overrides that name by absolute paths what is not uploaded: a job works in a folder of its own, soon removed.

    The run's folder and the judge's cache are results, so they always get one; a cache under `~` is the job's own.
    """
    keys = (*PATH_SETTINGS, "judge.llm.model") if "cluster" in config.judge.chain else PATH_SETTINGS
    values = {key: str(attrgetter(key)(config)) for key in keys}
    if values.get("judge.cache", "").startswith("~"):
        del values["judge.cache"]
    named = {
        key: value for key, value in values.items() if stays_here(value) or (key in RESULTS and _is_relative(value))
    }
    return [f"{key}={folder / Path(value).expanduser()}" for key, value in named.items()]


def absolute_arguments(arguments: Sequence[str], folder: Path) -> list[str]:
    """The arguments, with absolute paths for what is not uploaded: `report runs/tiny`, a key's file."""
    return [_absolute_argument(argument, folder) for argument in arguments]


def _absolute_argument(argument: str, folder: Path) -> str:
    name, separator, value = argument.rpartition("=")
    is_key = name == KEY_FILE and _is_relative(value)
    is_path = not separator or name.startswith("--")
    if is_key or (is_path and stays_here(value) and (folder / Path(value).expanduser()).exists()):
        return f"{name}{separator}{folder / Path(value).expanduser()}"
    return argument


def key_files(arguments: Sequence[str]) -> list[str]:
    """Patterns for files with keys that a command names: they are read where they lie, and go nowhere."""
    values = [argument.removeprefix(f"{KEY_FILE}=") for argument in arguments if argument.startswith(f"{KEY_FILE}=")]
    return [f"/{Path(value).as_posix()}" for value in values if _is_relative(value)]


def _is_relative(path: str) -> bool:
    return bool(path) and not Path(path).expanduser().is_absolute()
