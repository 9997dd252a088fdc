"""Chooses the files of one split in a repository of the Hugging Face Hub. Downloads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from actors.data.files import SPLIT_WORDS, group_of, listed, split_of
from actors.errors import DataError

TABLES = (".parquet", ".arrow")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
SIDECARS = ("state.json", "dataset_info.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """One split of a repository."""

    path: str
    """Folder, file or pattern inside the repository, for `Dataset.open`; empty is all of it."""
    files: tuple[str, ...]
    """What has to be downloaded for it: its tables, and pictures beside them."""


def choose_files(repository: str, files: Sequence[str], part: str) -> Chosen:
    """The split that `part` names: a file, a pattern, a folder, or a split such as `train`; empty where there is one.

    Args:
        repository: as users write it, for messages (`hf://org/name`).
        files: paths of all files in the repository.

    Raises:
        DataError: there is no such part, or it is more than one split.
    """
    tables = [name for name in files if name.endswith(TABLES) and not PurePosixPath(name).name.startswith(".")]
    if not tables:
        endings = sorted({PurePosixPath(name).suffix for name in files} - {"", ".md"})
        raise DataError(
            f"{repository} has no Parquet or Arrow files ({', '.join(endings) or 'nothing else'}): the hub's own "
            f"conversion may be under {repository.partition('@')[0]}@refs/convert/parquet"
        )
    is_pattern = any(mark in part for mark in "*?[")
    named = [name for name in tables if not part or _is_in(name, part)]
    if not named:
        named = [name for name in tables if split_of(PurePosixPath(name)) == SPLIT_WORDS.get(part, part)]
    groups = _groups(named)
    if not groups:
        paths = [_path(group, tables) for group in _groups(tables)]
        raise DataError(f"{repository} has no {part!r}: it has {listed(path or 'one split' for path in paths)}")
    if len(groups) > 1 and not is_pattern:
        paths = [_path(group, tables) for group in groups]
        raise DataError(
            f"{repository} holds several splits ({listed(paths)}): name one, as in "
            f"{repository}/{next((path for path in paths if 'train' in path), paths[0])}"
        )
    return Chosen(path=part if is_pattern else _path(groups[0], tables), files=_needed(files, named))


def _is_in(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}/") or fnmatchcase(name, part)


def _groups(tables: Sequence[str]) -> list[list[str]]:
    """Tables by folder and, in a folder of Parquet files, by split or series of shards."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in sorted(tables):
        path = PurePosixPath(name)
        found.setdefault((str(path.parent), "" if path.suffix == ".arrow" else group_of(path)), []).append(name)
    return list(found.values())


def _path(group: Sequence[str], tables: Sequence[str]) -> str:
    """The shortest path that names this group and nothing else."""
    folder = str(PurePosixPath(group[0]).parent)
    beside = [name for name in tables if str(PurePosixPath(name).parent) == folder]
    if len(beside) == len(group):
        return "" if folder == "." else folder
    if len(group) == 1:
        return group[0]
    pattern = group_of(PurePosixPath(group[0]))
    return str(PurePosixPath(folder) / (pattern if "*" in pattern else f"*{pattern}*"))


def _needed(files: Sequence[str], tables: Sequence[str]) -> tuple[str, ...]:
    folders = {str(PurePosixPath(name).parent) for name in tables}

    def is_beside(name: str) -> bool:
        if PurePosixPath(name).name in SIDECARS:
            return str(PurePosixPath(name).parent) in folders
        parents = map(str, PurePosixPath(name).parents)
        return name.lower().endswith(PICTURES) and any(parent in folders for parent in parents)

    return tuple(name for name in files if name in set(tables) or is_beside(name))
