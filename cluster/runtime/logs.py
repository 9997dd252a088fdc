"""Collects the logs of a run's processes in the run folder, and extracts the cause of a failure from them.

Ray writes logs to its session folder on each node, under opaque ids. During a run, the run folder has links to the logs
of this node; at the end it gets copies, including those of other nodes.

    runs/NAME/logs/RolloutWorker-4711.out    standard output of a process; vLLM's engine writes into its worker's
                   RolloutWorker-4711.err    standard error, with Ray's tracebacks
                   driver.log               the traceback with which the run ended, if one of its parts failed
                   serve/                    judges
                   NODE/                     the same of other nodes
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.causes import cause_in_log, is_vague, root_cause
from actors.errors import JudgeError, LearnerError, RolloutError, WeightSyncError, first_error

MAX_COPIED_BYTES = 16 << 20
"""Longer logs are truncated to their end."""
READ_BYTES = 1 << 20
"""Read from the end of a log to find a cause, and copied from logs of other nodes."""
HEAD_CHARS = 400
"""Start of a log, where Ray writes job and actor."""
FETCH_S = 10.0
"""Timeout for logs of other nodes; those of a dead node are lost."""
PART_FAILURES = (RolloutError, LearnerError, JudgeError, WeightSyncError)
"""Failures of processes that have logs."""
DRIVER_LOG = "driver.log"
_PID = re.compile(r"\bpid[=:]\s*(\d+)")
_ACTOR = re.compile(r"^:actor_name:(\w+)", re.MULTILINE)


class RunLogs:
    """The logs of one job on this node.

    Args:
        folder: destination; None leaves the logs where Ray writes them.
        session: where Ray writes them.
        job: Ray's id of this driver.
    """

    def __init__(self, folder: Path | None, *, session: Path, job: str) -> None:
        self._folder = folder
        self._started_at = time.time()
        self._session = session
        self._job = job

    @classmethod
    def of_this_job(cls, folder: Path | None) -> Self:
        """Create after Ray has started; call `close` before Ray is shut down."""
        return cls(folder, session=session_logs(), job=str(ray.get_runtime_context().get_job_id()))

    @property
    def folder(self) -> Path:
        """Folder to show to the user."""
        return self._folder or self._session

    def link(self) -> list[Path]:
        """Link the logs of this node into the folder; returns their paths, newest first."""
        found = named_logs(self._session, self._job)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            found = {name: _linked(self._folder / name, source) for name, source in found.items()}
        return sorted(found.values(), key=_modified_at, reverse=True)

    @contextlib.contextmanager
    def explain_failures(self) -> Iterator[None]:
        """Re-raise a component failure in the body with its root cause and the path of its log."""
        try:
            yield
        except PART_FAILURES as error:
            raise type(error)(self.explain(error)) from error
        except BaseExceptionGroup as group:
            failures = group.subgroup(PART_FAILURES)
            if failures is None:
                raise
            first = first_error(failures)
            raise type(first)(self.explain(first)) from group

    def explain(self, error: BaseException) -> str:
        """One line with the root cause and the path of the log; the full traceback goes to driver.log.

        The logs are searched only if the error itself is not informative.
        """
        logs = self.link()
        if self._folder is not None:
            (self._folder / DRIVER_LOG).write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        told, pids = root_cause(error), _PID.findall("".join(_messages(error)))
        of_process = [log for log in logs if log.stem.rpartition("-")[2] in pids]
        if not is_vague(told):
            return f"{told}; log: {of_process[0] if of_process else self.folder}"
        for log in of_process or logs:
            if (cause := cause_in_log(read_end(log, READ_BYTES))) is not None:
                part, separator, _ = told.partition(": ")
                return f"{part}{separator}{cause}; log: {log}" if separator else f"{cause}; log: {log}"
        return f"{told}; log: {of_process[0] if of_process else self.folder}"

    def close(self) -> None:
        """Replace links by copies, and fetch the logs of other nodes."""
        self.link()
        if self._folder is None:
            return
        for name, source in named_logs(self._session, self._job).items():
            _copy_end(source, self._folder / name)
        serve = self._session / "serve"
        for source in serve.glob("*.log") if serve.is_dir() else ():
            if _modified_at(source) >= self._started_at:
                (self._folder / "serve").mkdir(exist_ok=True)
                _copy_end(source, self._folder / "serve" / source.name)
        for node, logs in _logs_of_other_nodes(self._job):
            for name, text in logs.items():
                (self._folder / node).mkdir(exist_ok=True)
                (self._folder / node / name).write_text(text, encoding="utf-8")


def _messages(error: BaseException | None) -> Iterator[str]:
    """Messages of an error and its causes."""
    while error is not None:
        yield f"{error}\n"
        error = error.__cause__ or error.__context__


def session_logs() -> Path:
    """Ray's log folder on this node."""
    node = ray._private.worker.global_worker.node  # Ray has no public API for its session folder
    return Path(node.get_logs_dir_path())


def named_logs(session: Path, job: str) -> dict[str, Path]:
    """Logs of a job on this node under readable names: ACTOR-PID.out and ACTOR-PID.err."""
    found = {}
    for source in sorted(session.glob("worker-*-*-*.*")):
        with contextlib.suppress(OSError), source.open(encoding="utf-8", errors="replace") as file:
            head = file.read(HEAD_CHARS)
            # A process that Ray started ahead of any job has no job in its log's name, but writes it when it gets one.
            if f"-{job}-" not in source.name and f":job_id:{job}\n" not in head:
                continue
            actor = _ACTOR.search(head)
            pid = source.stem.rpartition("-")[2]
            found[f"{actor[1] if actor else 'worker'}-{pid}{source.suffix}"] = source
    return found


def read_end(file: Path, num_bytes: int) -> str:
    """The last bytes of a text file; empty where it cannot be read."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - num_bytes))
            return stream.read(num_bytes).decode(errors="replace")
    except OSError:
        return ""


def _linked(link: Path, source: Path) -> Path:
    """Create or replace a link to a file; returns the file itself where links are not supported."""
    try:
        if not link.is_symlink() or os.readlink(link) != str(source):
            link.unlink(missing_ok=True)
            link.symlink_to(source)
    except OSError:
        return source
    return link


def _copy_end(source: Path, target: Path) -> None:
    """Copy a file (only the end of a long one) over `target`. Failures are ignored."""
    partial = target.with_name(f"{target.name}.tmp")
    with contextlib.suppress(OSError):
        with source.open("rb") as reader, partial.open("wb") as writer:
            reader.seek(max(0, source.stat().st_size - MAX_COPIED_BYTES))
            shutil.copyfileobj(reader, writer)
        os.replace(partial, target)


def _modified_at(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _logs_here(job: str) -> dict[str, str]:
    return {name: read_end(source, READ_BYTES) for name, source in named_logs(session_logs(), job).items()}


def _logs_of_other_nodes(job: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    own = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != own]
    fetch = ray.remote(num_cpus=0, max_retries=0)(_logs_here)
    calls = {
        fetch.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(job): node
        for node in others
    }
    done, late = ray.wait(list(calls), num_returns=len(calls), timeout=FETCH_S) if calls else ([], [])
    for call in late:
        ray.cancel(call, force=True)
    for call in done:
        with contextlib.suppress(RayError):
            yield calls[call]["NodeManagerHostname"], ray.get(call)
