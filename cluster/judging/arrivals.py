"""A load for the judges that can be played again, and what its trace says about the pool.

Calls come in bursts, as groups of a training step end; judging takes log-normal time, as an LLM's does. One seed, one
plan: the same calls at the same moments with the same latencies, whatever serves them.

By Little's law a rate of calls per second that each take `service_s` keeps rate * service_s calls under way; the pool
is of the right size when these make up its target per replica. What waits for a replica is no part of it: a backlog
says that the pool was too small, not how large it has to be.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Some seconds of one mean rate."""

    seconds: float
    rate: float
    """Groups per second, on average."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One call: the answers of one group."""

    at_s: float
    """Seconds after the start of the plan."""
    group: int
    """Counts the calls from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Log-normal seconds of judging one group."""

    median_s: float
    sigma: float
    """Standard deviation of the logarithm; 0 makes all calls take the median."""

    @property
    def mean_s(self) -> float:
        return self.median_s * math.exp(self.sigma**2 / 2)

    def draw(self, seed: int, group: int | str) -> float:
        """The seconds of this group, known by number or name: the same in every process."""
        return self.median_s * math.exp(self.sigma * random.Random(f"{seed}/{group}").gauss(0.0, 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTrace:
    """One call that came back."""

    sent_s: float
    done_s: float
    """Both in seconds after the start of the plan."""
    service_s: float
    """Of these, the seconds in which a judge was at it."""
    num_verdicts: int

    @property
    def wait_s(self) -> float:
        """What the call spent on the way and in queues."""
        return max(0.0, self.done_s - self.sent_s - self.service_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSample:
    """How many replicas the pool had at a moment."""

    at_s: float
    num_running: int
    num_starting: int = 0


def plan_arrivals(phases: Sequence[Phase], *, burst: float, seed: int) -> tuple[Arrival, ...]:
    """Calls of the phases, one after the other: bursts come at random (Poisson), each of geometric size.

    Args:
        burst: mean number of calls in a burst, 1 or more. The mean rate of calls stays the phase's.
    """
    if burst < 1:
        raise ValueError(f"burst={burst!r} cannot work: a burst holds 1 call or more")
    chance = random.Random(seed)
    arrivals: list[Arrival] = []
    began_s = 0.0
    for phase in phases:
        at_s = began_s
        while phase.rate > 0 and (at_s := at_s + chance.expovariate(phase.rate / burst)) < began_s + phase.seconds:
            arrivals.append(Arrival(at_s=at_s, group=len(arrivals)))
            while chance.random() < 1 - 1 / burst:
                arrivals.append(Arrival(at_s=at_s, group=len(arrivals)))
        began_s += phase.seconds
    return tuple(arrivals)


def right_size(rate: float, service_s: float, target: float) -> int:
    """Replicas that keep `target` calls each under way at this rate (Little's law), at least one."""
    return max(1, math.ceil(rate * service_s / target - 1e-9))


def time_to_size(samples: Sequence[PoolSample], *, size: int, since_s: float) -> float | None:
    """Seconds from `since_s` until this many replicas ran; None where they never did."""
    return next((s.at_s - since_s for s in samples if s.at_s >= since_s and s.num_running >= size), None)


def time_to_release(samples: Sequence[PoolSample], *, size: int, since_s: float) -> float | None:
    """Seconds from `since_s` until no more than this many replicas ran; None where more stayed to the end."""
    return next((s.at_s - since_s for s in samples if s.at_s >= since_s and s.num_running <= size), None)


def overshoot(samples: Sequence[PoolSample], *, size: int, since_s: float, until_s: float) -> int:
    """Replicas beyond `size` that ran or were starting in this time; 0 where there were none."""
    counts = [s.num_running + s.num_starting for s in samples if since_s <= s.at_s < until_s]
    return max(0, max(counts, default=0) - size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Whether every answer was judged once, and came back once."""

    num_sent: int
    lost: int
    """Answers sent of which no verdict came back."""
    doubled: int
    """Answers judged more than once, or of which more than one verdict came back."""


def tally(sent: Sequence[str], returned: Sequence[str], judged: Sequence[tuple[str, int]]) -> Tally:
    """Compare the ids of the answers sent with those that verdicts came back for and with the judges' own count.

    Args:
        sent: ids, each once.
        returned: ids in the verdicts that came back, in any order.
        judged: id and how often judges took it up, over all replicas that ever ran.
    """
    came_back: dict[str, int] = {}
    for name in returned:
        came_back[name] = came_back.get(name, 0) + 1
    times_judged = dict(judged)
    return Tally(
        num_sent=len(sent),
        lost=sum(name not in came_back for name in sent),
        doubled=sum(came_back.get(name, 0) > 1 or times_judged.get(name, 0) > 1 for name in sent),
    )


def per_bin(moments: Sequence[float], weights: Sequence[float], *, width_s: float, end_s: float) -> list[float]:
    """Sums of the weights per second, in bins of `width_s` from 0 to `end_s`; what lies outside is left out."""
    sums = [0.0] * math.ceil(end_s / width_s - 1e-9)
    for moment, weight in zip(moments, weights, strict=True):
        if 0 <= moment < end_s:
            sums[int(moment / width_s)] += weight
    return [total / width_s for total in sums]
