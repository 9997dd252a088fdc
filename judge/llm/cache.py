"""Verdicts of LLM judges on disk: what was decided once is not asked, paid or waited for again.

One SQLite file. The key of a verdict is what the LLM saw and who answered. Runs share the file, several at a time, and
a key keeps its first verdict, so a second run under the same judge sees what the first one saw. Rules are cheaper than
a look-up, and what failed is no verdict: neither is kept.

The cache saves money and never costs a run: a fault of the file is warned of once, after which the cache is only read
(where it could not be written) or off.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from configs.judges import JudgeConfig
from judge.llm.prompt import clean_texts
from judge.verdict import Verdict

APPLICATION_ID = 0x56544B56
"""Marks the file's header as ours: `VTKV`."""
OFF, READ_ONLY, FULL = range(3)
"""What the file still serves for."""
BUSY_S = 10.0
"""How long one access waits for other processes."""
MAX_KEYS_PER_QUERY = 500
"""SQLite bounds the parameters of a statement."""
UNCUT = 1 << 40
MOUNTS = Path("/proc/self/mountinfo")
NETWORK_FILESYSTEMS = re.compile(
    r"nfs\d?|cifs|smb\w*|ncpfs|lustre|gpfs|beegfs|ceph|glusterfs|orangefs|pvfs2|afs|coda|9p|ocfs2|gfs2|davfs"
    r"|fuse(\.(?!fuse-overlayfs).*)?"
)
"""Types whose locks SQLite cannot rely on between machines. What a FUSE file system does with locks nobody can tell."""
REMEDY = "set judge.cache to another file, on a local disk, or move a damaged file away"

# The number tells the columns and what a key is made of: verdicts of another version lie in a table of their own.
_TABLE = "verdicts_2"
_COLUMNS = "key, is_correct, judge, reason, judge_version, model, question, reference, prediction, seal"
_SCHEMA = f"""CREATE TABLE IF NOT EXISTS {_TABLE}
({_COLUMNS}, created_at DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')), PRIMARY KEY (key))"""
_INSERT = f"INSERT OR IGNORE INTO {_TABLE} ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedAnswer:
    """A verdict beside what it is about: what the cache keeps."""

    question: str
    reference: str
    prediction: str
    verdict: Verdict
    """Of an LLM: it names its judge's version."""

    @property
    def key(self) -> str:
        return verdict_key(self.question, self.reference, self.prediction, self.verdict.judge_version)


def verdict_key(question: str, reference: str, prediction: str, judge_version: str) -> str:
    """Address of a verdict: SHA-256, in hex, of the three texts as the LLM sees them and of who answers how.

    Args:
        judge_version: as `judge.llm.version` makes it; it holds at how many characters a text is cut.
    """
    seen = clean_texts(question, reference, prediction, max_field_chars=UNCUT, max_answer_chars=UNCUT)
    return _digest([judge_version, *seen.values()])


def network_filesystem(path: Path, mounts: str) -> str | None:
    """Type of the file system where a file lies or would lie if it is one of a network; None if it is local.

    Args:
        mounts: the content of /proc/self/mountinfo.
    """
    depth, kind = 0, ""
    for place, _, source in (line.partition(" - ") for line in mounts.splitlines() if " - " in line):
        point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), place.split()[4]))
        if path.is_relative_to(point) and len(point.parts) >= depth:  # the later of two mounts lies on top
            depth, kind = len(point.parts), source.split()[0]
    return kind if NETWORK_FILESYSTEMS.fullmatch(kind) else None


def open_cache(config: JudgeConfig, warn: Callable[[str], None]) -> VerdictCache | None:
    """The cache of a config, or None where it wants none or has none it can use, which is warned of. Blocks."""
    if not (config.has_llm and config.cache):
        return None
    try:
        return VerdictCache(Path(config.cache).expanduser().absolute(), warn)
    except (OSError, RuntimeError, sqlite3.Error) as error:
        warn(f"judge.cache={config.cache} is off, so verdicts are not kept: {error}; {REMEDY}")
        return None


