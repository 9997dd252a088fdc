"""What a job uploads of its folder, and its command on the cluster. Pure."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from configs.schema import Config

MIB = 1 << 20
NOT_UPLOADED = (".git", ".venv", "venv", "runs", "data", "models")
"""Environments, and folders used by the configs: read from their paths, never uploaded."""
LARGE = (
    *(f"/{name}" for name in NOT_UPLOADED),
    "__pycache__",
    "*.pyc",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
)
"""Patterns as in .gitignore for large files. Ray also excludes what .gitignore and .rayignore list."""
SECRETS = (
    *("*.key", "*.pem", "*.p12", "*.pfx", "*.token", "auth_token"),
    *(".env", ".env.*", ".netrc", ".git-credentials", ".pypirc", "credentials.json"),
    *(f"id_{kind}*" for kind in ("rsa", "dsa", "ecdsa", "ed25519")),
    *(".ssh", ".aws", ".kube", ".gnupg"),
)
"""Names under which keys commonly lie, in any folder. They are read in place and never uploaded."""
EXCLUDES = (*LARGE, *SECRETS)
KEY_FILE = "judge.llm.api_key_file"
PATH_SETTINGS = (
    "run.dir",
    "train.checkpoint_dir",
    "model.path",
    "data.train",
    "data.heldout",
    "judge.cache",
    KEY_FILE,
)
"""Settings whose path may be in a folder that is not uploaded."""
RESULTS = ("run.dir", "train.checkpoint_dir", "judge.cache", KEY_FILE)
"""Settings whose path must not be in the job's temporary folder."""
START = "cluster/jobs/start.sh"
"""Finds the interpreter of the cluster's environment."""
PACKAGE_PREFIX = "_ray_pkg_"
"""Of the folder that Ray unpacks an upload into."""
MARK_VARIABLE = "VISIONTHINK_SUBMIT_MARK"
"""In a job's environment: a file that the submitter left in the run folder, which the job must see there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """Contents and size of an upload."""

    entries: tuple[tuple[str, int], ...]
    """Top-level files and folders with their bytes, largest first."""

    @property
    def num_bytes(self) -> int:
        return sum(size for _, size in self.entries)


def size_problem(package: Package, folder: Path, limit: int) -> str | None:
    """Message for a folder too large for Ray; names its largest entries."""
    if package.num_bytes <= limit:
        return None
    largest = ", ".join(f"{name} ({size / MIB:.0f} MiB)" for name, size in package.entries[:3])
    return (
        f"{folder} has {package.num_bytes / MIB:.0f} MiB to upload, more than Ray's limit of {limit / MIB:.0f} "
        f"MiB: the largest are {largest}; move them out of the folder, or list them in .rayignore"
    )


def entrypoint(arguments: Sequence[str]) -> str:
    """The shell command of a job: `visionthink` with these arguments, by the interpreter of the cluster."""
    return f"exec sh {START} {shlex.join(arguments)}"


def is_not_uploaded(path: str) -> bool:
    """Whether a relative path is in an excluded folder or outside of the project. The job itself expands `~`."""
    return _is_relative(path) and Path(path).parts[0:1] in [(name,) for name in (*NOT_UPLOADED, "..")]


def absolute_settings(config: Config, folder: Path) -> list[str]:
    """Overrides with absolute paths for what is not uploaded, since a job runs in a temporary folder.

    The run folder and the judge cache are results and always get one; a cache under `~` is the job's own.
    """
    keys = (*PATH_SETTINGS, "judge.llm.model") if "cluster" in config.judge.chain else PATH_SETTINGS
    values = {key: str(attrgetter(key)(config)) for key in keys}
    named = {
        key: value
        for key, value in values.items()
        if is_not_uploaded(value) or (key in RESULTS and _is_relative(value))
    }
    return [f"{key}={folder / value}" for key, value in named.items()]


def absolute_arguments(arguments: Sequence[str], folder: Path) -> list[str]:
    """The arguments with absolute paths for what is not uploaded: `report runs/tiny`, a key file."""
    return [_absolute_argument(argument, folder) for argument in arguments]


def _absolute_argument(argument: str, folder: Path) -> str:
    name, separator, value = argument.rpartition("=")
    is_key = name == KEY_FILE and _is_relative(value)
    is_path = not separator or name.startswith("--")
    if is_key or (is_path and is_not_uploaded(value) and (folder / value).exists()):
        return f"{name}{separator}{folder / value}"
    return argument


def key_patterns(arguments: Sequence[str], config: Config | None, folder: Path) -> list[str]:
    """Exclude patterns for the key files that a command or its config names: they are never uploaded."""
    named = [argument.removeprefix(f"{KEY_FILE}=") for argument in arguments if argument.startswith(f"{KEY_FILE}=")]
    named += [config.judge.llm.api_key_file] if config else []
    inside = [(folder / name).absolute() for name in named if name and not name.startswith("~")]
    paths = [Path(os.path.normpath(path)) for path in inside]
    return [f"/{path.relative_to(folder).as_posix()}" for path in paths if path.is_relative_to(folder)]


def mark_of(added: Sequence[str], token: str) -> Path | None:
    """Where the submitter leaves a mark for the job to find; None where a person chose the folder of the runs.

    Args:
        added: the settings with absolute paths that the job gets.
    """
    folder = added_run_dir(added)
    return Path(folder) / f".submit-{token}" if folder else None


def added_run_dir(added: Sequence[str]) -> str | None:
    """Where the settings that a job gets put its runs, if they say so."""
    return next((each.removeprefix("run.dir=") for each in reversed(added) if each.startswith("run.dir=")), None)


def check_outlives_job(config: Config, environment: Mapping[str, str]) -> None:
    """In a job: raise ValueError unless what the run leaves outlives the job, where the submitter looks for it."""
    remedy = "set run.dir to an absolute path on storage that all nodes share, such as run.dir=/shared/runs"
    folder = Path(config.run.dir)
    if any(part.startswith(PACKAGE_PREFIX) for part in folder.parts):
        raise ValueError(
            f"run.dir={config.run.dir!r} is in the temporary folder of this job and ends with it: {remedy}"
        )
    mark = environment.get(MARK_VARIABLE)
    if mark is None or Path(mark).parent != folder:
        return
    if not Path(mark).is_file():
        raise ValueError(
            f"run.dir={config.run.dir!r} is another folder here than on the machine that submitted this job: {remedy}"
        )
    Path(mark).unlink(missing_ok=True)


def _is_relative(path: str) -> bool:
    return bool(path) and not path.startswith(("/", "~")) and "://" not in path
