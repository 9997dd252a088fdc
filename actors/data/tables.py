"""Rows of Parquet files and of Arrow folders, read where they lie: nothing is loaded before it is asked for."""

from __future__ import annotations

import hashlib
import itertools
import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from actors.errors import DataError

MAX_CACHED_BYTES = 256 * 2**20
"""Decoded row groups kept in memory by all files of a data set together, beside the one in use. Prompts come shuffled,
so neighbours are asked for late."""
_READ_ERRORS = (pa.ArrowException, OSError, ValueError)


class Source(Protocol):
    """One file of a data set."""

    @property
    def num_rows(self) -> int: ...
    @property
    def schema(self) -> pa.Schema: ...
    def read(self, row: int, columns: Sequence[str]) -> dict[str, Any]:
        """Row number `row` of the file as Python values."""


class TableCache:
    """Decoded row groups, the least recently used ones given up first. The newest stays, whatever its size."""

    def __init__(self) -> None:
        self._tables: OrderedDict[tuple[object, ...], pa.Table] = OrderedDict()
        self._num_bytes = 0

    def get(self, key: tuple[object, ...], load: Callable[[], pa.Table]) -> pa.Table:
        if key not in self._tables:
            self._tables[key] = load()
            self._num_bytes += self._tables[key].nbytes
            while self._num_bytes > MAX_CACHED_BYTES and len(self._tables) > 1:
                self._num_bytes -= self._tables.popitem(last=False)[1].nbytes
        self._tables.move_to_end(key)
        return self._tables[key]


class ParquetSource:
    """Row groups are decoded one at a time, their page checksums verified where the writer left any."""

    def __init__(self, path: Path, cache: TableCache) -> None:
        self._path = path
        # Not memory-mapped: a file cut short while it is open would end the process with SIGBUS. Not pre-buffered:
        # what was read would stay for as long as the file is open.
        self._file = pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)
        metadata = self._file.metadata
        sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        self._firsts: list[int] = list(itertools.accumulate(sizes, initial=0))
        self._cache = cache

    @property
    def num_rows(self) -> int:
        return self._firsts[-1]

    @property
    def schema(self) -> pa.Schema:
        return self._file.schema_arrow

    def read(self, row: int, columns: Sequence[str]) -> dict[str, Any]:
        group = bisect_right(self._firsts, row) - 1
        return _row_of(self._group(group, tuple(columns)), row - self._firsts[group])

    def _group(self, group: int, columns: tuple[str, ...]) -> pa.Table:
        def load() -> pa.Table:
            return self._file.read_row_group(group, columns=list(columns), use_threads=False)

        return self._cache.get((self._path, group, columns), load)


class ArrowSource:
    """An Arrow IPC stream, memory-mapped: the operating system pages in what is read."""

    def __init__(self, path: Path) -> None:
        with pa.ipc.open_stream(pa.memory_map(str(path))) as stream:
            self._batches = list(stream)
            self._schema = stream.schema
        self._names: list[str] = self._schema.names  # decoded here, where a damaged name is refused
        self._firsts: list[int] = list(itertools.accumulate((batch.num_rows for batch in self._batches), initial=0))
        self._verified: set[tuple[int, tuple[str, ...]]] = set()

    @property
    def num_rows(self) -> int:
        return self._firsts[-1]

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    def read(self, row: int, columns: Sequence[str]) -> dict[str, Any]:
        index = bisect_right(self._firsts, row) - 1
        batch = self._batches[index].select(list(columns))
        key = (index, tuple(columns))
        if key not in self._verified:
            # Arrow has no checksums: a damaged offset would be followed out of the file and end the process.
            batch.validate(full=True)
            self._verified.add(key)
        return _row_of(batch, row - self._firsts[index])


def _row_of(table: pa.Table | pa.RecordBatch, row: int) -> dict[str, Any]:
    return {name: table.column(name)[row].as_py() for name in table.schema.names}


class Rows:
    """All rows of a data set under consecutive numbers, in the order of its files."""

    def __init__(self, path: str, files: Sequence[tuple[Path, Source]]) -> None:
        self._path = path
        self._sources = [source for _, source in files]
        self._firsts = list(itertools.accumulate((source.num_rows for source in self._sources), initial=0))
        self._files = [(file.name, file.stat().st_size) for file, _ in files]

    def __len__(self) -> int:
        return self._firsts[-1]

    @property
    def column_names(self) -> list[str]:
        """Columns that every file has."""
        names: list[str] = self._sources[0].schema.names
        return [name for name in names if all(name in source.schema.names for source in self._sources)]

    def read(self, row: int, columns: Sequence[str]) -> dict[str, Any]:
        """A row as Python values; DataError when the file cannot give it."""
        if not 0 <= row < len(self):
            raise DataError(f"{self._path} has {len(self)} rows: there is no row {row}")
        index = bisect_right(self._firsts, row) - 1
        try:
            return self._sources[index].read(row - self._firsts[index], columns)
        except _READ_ERRORS as error:
            raise DataError(f"row {row} of {self._path} cannot be read: {error}") from error

    def identity(self) -> str:
        """16 hexadecimal digits that change with file names, sizes, number of rows or columns."""
        schema = [f"{field.name}: {field.type}" for field in self._sources[0].schema]
        described = json.dumps([self._files, len(self), schema])
        return hashlib.sha256(described.encode()).hexdigest()[:16]


def open_rows(path: str) -> Rows:
    """Open a Parquet file, a folder of them, or a Hugging Face `save_to_disk` folder; DataError when it is none."""
    root, open_parquet = Path(path), partial(ParquetSource, cache=TableCache())
    if root.is_file():
        return Rows(path, [(root, _open(root, open_parquet))])
    if not root.is_dir():
        raise DataError(f"{path} does not exist: name a Parquet file, a folder of them, or a save_to_disk folder")
    if (root / "dataset_dict.json").is_file():
        splits = sorted(child.name for child in root.iterdir() if child.is_dir())
        raise DataError(f"{path} holds several splits: name one of them, as in {path}/{splits[0] if splits else '...'}")
    if (root / "state.json").is_file():
        return Rows(path, [(file, _open(file, ArrowSource)) for file in _arrow_files(root)])
    files = sorted(file for file in root.glob("*.parquet") if not file.name.startswith("."))
    if not files:
        raise DataError(f"{path} holds neither *.parquet files nor a save_to_disk state.json")
    return Rows(path, [(file, _open(file, open_parquet)) for file in files])


def _open(file: Path, opener: Callable[[Path], Source]) -> Source:
    try:
        return opener(file)
    except _READ_ERRORS as error:
        raise DataError(f"{file} cannot be opened: {error}") from error


def _arrow_files(root: Path) -> list[Path]:
    """Files that `state.json` lists, none of them outside the folder."""
    try:
        state = json.loads((root / "state.json").read_text())
        names = [str(entry["filename"]) for entry in state["_data_files"]]
        is_indirect = bool(state.get("_indices_data_files") or state.get("_indices_files"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{root}/state.json does not list its files as save_to_disk does: {error}") from error
    if is_indirect:
        raise DataError(f"{root} selects rows by an index: save it again after `flatten_indices()`")
    outside = [name for name in names if Path(name).name != name or name in ("", ".", "..")]
    if outside or not names:
        raise DataError(f"{root}/state.json must list plain file names, not {outside or names}")
    return [root / name for name in names]
