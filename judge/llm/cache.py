"""Verdicts of LLM judges on disk: what was decided once is not asked, paid or waited for again.

One SQLite file, shared by runs, several at a time. The key of a verdict is what the LLM saw and who answered, and it
keeps its first verdict. Rules are cheaper than a look-up, and what failed is no verdict: neither is kept.

The cache saves money and never costs a run: a file that cannot be used is warned of once and not touched again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from configs.judges import JudgeConfig
from judge.llm.prompt import clean_texts
from judge.verdict import Usage, Verdict

BUSY_S = 10.0
"""How long one access waits for other processes."""
NETWORK_FILESYSTEMS = re.compile(
    r"nfs\d?|cifs|smb\w*|ncpfs|lustre|gpfs|beegfs|ceph|glusterfs|orangefs|pvfs2|afs|coda|9p|ocfs2|gfs2|davfs"
    r"|fuse(\.(?!fuse-overlayfs).*)?"
)
"""Types whose locks SQLite cannot rely on between machines. What a FUSE file system does with locks nobody can tell."""
FAULTS = (OSError, sqlite3.Error, ValueError, TypeError, LookupError)
"""Of a file that is out of reach, locked, full or damaged."""

# The number tells what a row holds and what a key is made of: older verdicts lie in a table of their own.
_CREATE = """CREATE TABLE IF NOT EXISTS verdicts_3
(key TEXT PRIMARY KEY, answer TEXT, created_at DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))) WITHOUT ROWID"""
_INSERT = "INSERT OR IGNORE INTO verdicts_3 (key, answer) VALUES (?, ?)"
_SELECT = "SELECT key, answer FROM verdicts_3 WHERE key IN (SELECT value FROM json_each(?))"

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

    At how many characters a text is cut is part of `judge_version` (see `judge.llm.version`).
    """
    seen = clean_texts(question, reference, prediction, max_field_chars=1 << 40, max_answer_chars=1 << 40)
    return hashlib.sha256(json.dumps([judge_version, *seen.values()]).encode()).hexdigest()


def network_filesystem(path: Path, mounts: Iterable[tuple[str, str]]) -> str | None:
    """Type of the file system where a file lies or would lie if it is one of a network; None if it is local.

    `mounts` are mount points and types, in the order of mounting.
    """
    depth, kind = 0, ""
    for point, mounted in mounts:
        if path.is_relative_to(point) and len(Path(point).parts) >= depth:  # the later of two mounts lies on top
            depth, kind = len(Path(point).parts), mounted
    return kind if NETWORK_FILESYSTEMS.fullmatch(kind) else None


def open_cache(config: JudgeConfig, warn: Callable[[str], None]) -> VerdictCache | None:
    """The cache of a config; None where it wants none. `warn` is called from a thread."""
    path = Path(os.path.abspath(os.path.expanduser(config.cache)))
    return VerdictCache(path, warn) if config.has_llm and config.cache else None


class VerdictCache:
    """The file of verdicts, used by a driver from its event loop. Made on first use, with its folders.

    All access goes through one thread, so that the loop never waits for a disk or for another process.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self.path, self._warn, self._is_off = path, warn, False
        self._connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="verdict-cache")

    async def get(self, keys: Sequence[str]) -> dict[str, Verdict]:
        """The verdicts that are there, by key. A hit costs nothing: its usage is zero."""

        def read(connection: sqlite3.Connection) -> dict[str, Verdict]:
            rows = connection.execute(_SELECT, [json.dumps(list(keys))])
            return {key: Verdict(**{**json.loads(answer)["verdict"], "usage": Usage()}) for key, answer in rows}

        return await self._run(read) or {}

    async def put(self, answer: JudgedAnswer) -> None:
        """Keep a verdict of an LLM. A key that is there keeps what it has."""
        assert answer.verdict.judge_version, "only an LLM's verdict is kept, under its judge's version"
        row = [answer.key, json.dumps(asdict(answer))]
        await self._run(lambda connection: connection.execute(_INSERT, row))

    def close(self) -> None:
        """Write what is under way, then close. Blocks."""
        self._thread.shutdown(wait=True)
        if self._connection:
            self._connection.close()

    async def _run(self, access: Callable[[sqlite3.Connection], Found]) -> Found | None:
        """What an access gives; None from the first that fails on."""

        def attempt() -> Found | None:
            if self._is_off:  # since this one was queued
                return None
            try:
                self._connection = self._connection or _connect(self.path)
                return access(self._connection)
            except FAULTS as error:
                self._is_off = True
                remedy = "set judge.cache to another file, on a local disk, or move a damaged file away"
                self._warn(f"judge.cache={self.path} is disabled, verdicts are not kept: {error}; {remedy}")
                return None

        return await asyncio.get_running_loop().run_in_executor(self._thread, attempt)


def _connect(path: Path) -> sqlite3.Connection:
    mounts = [(mount.mountpoint, mount.fstype) for mount in psutil.disk_partitions(all=True)]
    if kind := network_filesystem(path.resolve(), mounts):
        raise OSError(f"it is on a network file system ({kind}), where SQLite's locks are not reliable")
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    # A write takes 1.5 ms with the write-ahead log and 30 ms without. The file keeps this setting; SQLite does not wait
    # for others in this one statement, and whoever is in the way is about to make it too.
    with contextlib.suppress(sqlite3.OperationalError):
        connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(_CREATE)
    return connection
