"""The episodes of a run in memory, without their turns: read from its Parquet files, and kept up with a live run.

Texts and tokens of the turns stay on disk until somebody opens an episode.
"""

from __future__ import annotations

import stat
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actors.tools.resize import RESIZE
from cluster.records.episodes import EPISODES
from cluster.records.reading import Row

SETS = {"training": "episodes", "heldout": "heldout"}
"""Set to its folder below the run."""
CHECK_S = 1.0
"""Files are looked at again after this time."""
NUM_READERS = 4
NAMED = ("step", "sample", "index", "question")
"""Columns without which a file holds no episodes."""
OPENED = ("turns", "attempt", "dataset", "row", "image_sha256", "judge_version", "reward_parts")
"""Columns that only the page of an episode needs."""
FLAT = tuple(name for name in EPISODES.names if name not in OPENED)
NO_TURN: Mapping[str, Any] = {
    "text": "", "view": None, "tool": None, "num_visual_tokens": 0, "num_prompt_tokens": 0, "completion_ids": [],
    "logprobs": [], "version_spans": [], "finish_reason": None, "fault": None,
}  # fmt: skip
"""In place of what a recorded turn lacks."""
LEAVES = (
    "turns.list.element.view",
    "turns.list.element.tool",
    "turns.list.element.num_visual_tokens",
    "turns.list.element.version_spans.list.element.num_tokens",
)
"""All that is read of the turns: a leaf of a Parquet file is read without its neighbours."""
TABLE = """
CREATE TABLE episodes AS SELECT *, 0::BIGINT AS visual_tokens, 0::BIGINT AS full_tokens, 0::BIGINT AS generated_tokens,
  []::VARCHAR[] AS tools, []::BIGINT[] AS call_tokens, 0::BIGINT AS tool_calls, 0::BIGINT AS refused_calls,
  0 AS direct_right, 0 AS called_right, '' AS need, '' AS searched FROM arriving LIMIT 0;
ALTER TABLE episodes DROP COLUMN turns;
CREATE TABLE disputed (question VARCHAR, reference VARCHAR, answer VARCHAR);
"""
# A quarter view has exactly a quarter of the full view's tokens, and one too small to quarter is shown full at once.
# Calls are later turns that show a view; the others tell why a call was refused. Older files do not name the tool, nor
# the view that is needed.
INSERT = f"""
INSERT INTO episodes SELECT * EXCLUDE (turns, calls) REPLACE (coalesce(kind, 'policy') AS kind),
  list_sum(list_transform(turns, lambda t: t.num_visual_tokens)),
  turns[1].num_visual_tokens * CASE turns[1].view WHEN 'quarter' THEN 4 ELSE 1 END,
  list_sum(list_transform(turns, lambda t: list_sum(list_transform(t.version_spans, lambda s: s.num_tokens)))),
  list_transform(calls, lambda t: coalesce(t.tool, '{RESIZE.name}')),
  list_transform(calls, lambda t: t.num_visual_tokens), len(calls), greatest(0, len(turns) - 1 - len(calls)),
  count(*) FILTER (is_correct AND NOT asked AND turns[1].view = 'quarter') OVER same_sample,
  count(*) FILTER (is_correct AND (asked OR turns[1].view = 'full')) OVER same_sample,
  CASE WHEN needed_view LIKE 'crop:%' THEN 'region' WHEN needed_view IN ('quarter', 'full') THEN needed_view
    WHEN needs_full THEN 'full' WHEN NOT needs_full THEN 'quarter' END,
  lower(concat_ws(' ', question, reference, answer, reason, sample))
FROM (SELECT *, list_filter(turns[2:], lambda t: t.view IS NOT NULL) AS calls FROM arriving)
WINDOW same_sample AS (PARTITION BY set, file, sample)
"""
DISPUTED = """
INSERT INTO disputed SELECT question, reference, coalesce(answer, '') AS given FROM episodes
WHERE is_correct IS NOT NULL GROUP BY question, reference, given HAVING bool_or(is_correct) AND bool_or(NOT is_correct)
"""
TOOL_CHOICE = f"""
SELECT 1 FROM episodes WHERE need = 'region' OR tool_calls > 1
  OR len(list_filter(tools, lambda name: name <> '{RESIZE.name}')) > 0 LIMIT 1
"""

