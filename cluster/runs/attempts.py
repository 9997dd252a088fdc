"""Sets the records of a run aside when it starts from step 0 again: what was recorded is never deleted."""

from __future__ import annotations

import os
from pathlib import Path

ATTEMPTS = "attempts"
RECORDS = (
    "config.yaml", "metrics.jsonl", "ledger.jsonl", "lost.jsonl", "events.jsonl", "summary.json", "report.html",
    "episodes", "heldout", "tensorboard", "checkpoints", "export", "exports", "logs",
)  # fmt: skip
"""What a run writes. Anything else in its folder is not touched."""


def set_aside(run: Path) -> Path | None:
    """Move what a run has recorded to RUN/attempts/N, by renames; returns that folder, None if there was nothing.

    The caller holds the lease.
    """
    found = [run / name for name in RECORDS if (run / name).exists()]
    if not found:
        return None
    attempts = run / ATTEMPTS
    attempts.mkdir(exist_ok=True)
    numbers = [int(path.name) for path in attempts.iterdir() if path.name.isdigit()]
    target = attempts / str(max(numbers, default=0) + 1)
    target.mkdir()
    for path in found:
        os.rename(path, target / path.name)
    return target
