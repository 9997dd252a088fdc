"""Rows of Parquet files and Arrow folders, read lazily."""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import pyarrow as pa
import pyarrow.parquet as pq

from actors.data.files import find_files, is_lfs_pointer
from actors.errors import DataError, root_cause

MAX_CACHED_BYTES = 256 * 2**20
"""Cache of decoded row groups for all files of a data set, in addition to the one in use. Prompts are shuffled, so
neighbouring rows are read much later."""
MAX_BATCH_BYTES = 32 * 2**20
"""Size of a decoded batch, estimated from the average row size in the metadata."""
MAX_BATCH_ROWS = 256
"""Maximum rows per batch, for encodings whose metadata underestimate the size."""
READ_BUFFER_BYTES = 2**20
_READ_ERRORS = (pa.ArrowException, OSError, ValueError)


class Source(Protocol):
    """One file of a data set."""

    @property
    def num_rows(self) -> int: ...
    @property
    def schema(self) -> pa.Schema: ...
    def read(self, row: int, columns: Sequence[str]) -> dict[str, Any]:
        """Row number `row` of the file as Python values."""

    def first_rows(self, num_rows: int, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Some first rows, as many as are cheap to read; not cached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Consecutive decoded rows of a row group: all of it, unless it is large."""

    first: int
    """Number in the row group of the first row."""
    num_rows: int
    num_bytes: int
    columns: Mapping[str, pa.Array | pa.ChunkedArray]

    @classmethod
    def of(cls, batches: Sequence[pa.RecordBatch], *, first: int) -> Self:
        table = pa.Table.from_batches(batches)
        arrays = (column.chunk(0) if column.num_chunks == 1 else column for column in table.columns)
        columns = dict(zip(table.schema.names, arrays, strict=True))
        return cls(first=first, num_rows=table.num_rows, num_bytes=table.nbytes, columns=columns)

    def __contains__(self, row: int) -> bool:
        return 0 <= row - self.first < self.num_rows


class TableCache:
    """LRU cache with one decoded part per row group. The newest part stays, however large."""

    def __init__(self) -> None:
        self._parts: OrderedDict[tuple[object, ...], Part] = OrderedDict()
        self._num_bytes = 0

    def get(self, key: tuple[object, ...], row: int, load: Callable[[], Part]) -> Part:
        """The part with this row of the row group `key`, decoded by `load` if it is not cached."""
        part = self._parts.get(key)
        if part is None or row not in part:
            if part is not None:  # dropped before the next one is decoded: two large parts at once would be too much
                self._num_bytes -= self._parts.pop(key).num_bytes
                del part
            part = self._parts[key] = load()
            self._num_bytes += part.num_bytes
            while self._num_bytes > MAX_CACHED_BYTES and len(self._parts) > 1:
                self._num_bytes -= self._parts.popitem(last=False)[1].num_bytes
        self._parts.move_to_end(key)
        return part


class ParquetSource:
    """Decodes row groups on demand, and verifies page checksums if there are any.

    A row group is decoded in batches, and no more than `MAX_CACHED_BYTES` of it are kept: Arrow cannot decode over
    2 GiB of nested values at once, and memory would not last. A row deep in a large group costs decoding all before it.
    """

    def __init__(self, path: Path, cache: TableCache) -> None:
        self._path = path
        # Not memory-mapped: a file truncated while open would kill the process with SIGBUS. Not pre-buffered: what
        # was read would stay in memory while the file is open. Buffered: columns of a row group are not read whole.
        self._file = pq.ParquetFile(
            path, page_checksum_verification=True, pre_buffer=False, buffer_size=READ_BUFFER_BYTES
        )
        metadata = self._file.metadata
        self._groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        self._firsts: list[int] = list(itertools.accumulate((group.num_rows for group in self._groups), initial=0))
        self._cache = cache

    @property
    def num_rows(self) -> int:
        return self._firsts[-1]

    @property
    def schema(self) -> pa.Schema:
        return self._file.schema_arrow

    def read(self, row: int, columns: Sequence[str]) -> dict[str, Any]:
        group = bisect_right(self._firsts, row) - 1
        offset, names = row - self._firsts[group], tuple(columns)
        key = (self._path, group, names)
        part = self._cache.get(key, offset, lambda: self._decode(group, offset, names))
        return _row_of(part.columns, offset - part.first)

    def first_rows(self, num_rows: int, columns: Sequence[str]) -> list[dict[str, Any]]:
        batches = self._file.iter_batches(num_rows, columns=list(columns), use_threads=False)
        return [row for batch in itertools.islice(batches, 1) for row in batch.to_pylist()]

    def _decode(self, group: int, row: int, columns: tuple[str, ...]) -> Part:
        """The rows from a bound before `row` to a bound behind it; the bounds come with the size."""
        metadata = self._groups[group]
        row_bytes = metadata.total_byte_size // max(metadata.num_rows, 1) + 1
        num_rows = min(max(MAX_BATCH_BYTES // row_bytes, 1), MAX_BATCH_ROWS)
        first, end, num_bytes = 0, 0, 0
        kept: list[pa.RecordBatch] = []
        for batch in self._file.iter_batches(num_rows, row_groups=[group], columns=list(columns), use_threads=False):
            if num_bytes + batch.nbytes > MAX_CACHED_BYTES:
                if first <= row < end:
                    break
                first, num_bytes, kept = end, 0, []
            kept.append(batch)
            num_bytes += batch.nbytes
            end += batch.num_rows
        if not first <= row < end:
            raise ValueError(f"row group {group} holds {end} rows where its metadata says {metadata.num_rows}")
        return Part.of(kept, first=first)


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
            batch.validate()
            for column in batch.columns:
                _as_bytes(column).validate(full=True)
            self._verified.add(key)
        return _row_of(dict(zip(columns, batch.columns, strict=True)), row - self._firsts[index])

    def first_rows(self, num_rows: int, columns: Sequence[str]) -> list[dict[str, Any]]:
        return [self.read(row, columns) for row in range(min(num_rows, self.num_rows))]


def _as_bytes(column: pa.Array) -> pa.Array:
    """Text without the promise that it is UTF-8: where it is not, its row is unreadable, and no other one."""
    if pa.types.is_string(column.type):
        return column.view(pa.binary())
    return column.view(pa.large_binary()) if pa.types.is_large_string(column.type) else column


def _row_of(columns: Mapping[str, pa.Array | pa.ChunkedArray], row: int) -> dict[str, Any]:
    return {name: column[row].as_py() for name, column in columns.items()}


class Rows:
    """All rows of a data set, numbered consecutively in file order. Thread-safe."""

    def __init__(self, path: str, folder: Path, files: Sequence[tuple[Path, Source]]) -> None:
        self._path = path
        self.folder = folder
        """Image paths are relative to it."""
        self._sources = [source for _, source in files]
        self._firsts = list(itertools.accumulate((source.num_rows for source in self._sources), initial=0))
        self._files = [(file.name, file.stat().st_size) for file, _ in files]
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._firsts[-1]

    @property
    def schemas(self) -> dict[int, tuple[str, pa.Schema]]:
        """Name and schema of each file that has rows, by its number."""
        found = enumerate(zip(self._files, self._sources, strict=True))
        return {number: (name, source.schema) for number, ((name, _), source) in found if source.num_rows}

    def read(self, row: int, columns: Sequence[str]) -> tuple[int, dict[str, Any]]:
        """Number of the row's file, and its values; DataError when the file cannot give them."""
        if not 0 <= row < len(self):
            raise DataError(f"{self._path} has {len(self)} rows: there is no row {row}")
        index = bisect_right(self._firsts, row) - 1
        try:
            with self._lock:
                return index, self._sources[index].read(row - self._firsts[index], columns)
        except _READ_ERRORS as error:
            raise DataError(f"row {row} of {self._path} cannot be read: {root_cause(error)}") from error

    def first_rows(self, num_rows: int, columns: Sequence[str]) -> list[dict[str, Any]]:
        """The first rows of the first non-empty file; empty if they cannot be read, which a later read will report."""
        try:
            return next(source for source in self._sources if source.num_rows).first_rows(num_rows, columns)
        except _READ_ERRORS:
            return []

    def identity(self) -> str:
        """16 hexadecimal digits that change with file names, sizes, number of rows or columns."""
        schema = [f"{field.name}: {field.type}" for field in self._sources[0].schema]
        described = json.dumps([self._files, len(self), schema])
        return hashlib.sha256(described.encode()).hexdigest()[:16]


def open_rows(path: str) -> Rows:
    """Open all files of the path (see `find_files`); DataError if there are none, or one is damaged."""
    try:
        found, cache = find_files(path), TableCache()
    except (OSError, ValueError) as error:  # no permission, a name too long or with a NUL
        raise DataError(f"{path!r} cannot be read: {error}; give a readable file or folder") from error
    return Rows(path, found.folder, [(file, _open(file, cache)) for file in found.files])


def _open(file: Path, cache: TableCache) -> Source:
    try:
        if is_lfs_pointer(file):
            raise DataError(f"{file} is a Git LFS pointer, not the file itself: run `git lfs pull` where it lies")
        return ArrowSource(file) if file.suffix == ".arrow" else ParquetSource(file, cache)
    except _READ_ERRORS as error:
        reason = root_cause(error).rstrip(".")
        raise DataError(f"{file} cannot be opened: {reason}: write it as Parquet, or download it again") from error