Stamp = tuple[int, int]
"""Time of the last change in ns, and size: what tells a file from its successor."""


class EpisodeIndex:
    """Table `episodes` of one run, for any number of threads.

    Args:
        max_bytes: read the oldest file and the newest ones up to this size in all; None reads all.
    """

    def __init__(self, run: Path, *, max_bytes: int | None = None) -> None:
        self.run = run
        self.num_left_out = 0
        """Files that were not read, because of `max_bytes`."""
        self._max_bytes = max_bytes
        self.unreadable: dict[str, str] = {}
        """Files that are damaged or half copied, with the reason; they are tried again when they change."""
        self._shows_tool_choice = False
        self._con = duckdb.connect(":memory:", config={"threads": 2, "enable_external_access": False})
        self._files: dict[tuple[str, str], Stamp] = {}
        self._lock = threading.Lock()
        self._checked_at = float("-inf")
        self._con.register("arriving", _empty())
        self._con.execute(TABLE)
        self._con.unregister("arriving")

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection to the table as it is now, for one thread."""
        with self._lock:
            if time.monotonic() - self._checked_at > CHECK_S:
                self._refresh()
                self._checked_at = time.monotonic()
            return self._con.cursor()

    @property
    def shows_tool_choice(self) -> bool:
        """Whether its episodes called other tools than the paper's, or their data set records regions."""
        self.cursor()
        return self._shows_tool_choice

    def _refresh(self) -> None:
        found = _files_of(self.run)
        if self._max_bytes is not None:
            num, found = len(found), newest(found, self._max_bytes)
            self.num_left_out = num - len(found)
        if found == self._files:
            return
        gone = [key for key, stamp in self._files.items() if found.get(key) != stamp]
        new = [key for key, stamp in found.items() if self._files.get(key) != stamp]
        self.unreadable = {name: why for name, why in self.unreadable.items() if name in {f"{s}/{f}" for s, f in found}}
        with ThreadPoolExecutor(NUM_READERS) as readers:
            tables = list(readers.map(lambda key: self._read(*key), new))
        arrived = pa.concat_tables([_empty(), *(table for table in tables if table is not None)])
        self._con.begin()
        try:
            for key in gone:
                self._con.execute("DELETE FROM episodes WHERE set = ? AND file = ?", key)
            self._con.register("arriving", arrived)
            self._con.execute(INSERT)
            self._con.unregister("arriving")
            self._con.execute("DELETE FROM disputed")
            self._con.execute(DISPUTED)
            self._shows_tool_choice = self._con.execute(TOOL_CHOICE).fetchone() is not None
            self._con.commit()
        except duckdb.Error:
            self._con.rollback()
            raise
        self._files = found

    def _read(self, of_set: str, file: str) -> pa.Table | None:
        name = f"{of_set}/{file}"
        try:
            table = _slim(_path(self.run, of_set, file))
            named = table.append_column("set", _same(of_set, len(table))).append_column("file", _same(file, len(table)))
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            self.unreadable[name] = (str(error) or type(error).__name__).splitlines()[0][:200]
            return None
        self.unreadable.pop(name, None)
        return named

    def read(self, row: Mapping[str, Any]) -> Row:
        """An episode of the table with all columns and its turns. What an older or damaged file lacks is empty.

        Raises:
            ValueError: its file is gone or damaged.
        """
        path = _path(self.run, row["set"], row["file"])
        try:
            status = path.stat()
            full: Row = _whole(path, status.st_mtime_ns, status.st_size).slice(row["ordinal"], 1).to_pylist()[0]
        except (OSError, pa.ArrowException, IndexError) as error:
            raise ValueError(f"{path} cannot be read any more: {error}") from error
        turns = [_complete(turn) for turn in full.get("turns") or () if turn]
        return {**dict.fromkeys(EPISODES.names), **full, **row, "turns": turns}


