"""The metrics as TensorBoard events: a copy, written anew whenever a run resumes, whose loss costs nothing else."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.records.reading import read_metrics

logger = logging.getLogger(__name__)


class Curves:
    """RUN/tensorboard. On a full disk it is given up, while the records of the run decide whether that goes on."""

    def __init__(self, run: Path) -> None:
        from tensorboard.summary import Writer  # slow to import: only where a run is recorded

        _silence_writers()
        # Event files cannot be truncated, so they are rewritten from the metrics that were kept.
        shutil.rmtree(run / "tensorboard", ignore_errors=True)
        self._writer: Any = Writer(str(run / "tensorboard"))
        for figures in read_metrics(run):
            self.add(int(figures["step"]), figures)

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Add the figures of a step."""
        try:
            for name, figure in figures.items() if self._writer else ():
                if name != "step":
                    self._writer.add_scalar(name, figure, step)
            if self._writer:
                self._writer.flush()
        except OSError as error:
            logger.warning("no TensorBoard events from step %d on: %s; metrics.jsonl has them", step, error.strerror)
            self._writer = None

    def close(self) -> None:
        if self._writer:
            self._writer.close()


def _silence_writers() -> None:
    """The writer's thread tells its caller of an error; its traceback is not printed as well."""
    show = threading.excepthook
    if getattr(show, "is_silenced", False):
        return

    def show_others(args: threading.ExceptHookArgs) -> None:
        is_writers = type(args.thread).__module__.startswith("tensorboard.")
        if not (is_writers and isinstance(args.exc_value, OSError)):
            show(args)

    show_others.is_silenced = True  # type: ignore[attr-defined]
    threading.excepthook = show_others
