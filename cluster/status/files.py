"""RUN/status.json, which the driver replaces and anybody who sees the folder reads, and whether a driver is alive."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from actors.errors import RunError
from cluster.runs.claims import Seen
from cluster.runs.lease import FOLDER, look
from cluster.status.views import RunStatus, decode_status, encode_status
from configs.paths import maybe_meant

STATUS = "status.json"
HEARTBEAT_S = 5.0
"""The driver writes at least this often, so that a file that no longer changes tells that it is gone."""
STALE_S = 3 * HEARTBEAT_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A status with what tells whether its driver is alive."""

    status: RunStatus
    written_at: float
    """Wall-clock time of the driver's machine."""
    beat: int
    """Number of the writing; it grows while the driver is alive."""
    host: str
    pid: int

    def age_s(self, now: float) -> float:
        """Seconds since it was written; clocks of two machines may differ by more than that."""
        return max(0.0, now - self.written_at)


def write_snapshot(folder: Path, snapshot: Snapshot) -> None:
    """Replace the file at once for its readers. Not synced: a status that a crash took with it was of no use anyway."""
    fields = {
        "written_at": snapshot.written_at,
        "beat": snapshot.beat,
        "host": snapshot.host,
        "pid": snapshot.pid,
        "status": encode_status(snapshot.status),
    }
    replace_file(folder / STATUS, json.dumps(fields))


def replace_file(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_snapshot(folder: Path) -> Snapshot:
    """Raises ValueError for a folder that has no readable status."""
    path = folder / STATUS
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give the folder of a run, as in runs/tiny{maybe_meant(folder)}")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Snapshot(
            status=decode_status(fields["status"]),
            written_at=float(fields["written_at"]),
            beat=int(fields["beat"]),
            host=str(fields["host"]),
            pid=int(fields["pid"]),
        )
    except FileNotFoundError as error:
        raise ValueError(f"{folder} has no {STATUS}: no run has started there") from error
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def is_alive(
    folder: Path,
    snapshot: Snapshot,
    *,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Whether a driver writes this file. Where neither clock nor process can tell, waits for its next beat.

    A file that looks too old, or of the future, may only come from a machine whose clock differs.
    """
    if snapshot.status.is_over:
        return False
    seen = _claim_seen(folder)
    if seen is not None and seen.pulse == "dead":
        return False
    if abs(now() - snapshot.written_at) <= STALE_S:
        return True
    for _ in range(round(2 * HEARTBEAT_S)):
        sleep(1.0)
        try:
            found = read_snapshot(folder)
        except ValueError:
            continue
        if (found.beat, found.pid) != (snapshot.beat, snapshot.pid):
            return not found.status.is_over
    return False


def lease_owner(folder: Path) -> str:
    """Who holds the run, by the newest claim in its folder; empty where nobody does."""
    seen = _claim_seen(folder)
    claim = seen.claim if seen is not None else None
    return "" if claim is None or claim.is_released else str(claim)


def _claim_seen(folder: Path) -> Seen | None:
    try:
        return look(folder / FOLDER)
    except (OSError, RunError):
        return None