def _complete(turn: Mapping[str, Any]) -> dict[str, Any]:
    whole = {**NO_TURN} | {name: value for name, value in turn.items() if value is not None}
    return whole | {"version_spans": [span for span in whole["version_spans"] if span]}


def _files_of(run: Path) -> dict[tuple[str, str], Stamp]:
    """Files that are there now; the recorder gives a file its name when it is whole."""
    found = {}
    for of_set, folder in SETS.items():
        for path in sorted((run / folder).glob("*.parquet")):
            try:
                status = path.stat()
            except OSError:  # a resumed run has just removed it
                continue
            if stat.S_ISREG(status.st_mode):  # reading a pipe would never end
                found[of_set, path.stem] = (status.st_mtime_ns, status.st_size)
    return found


def newest(files: dict[tuple[str, str], Stamp], max_bytes: int) -> dict[tuple[str, str], Stamp]:
    """Of each set the oldest file, and the newest ones up to a size in all. Held-out files come first."""
    kept, size = set({key[0]: key for key in reversed(files)}.values()), 0
    for key in sorted(files, key=lambda key: (key[0] == "heldout", files[key][0], key), reverse=True):
        size += files[key][1]
        if size <= max_bytes:
            kept.add(key)
    return {key: stamp for key, stamp in files.items() if key in kept}


def _path(run: Path, of_set: str, file: str) -> Path:
    return run / SETS[of_set] / f"{file}.parquet"


def _slim(path: Path) -> pa.Table:
    """What the table needs of a file. Raises ValueError or KeyError, of Arrow too, for one that is not of episodes."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        there = set(file.schema_arrow.names)
        if missing := [name for name in NAMED if name not in there]:
            raise ValueError(f"no file of episodes: it has no column {missing[0]!r}")
        if "turns" in there and not pa.types.is_list(file.schema_arrow.field("turns").type):
            raise ValueError("no file of episodes: its column 'turns' has no lists")
        read = file.read(columns=[*(there & set(FLAT)), *LEAVES], use_threads=False)
    read.validate(full=True)  # text that is not UTF-8 would end the table for good
    return conform(read, _slim_schema()).append_column("ordinal", pa.array(np.arange(len(read))))


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table of another version under this schema: what it lacks is null. Raises KeyError or an error of Arrow."""
    names, columns = set(table.column_names), []
    for field in schema:
        column = table.column(field.name) if field.name in names else pa.nulls(len(table), field.type)
        columns.append(column if column.type == field.type else column.cast(field.type))  # a cast of all takes time
    return pa.table(columns, schema=schema)


@lru_cache(maxsize=4)
def _whole(path: Path, mtime_ns: int, size: int) -> pa.Table:
    """A whole file: the episodes of a group are opened one after the other."""
    return pq.read_table(path, page_checksum_verification=True)


@lru_cache(maxsize=1)
def _slim_schema() -> pa.Schema:
    turn = pa.struct(
        [
            ("view", pa.string()),
            ("tool", pa.string()),
            ("num_visual_tokens", pa.int64()),
            ("version_spans", pa.list_(pa.struct([("num_tokens", pa.int64())]))),
        ]
    )
    return pa.schema([*(EPISODES.field(name) for name in FLAT), ("turns", pa.list_(turn))])


def _empty() -> pa.Table:
    table = _slim_schema().empty_table().append_column("ordinal", pa.array([], pa.int64()))
    return table.append_column("set", pa.array([], pa.string())).append_column("file", pa.array([], pa.string()))


def _same(text: str, num: int) -> pa.Array:
    return pa.array([text], pa.string()).take(pa.array([0] * num, pa.int8()))
