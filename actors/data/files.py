"""Finds the files of a data set and rejects mixed splits. Opens no tables."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

from actors.errors import DataError

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "testmini", "eval", "evaluation"), "test"),
    **dict.fromkeys(("heldout", "holdout"), "heldout"),
}
"""Words in a file name that denote its split: those of the Hugging Face Hub, and our own."""
MAX_NAMED = 8
"""Maximum splits or folders listed in an error."""
LFS_POINTER = b"version https://git-lfs"
_SHARD = re.compile(r"-\d{3,}-of-(\d{3,})(-[0-9a-f]{6,})?(?=\.)")
"""The Hub's shards: NAME-00000-of-00004.parquet, in older repositories with a hash behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFiles:
    """The files of one data set, in reading order."""

    folder: Path
    """Image paths are relative to it and must stay inside it."""
    files: tuple[Path, ...]


def find_files(path: str) -> DataFiles:
    """A Parquet or Arrow file, a folder of Parquet files, a `save_to_disk` folder, or a pattern such as `d/train-*`.

    Raises:
        DataError: nothing is there, or what is there is more than one split.
    """
    root = Path(path)
    if root.is_file():
        return DataFiles(folder=root.parent, files=(root,))
    if root.is_dir():
        return DataFiles(folder=root, files=_in_folder(root))
    if glob.has_magic(path):
        return _matching(path)
    raise DataError(f"{path} does not exist: give a Parquet file, a folder of them, or a save_to_disk folder")


def is_lfs_pointer(file: Path) -> bool:
    """Whether the file is a Git LFS pointer."""
    with file.open("rb") as opened:
        return opened.read(len(LFS_POINTER)) == LFS_POINTER


def _in_folder(root: Path) -> tuple[Path, ...]:
    if (root / "dataset_dict.json").is_file():
        splits = sorted(child.name for child in root.iterdir() if child.is_dir())
        one = "train" if "train" in splits or not splits else splits[0]
        raise DataError(f"{root} holds several splits ({listed(splits)}): give one of them, as in {root}/{one}")
    if (root / "state.json").is_file():
        return tuple(_arrow_files(root))
    files = sorted(file for file in root.glob("*.parquet") if not file.name.startswith("."))
    if not files:
        raise DataError(_without_files(root))
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(group_of(file), []).append(file)
    _reject_several(root.as_posix(), root, groups)
    return tuple(files)


def _matching(path: str) -> DataFiles:
    fixed = Path(*_fixed_parts(path))
    files = sorted(Path(name) for name in glob.glob(path, recursive=True) if name.endswith((".parquet", ".arrow")))
    files = [file for file in files if file.is_file()]
    if not files:
        raise DataError(f"{path} matches no *.parquet file: correct the pattern, or give a file or a folder")
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(split_of(file.relative_to(fixed)) or "", []).append(file)
    # Files without a split's word may stand beside one split: the pattern has named them all.
    _reject_several(path, fixed, {split: found for split, found in groups.items() if split})
    return DataFiles(folder=fixed, files=tuple(files))


def _fixed_parts(path: str) -> list[str]:
    """The leading folders without a pattern."""
    parts = list(Path(path).parts)
    return parts[: next(index for index, part in enumerate(parts) if glob.has_magic(part))]


def group_of(file: PurePath) -> str:
    """What the files of a folder must have in common: the split, or the name pattern of the Hub's shards."""
    shard = _SHARD.search(file.name)
    if shard is None:
        return split_of(Path(file.name)) or ""
    return f"{file.name[: shard.start()]}-*-of-{shard[1]}{'-*' if shard[2] else ''}{file.name[shard.end() :]}"


def series_of(file: PurePath) -> str:
    """The file's name without number of its shard and ending: `train_small` of `train_small-00000-of-00002.parquet`."""
    shard = _SHARD.search(file.name)
    return file.name[: shard.start()] if shard else file.name.partition(".")[0]


def split_of(file: PurePath) -> str | None:
    """The split in the file name, or else in the nearest parent folder."""
    for part in reversed(file.parts):
        named = [SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", part.lower()) if word in SPLIT_WORDS]
        if named:
            return named[-1]
    return None


def _reject_several(path: str, folder: Path, groups: dict[str, list[Path]]) -> None:
    if len(groups) < 2:
        return
    names = sorted(
        group if "*" in group else found[0].relative_to(folder).as_posix() for group, found in groups.items()
    )
    one = next((name for name in names if "train" in name), names[0])
    raise DataError(
        f"{path} holds files of several splits ({listed(names)}): give one file or a pattern, "
        f"as in {(folder / one).as_posix()}"
    )


def _without_files(root: Path) -> str:
    """Why a folder without Parquet files cannot be read."""
    below = {
        found.parent.relative_to(root).as_posix()
        for pattern in ("*/*.parquet", "*/*/*.parquet", "*/state.json")
        for found in root.glob(pattern)
    }
    if not below:
        return f"{root} holds neither *.parquet files nor a save_to_disk state.json: give a folder that does"
    first = min(below, key=lambda folder: ("train" not in folder, folder))
    return (
        f"{root} holds neither *.parquet files nor a state.json itself, only in {listed(sorted(below))}: give one "
        f"folder, as in {root}/{first}, or all files that are one set by a pattern, as in '{root}/**/*.parquet'"
    )


def listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def _arrow_files(root: Path) -> list[Path]:
    """Files that `state.json` lists, none of them outside the folder."""
    try:
        state = json.loads((root / "state.json").read_text())
        names = [str(entry["filename"]) for entry in state["_data_files"]]
        is_indirect = bool(state.get("_indices_data_files") or state.get("_indices_files"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{root}/state.json does not list its files as save_to_disk does ({error}): save the set again"
        ) from error
    if is_indirect:
        raise DataError(f"{root} selects rows by an index: save it again after `flatten_indices()`")
    outside = [name for name in names if Path(name).name != name or name in ("", ".", "..")]
    if outside or not names:
        raise DataError(f"{root}/state.json must list plain file names, not {outside or names}")
    return [root / name for name in names]
