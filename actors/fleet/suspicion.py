"""Which rollout workers are unfit: a pure function of what is known about each.

A failed sample is the sample's fault until proven otherwise. What proves it is a comparison: several different samples
in a row fail on one worker while another worker plays its own. Where every worker fails, the data or the config is at
fault, dropping workers mends nothing, and `train.max_lost_fraction` stops the run with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

MAX_FAILED_IN_A_ROW = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureHistory:
    """What is held against a worker that answers."""

    failed_samples: tuple[str, ...] = ()
    """Uids of the different samples that failed since it last played one."""

    def after_failure(self, sample: str) -> FailureHistory:
        """A sample failed on it. The same sample counts once, however often it is tried."""
        if sample in self.failed_samples:
            return self
        return dataclasses.replace(self, failed_samples=(*self.failed_samples, sample))

    def after_success(self) -> FailureHistory:
        """It played a group: whatever failed before was not its fault."""
        return FailureHistory()


def is_faulty(standing: FailureHistory, others: Iterable[FailureHistory]) -> bool:
    """Whether a worker stands out as faulty: samples fail on it in a row, on some other worker they do not.

    The last worker is never unfit, as there is none to compare it with.
    """
    return len(standing.failed_samples) >= MAX_FAILED_IN_A_ROW and any(not other.failed_samples for other in others)
