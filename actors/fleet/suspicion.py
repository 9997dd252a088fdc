"""Decides which rollout workers are faulty, from the failure history of each. Pure.

A failure is attributed to the sample unless the comparison of workers says otherwise: several different samples fail in
a row on one worker while another worker succeeds. If every worker fails, the data or the config is at fault; dropping
workers would not help, and `train.max_lost_fraction` stops the run with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

MAX_FAILED_IN_A_ROW = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureHistory:
    """Recent failures of a worker that is still responsive."""

    failed_samples: tuple[str, ...] = ()
    """Uids of the distinct samples that failed since its last success."""

    def after_failure(self, sample: str) -> FailureHistory:
        """After a failed sample. The same sample counts once, however often it is retried."""
        if sample in self.failed_samples:
            return self
        return dataclasses.replace(self, failed_samples=(*self.failed_samples, sample))

    def after_success(self) -> FailureHistory:
        """After a success, which clears the history."""
        return FailureHistory()


def is_faulty(history: FailureHistory, others: Iterable[FailureHistory]) -> bool:
    """Whether a worker is faulty: samples fail on it in a row, while some other worker has no failures.

    The last worker is never considered faulty, as there is none to compare it with.
    """
    return len(history.failed_samples) >= MAX_FAILED_IN_A_ROW and any(not other.failed_samples for other in others)
