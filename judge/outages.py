"""Outages of the judges: seen by failures in a row, waited out, ended by the first reply."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from actors.errors import JudgeError
from judge.limits import loop_time
from judge.verdict import AVAILABILITY, Failure, JudgeRequest, NoVerdict, Outcome

OPENS_AFTER = 10  # calls that failed in a row, none succeeding between them
FIRST_PROBE_S = 1.0
MAX_PROBE_S = 10.0
PROBE = JudgeRequest(question="What kind of vehicle is shown?", reference="car", predictions=("automobile",))
REMEDIES = {
    Failure.DENIED: "correct the key, the model or the address in judge.llm",
    Failure.THROTTLED: "wait until the endpoint accepts calls again, or lower judge.llm.requests_per_minute",
    Failure.UNREACHABLE: "restart the judge's endpoint",
}


class Breaker:
    """A circuit breaker: counts what calls bring and holds them back in an outage.

    Whoever waits sends one probe at a time: a settled question. Nothing runs in the background.

    Args:
        probe: sends `PROBE` through the same handle as everything else; ends within a deadline of its own.
        max_pause_s: longest outage to wait out.
        warn: says once why the run waits, and that it goes on.
    """

    def __init__(
        self, probe: Callable[[], Awaitable[Outcome]], *, max_pause_s: float, warn: Callable[[str], None]
    ) -> None:
        self._probe = probe
        self._max_pause_s = max_pause_s
        self._warn = warn
        self._closed = asyncio.Event()
        self._closed.set()
        self._probing = asyncio.Lock()
        self._num_failures = 0
        self._num_failed_probes = 0
        self._next_probe_s = 0.0
        self._to_continue = ""
        self._waiting_since: float | None = None
        self._paused_s = 0.0
        self.num_successes = 0
        """Calls that brought a verdict and probes that brought a reply, ever."""
        self.num_outages = 0
        """Pauses in which a probe failed as well: outages beyond doubt."""

    @property
    def is_open(self) -> bool:
        """Whether calls are held back."""
        return not self._closed.is_set()

    @property
    def paused_s(self) -> float:
        """Seconds in which somebody waited for the judges to come back."""
        return self._paused_s + (0.0 if self._waiting_since is None else loop_time() - self._waiting_since)

    def succeeded(self) -> None:
        """A call brought a verdict: the judges are there."""
        self.num_successes += 1
        self._num_failures = 0
        self._closed.set()
        if self._waiting_since is not None:
            waited_s = loop_time() - self._waiting_since
            self._paused_s += waited_s
            self._waiting_since = None
            if self._num_failed_probes:
                self._warn(f"judges respond again after {waited_s:.0f} s: the run continues")

    def failed(self) -> None:
        """A call failed for want of a judge, not because of what was asked."""
        self._num_failures += 1
        if self._num_failures >= OPENS_AFTER:
            self.trip(FIRST_PROBE_S)

    def trip(self, first_probe_s: float = 0.0) -> None:
        """Ask with a probe whether the judges are there: somebody has tried in vain and saw nobody succeed."""
        if not self.is_open:
            self._closed.clear()
            self._num_failed_probes, self._next_probe_s = 0, first_probe_s

    async def closed(self) -> None:
        """Return at once while the judges are there, or when they are back.

        Raises:
            JudgeError: they were away for longer than `max_pause_s`.
        """
        if not self.is_open:
            return
        async with self._probing:
            while self.is_open:
                since = self._waiting_since = self._waiting_since or loop_time()
                # An outage has its deadline as well, once a probe has shown that it is one.
                if self._num_failed_probes and loop_time() - since >= self._max_pause_s:
                    raise JudgeError(
                        f"no judge responded for judge.max_pause_s={self._max_pause_s:g} s; last error: "
                        f"{self._to_continue}, then run the same command with --resume"
                    )
                outcome = await self._next_probe()
                if isinstance(outcome, NoVerdict) and outcome.failure in AVAILABILITY:
                    self._probe_failed(outcome)
                elif outcome is not None:
                    self.succeeded()  # whatever the judges make of this one question, they are there

    async def _next_probe(self) -> Outcome | None:
        """What it brings; None where a call under way brought a verdict first: what would a probe still tell?"""

        async def probe() -> Outcome:
            await asyncio.sleep(self._next_probe_s)
            return await self._probe()

        probing, closed = asyncio.create_task(probe()), asyncio.create_task(self._closed.wait())
        try:
            await asyncio.wait((probing, closed), return_when=asyncio.FIRST_COMPLETED)
            outcome = probing.result() if probing.done() else None
        finally:
            probing.cancel()
            closed.cancel()
        return outcome if self.is_open else None

    def _probe_failed(self, outcome: NoVerdict) -> None:
        self._num_failed_probes += 1
        self._next_probe_s = min(MAX_PROBE_S, max(FIRST_PROBE_S, 1.5 * self._next_probe_s))
        self._to_continue = f"{outcome.reason}. To continue, {REMEDIES[outcome.failure]}"
        if self._num_failed_probes == 1:
            self.num_outages += 1
            self._warn(
                f"the run is waiting for the judges: {self._to_continue}; no sample is consumed meanwhile; the run "
                f"continues by itself once they respond (judge.max_pause_s={self._max_pause_s:g})"
            )
