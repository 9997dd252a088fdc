"""Chooses the files of one split in a repository of the Hugging Face Hub. Downloads nothing."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import PurePosixPath

from actors.data.files import SPLIT_WORDS, group_of, listed, series_of, split_of
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
    named = [name for name in tables if not part or name == part or name.startswith(f"{part}/")]
    is_pattern = not named and glob.has_magic(part)
    if is_pattern:
        named = [name for name in tables if _matches(name.split("/"), part.split("/"))]
    split = SPLIT_WORDS.get(part.lower(), part)
    named = named or [name for name in tables if split_of(PurePosixPath(name)) == split]
    named = named or [name for name in tables if series_of(PurePosixPath(name)) == part]
    groups = _groups(named)
    if not groups:
        paths = [_path(group, tables) or group[0] for group in _groups(tables)]
        raise DataError(f"{repository} has no {part!r}: it has {listed(path or 'one split' for path in paths)}")
    if len(groups) > 1 and not is_pattern:
        paths = [_path(group, tables) or group[0] for group in groups]
        raise DataError(
            f"{repository} holds several splits ({listed(paths)}): name one, as in "
            f"{repository}/{next((path for path in paths if 'train' in path), paths[0])}"
        )
    path = part if is_pattern else _path(groups[0], tables)
    if path is None:
        raise DataError(f"{repository}: no pattern names {listed(groups[0])} and no other file: name one of them")
    return Chosen(path=path, files=_needed(files, named))


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """As `glob` matches paths, by which the downloaded files are found: `*` stays in a folder, `**` is any of them."""
    if not parts or not pattern:
        return not parts and not pattern
    if pattern[0] == "**":
        return _matches(parts, pattern[1:] or ["*"]) or _matches(parts[1:], pattern)
    return fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _groups(tables: Sequence[str]) -> list[list[str]]:
    """Tables by folder and, in a folder of Parquet files, by split or series of shards."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in sorted(tables):
        path = PurePosixPath(name)
        found.setdefault((str(path.parent), "" if path.suffix == ".arrow" else group_of(path)), []).append(name)
    return list(found.values())


def _path(group: Sequence[str], tables: Sequence[str]) -> str | None:
    """A short path or pattern that names this group and nothing else; None where there is none."""
    folder = str(PurePosixPath(group[0]).parent)
    beside = [name for name in tables if str(PurePosixPath(name).parent) == folder]
    if len(beside) == len(group):
        return "" if folder == "." else folder
    if len(group) == 1:
        return group[0]
    for pattern in _patterns([PurePosixPath(name).name for name in group]):
        if {name for name in beside if fnmatchcase(PurePosixPath(name).name, pattern)} == set(group):
            return str(PurePosixPath(glob.escape(folder)) / pattern)
    return None


def _patterns(names: Sequence[str]) -> Iterator[str]:
    """Patterns that a group of files may have: of its shards, its split's word, what all names begin and end with."""
    common = group_of(PurePosixPath(names[0]))
    yield common if "*" in common else f"*{common}*"
    start = _common_start(names)
    end = _common_start([name[len(start) :][::-1] for name in names])[::-1]
    yield f"{glob.escape(start)}*{glob.escape(end)}"


def _common_start(names: Sequence[str]) -> str:
    return "".join(signs[0] for signs in takewhile(lambda signs: len(set(signs)) == 1, zip(*names, strict=False)))


def _needed(files: Sequence[str], tables: Sequence[str]) -> tuple[str, ...]:
    wanted, folders = set(tables), {str(PurePosixPath(name).parent) for name in tables}

    def is_beside(name: str) -> bool:
        if PurePosixPath(name).name in SIDECARS:
            return str(PurePosixPath(name).parent) in folders
        parents = map(str, PurePosixPath(name).parents)
        return name.lower().endswith(PICTURES) and any(parent in folders for parent in parents)

    return tuple(name for name in files if name in wanted or is_beside(name))