class VerdictCache:
    """The file of verdicts, used by a driver from its event loop.

    Reads and writes go through one thread, so that the loop never waits for a disk or for another process. What is put
    at once is written in one transaction: after a kill all of it is there or none.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        """Open the file, or make one; folders are made as needed. Blocks.

        Raises:
            OSError: the folder cannot be made, or lies on a network file system.
            sqlite3.Error: the file cannot be opened, is damaged or holds something else. It is left as it is.
        """
        self.path, self._warn, self._use = path, warn, FULL
        if MOUNTS.is_file() and (kind := network_filesystem(path.resolve(), MOUNTS.read_text(errors="replace"))):
            raise OSError(f"it lies on a network file system ({kind}), where SQLite's locks are not reliable")
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as until_ready:
            self._connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            until_ready.callback(self._connection.close)
            _prepare(self._connection)
            until_ready.pop_all()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="verdict-cache")

    async def get(self, keys: Sequence[str]) -> dict[str, Verdict]:
        """The verdicts that are there, by key. A hit costs nothing: its usage is zero."""
        return await self._run(self._read, keys, needs=READ_ONLY) or {}

    async def put(self, answers: Sequence[JudgedAnswer]) -> None:
        """Keep verdicts of LLMs, all or none. A key that is there keeps what it has."""
        for answer in answers:
            assert answer.verdict.judge_version, "only an LLM's verdict is kept, under its judge's version"
        await self._run(self._write, answers, needs=FULL)

    def close(self) -> None:
        """Write what is under way, then close. Blocks."""
        self._thread.shutdown(wait=True)
        self._connection.close()

    async def _run(self, access: Callable[[Sequence[Item]], Found], items: Sequence[Item], needs: int) -> Found | None:
        if not items or self._use < needs:
            return None
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, access, items)
        except sqlite3.Error as error:
            if self._use >= needs:
                self._use = needs - 1
                state = "off" if self._use == OFF else "read only"
                self._warn(f"judge.cache={self.path} is {state} from now on: {error}; {REMEDY}")
            return None

    def _read(self, keys: Sequence[str]) -> dict[str, Verdict]:
        found: dict[str, Verdict] = {}
        for start in range(0, len(keys), MAX_KEYS_PER_QUERY):
            wanted = keys[start : start + MAX_KEYS_PER_QUERY]
            query = f"SELECT {_COLUMNS} FROM {_TABLE} WHERE key IN ({', '.join('?' * len(wanted))})"
            for *row, seal in self._connection.execute(query, wanted):
                key, is_correct, judge, reason, version, model, *_ = row
                if seal != _digest(row):
                    raise sqlite3.DatabaseError(f"the row of key {key} is not what was written")
                found[key] = Verdict(
                    is_correct=is_correct == 1, judge=judge, reason=reason, judge_version=version, model=model
                )
        return found

    def _write(self, answers: Sequence[JudgedAnswer]) -> None:
        if self._use == FULL:  # it may have failed while this call was queued
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.executemany(_INSERT, [_row(answer) for answer in answers])


def _prepare(connection: sqlite3.Connection) -> None:
    """Take the file if it is ours or empty. Nothing is written to a file that is neither, or has all it needs."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master")]
    if tables and application_id != APPLICATION_ID:
        raise sqlite3.DatabaseError("it is a database of something else")
    if _TABLE not in tables:
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_SCHEMA)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    # A write takes 1.5 ms with the write-ahead log and 30 ms without. The file keeps this setting; SQLite does not wait
    # for others in this one statement, and whoever is in the way is about to make it too.
    with contextlib.suppress(sqlite3.OperationalError):
        connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


def _row(answer: JudgedAnswer) -> list[str | int]:
    verdict = answer.verdict
    texts = (verdict.judge, verdict.reason, verdict.judge_version, verdict.model)
    row: list[str | int] = [answer.key, int(verdict.is_correct)]
    for text in (*texts, answer.question, answer.reference, answer.prediction):
        row.append(text.encode("utf-8", "backslashreplace").decode())  # SQLite holds no lone surrogates
    return [*row, _digest(row)]


def _digest(values: Sequence[str | int]) -> str:
    """SHA-256 of values in an encoding that no two sequences share."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
