"""Verdicts of LLM judges on disk: what was decided once is not asked, paid or waited for again.

One SQLite file, content-addressed: the key of a verdict is what was asked of whom. Runs share it, several at a time. A
key keeps its first verdict for ever, so a second run under the same judge sees what the first one saw. Rules are
cheaper than a look-up, and what failed is no verdict: neither is kept.

The file must lie on a local disk. SQLite's write-ahead log is shared memory between processes of one machine; on a
network file system it may be damaged by two drivers at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from actors.errors import JudgeError
from judge.verdict import Verdict

APPLICATION_ID = 0x56544B56
"""Marks the file's header as ours: `VTKV`."""
SCHEMA_VERSION = 1
BUSY_S = 60.0
"""How long one access waits for other processes."""
MAX_KEYS_PER_QUERY = 500
"""SQLite bounds the parameters of a statement."""

_SCHEMA = """
CREATE TABLE verdicts (
    key TEXT PRIMARY KEY NOT NULL,
    is_correct INTEGER NOT NULL,
    judge TEXT NOT NULL,
    reason TEXT NOT NULL,
    judge_version TEXT NOT NULL,
    question TEXT NOT NULL,
    reference TEXT NOT NULL,
    prediction TEXT NOT NULL,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    seal TEXT NOT NULL
)
"""
_INSERT = """
INSERT OR IGNORE INTO verdicts (key, is_correct, judge, reason, judge_version, question, reference, prediction, seal)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

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
    """Address of a verdict: SHA-256, in hex, of the four texts as they are.

    Nothing is normalised, and no two different quadruples share an encoding: a judge may tell texts apart that look
    the same to people.
    """
    return _digest("verdict 1", question, reference, prediction, judge_version)


class VerdictCache:
    """The file of verdicts, used by a driver from its event loop.

    Reads and writes go through one thread, so that the loop never waits for a disk or for another process. A group's
    verdicts are written in one transaction: after a kill all of them are there or none.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or make one; folders are made as needed. Blocks.

        Raises:
            JudgeError: it cannot be opened, holds something else, is damaged, or was written by a newer version. It
                is left as it is.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise JudgeError(f"the folder of judge.cache={path} cannot be made: {error}") from error
        with _explained(path), ExitStack() as until_ready:
            self._connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            until_ready.callback(self._connection.close)
            _prepare(self._connection, path)
            until_ready.pop_all()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="verdict-cache")

    async def get(self, keys: Sequence[str]) -> dict[str, Verdict]:
        """The verdicts that are there, by key. A hit costs nothing: its usage is zero.

        Raises:
            JudgeError: the file is damaged, or locked for longer than `BUSY_S`.
        """
        return await self._run(lambda: self._read(keys)) if keys else {}

    async def put(self, answers: Sequence[JudgedAnswer]) -> None:
        """Keep verdicts of LLMs, all or none. A key that is there keeps what it has.

        Raises:
            JudgeError: the file is damaged, cannot be written, or is locked for longer than `BUSY_S`.
        """
        for answer in answers:
            assert answer.verdict.judge_version, "only an LLM's verdict is kept, under its judge's version"
        if answers:
            await self._run(lambda: self._write(answers))

    def close(self) -> None:
        """Write what is under way, then close. Blocks."""
        self._thread.shutdown(wait=True)
        self._connection.close()

    async def _run(self, access: Callable[[], Found]) -> Found:
        def explained() -> Found:
            with _explained(self.path):
                return access()

        return await asyncio.get_running_loop().run_in_executor(self._thread, explained)

    def _read(self, keys: Sequence[str]) -> dict[str, Verdict]:
        found: dict[str, Verdict] = {}
        for start in range(0, len(keys), MAX_KEYS_PER_QUERY):
            wanted = keys[start : start + MAX_KEYS_PER_QUERY]
            marks = ",".join("?" * len(wanted))
            columns = "key, is_correct, judge, reason, judge_version, question, reference, prediction, seal"
            for *row, seal in self._connection.execute(
                f"SELECT {columns} FROM verdicts WHERE key IN ({marks})", wanted
            ):
                if seal != _digest(*map(str, row)):
                    raise JudgeError(_damage(self.path, f"the row of key {row[0]} is not what was written"))
                key, is_correct, judge, reason, judge_version = row[:5]
                found[key] = Verdict(
                    is_correct=is_correct == 1, judge=judge, reason=reason, judge_version=judge_version
                )
        return found

    def _write(self, answers: Sequence[JudgedAnswer]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._connection.executemany(_INSERT, [_row(answer) for answer in answers])
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise


def _row(answer: JudgedAnswer) -> tuple[str | int, ...]:
    verdict = answer.verdict
    texts = (verdict.judge, verdict.reason, verdict.judge_version, answer.question, answer.reference, answer.prediction)
    # The key is of the texts as they are; what SQLite cannot hold as UTF-8 is shown escaped beside it.
    row: list[str | int] = [answer.key, int(verdict.is_correct), *(_storable(text) for text in texts)]
    return (*row, _digest(*map(str, row)))


def _storable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _digest(*texts: str) -> str:
    """SHA-256 of texts, each after its length: no two sequences share an encoding, lone surrogates included."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return digest.hexdigest()


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Take the file if it is ours or empty. Nothing is written to a file that is neither."""
    is_ours = _check(connection, path)
    _use_write_ahead_log(connection)
    connection.execute("PRAGMA synchronous = NORMAL")
    if is_ours:
        return
    connection.execute("BEGIN IMMEDIATE")
    if not _check(connection, path):  # another process may have been first
        connection.execute(_SCHEMA)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _check(connection: sqlite3.Connection, path: Path) -> bool:
    """True where the file holds verdicts, False where it is empty.

    Raises:
        JudgeError: it holds something else.
    """
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    if (application_id, version, tables) == (0, 0, []):
        return False
    if application_id != APPLICATION_ID:
        raise JudgeError(f"judge.cache={path} is a database of something else: set judge.cache to another file")
    if version > SCHEMA_VERSION:
        raise JudgeError(
            f"judge.cache={path} has schema {version}, this version reads {SCHEMA_VERSION}: "
            f"use the newer version, or set judge.cache to another file"
        )
    if version != SCHEMA_VERSION or tables != ["verdicts"]:
        raise JudgeError(_damage(path, f"schema {version} with tables {tables}"))
    return True


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """SQLite does not wait for other processes in this one statement, so it is tried until they are done."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if _code(error) not in _BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """SQLite's errors, with the file and what to do about it."""
    try:
        yield
    except sqlite3.Error as error:
        if _code(error) in _DAMAGED:
            message = _damage(path, str(error))
        elif _code(error) in _BUSY:
            message = f"judge.cache={path} was locked by another process for {BUSY_S:g} s: see who holds it open"
        else:
            message = f"judge.cache={path} cannot be used: {error}; set judge.cache to another file, or to nothing"
        raise JudgeError(message) from error


def _damage(path: Path, what: str) -> str:
    return (
        f"judge.cache={path} is damaged or no file of verdicts ({what}): move it away with its -wal and -shm files, "
        f"or set judge.cache to another file; lost verdicts are asked for again"
    )


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 for errors that Python's module raises itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
