"""The circuit breaker, under a clock that jumps."""

import asyncio

import pytest

from actors.errors import JudgeError
from judge.outages import OPENS_AFTER, Breaker
from judge.verdict import AVAILABILITY, Failure, Verdict
from tests.judge.scripted import failed
from tests.virtual_time import in_virtual_time, now

YES = Verdict(is_correct=True, judge="llm", reason="")
DOWN = failed(Failure.UNREACHABLE, "connection refused")


class Endpoint:
    """Probes answer from `back_at` on."""

    def __init__(self, back_at: float = 0.0, failure=DOWN, *, seconds: float = 0.0, max_pause_s: float = 1800.0):
        self.back_at, self.failure, self.seconds = back_at, failure, seconds
        self.probes: list[float] = []
        self.said: list[str] = []
        self.breaker = Breaker(self.probe, max_pause_s=max_pause_s, warn=self.said.append)

    async def probe(self):
        self.probes.append(now())
        await asyncio.sleep(self.seconds)
        return YES if now() >= self.back_at else self.failure

    def fail(self, times: int = OPENS_AFTER) -> None:
        for _ in range(times):
            self.breaker.failed()


@in_virtual_time
async def test_it_opens_after_so_many_failures_in_a_row_and_a_success_starts_the_count_anew():
    it = Endpoint()
    it.fail(OPENS_AFTER - 1)
    it.breaker.succeeded()
    it.fail(OPENS_AFTER - 1)
    assert not it.breaker.is_open
    await it.breaker.closed()
    it.fail(1)
    assert it.breaker.is_open


@in_virtual_time
async def test_one_probe_at_a_time_goes_out_however_many_wait_and_the_first_verdict_frees_them_all():
    it = Endpoint(back_at=now() + 60, seconds=0.5)
    it.fail()
    started = now()
    waiting = [asyncio.create_task(it.breaker.closed()) for _ in range(50)]
    await asyncio.sleep(1.2)
    assert it.breaker.is_open
    await asyncio.wait(waiting)
    assert not it.breaker.is_open
    gaps = [after - before for before, after in zip([started, *it.probes], it.probes, strict=False)]
    assert gaps[0] == 1
    assert gaps == sorted(gaps)
    assert max(gaps) <= 10.5
    assert 60 <= now() - started <= 70.5
    assert it.breaker.num_outages == 1
    assert it.breaker.paused_s == pytest.approx(now() - started)


@in_virtual_time
async def test_a_person_is_told_once_why_the_run_waits_and_once_that_it_goes_on():
    it = Endpoint(back_at=now() + 60, failure=failed(Failure.DENIED, "401 unauthorized"))
    it.fail()
    await asyncio.gather(*(it.breaker.closed() for _ in range(5)))
    assert len(it.said) == 2
    assert "401 unauthorized" in it.said[0]
    assert "correct the key" in it.said[0]
    assert "continues" in it.said[1]


@in_virtual_time
async def test_a_hiccup_that_the_first_probe_survives_is_not_worth_a_word():
    it = Endpoint()
    it.fail()
    await it.breaker.closed()
    assert it.said == []
    assert (it.breaker.num_outages, it.breaker.num_successes) == (0, 1)


@in_virtual_time
async def test_a_trip_probes_at_once():
    it = Endpoint()
    it.breaker.trip()
    started = now()
    await it.breaker.closed()
    assert now() == started
    assert len(it.probes) == 1


@in_virtual_time
async def test_a_verdict_of_a_call_under_way_ends_a_pause_before_the_next_probe():
    it = Endpoint(back_at=float("inf"))
    it.fail()
    started = now()
    waiting = asyncio.create_task(it.breaker.closed())
    await asyncio.sleep(30.1)
    it.breaker.succeeded()
    await waiting
    assert now() - started == pytest.approx(30.1)


@in_virtual_time
async def test_a_probe_that_fails_after_the_judges_were_met_is_no_outage():
    it = Endpoint(back_at=float("inf"), seconds=20.0)
    it.fail()
    waiting = asyncio.create_task(it.breaker.closed())
    await asyncio.sleep(5)
    assert it.breaker.is_open
    it.breaker.succeeded()
    started = now()
    await waiting
    assert now() == started, "and nobody waits for its end"
    assert (it.breaker.is_open, it.breaker.num_outages, it.said) == (False, 0, [])


@pytest.mark.parametrize("seconds", [0.0, 1.0])
@in_virtual_time
async def test_a_bug_in_a_probe_reaches_who_waits(seconds):
    it = Endpoint(seconds=seconds, failure=None)
    it.fail()

    async def broken():
        await asyncio.sleep(seconds)
        raise KeyError("bug")

    it.breaker._probe = broken
    with pytest.raises(KeyError):
        await it.breaker.closed()


@pytest.mark.parametrize("failure", list(Failure))
@in_virtual_time
async def test_any_reply_to_a_probe_ends_an_outage_even_one_that_is_no_verdict(failure):
    it = Endpoint(back_at=float("inf"), failure=failed(failure), max_pause_s=100.0)
    it.fail()
    if failure in AVAILABILITY:
        with pytest.raises(JudgeError):
            await it.breaker.closed()
    else:
        await it.breaker.closed()
        assert (len(it.probes), it.breaker.num_outages) == (1, 0)


@in_virtual_time
async def test_an_outage_longer_than_the_limit_stops_all_who_wait_with_reason_and_remedy():
    it = Endpoint(back_at=float("inf"), max_pause_s=300.0)
    it.fail()
    started = now()
    outcomes = await asyncio.gather(*(it.breaker.closed() for _ in range(20)), return_exceptions=True)
    assert all(isinstance(outcome, JudgeError) for outcome in outcomes)
    assert 300 <= now() - started <= 311
    assert "connection refused" in str(outcomes[0])
    assert "--resume" in str(outcomes[0])


@in_virtual_time
async def test_an_outage_that_nobody_waits_for_does_not_use_up_the_patience():
    it = Endpoint(back_at=now() + 5000, max_pause_s=300.0)
    it.fail()
    await asyncio.sleep(5000)  # an update of the learner
    await it.breaker.closed()
    assert it.breaker.paused_s == 1


@in_virtual_time
async def test_when_the_one_who_probes_is_cancelled_the_next_goes_on():
    it = Endpoint(back_at=now() + 20)
    it.fail()
    first, second = (asyncio.create_task(it.breaker.closed()) for _ in range(2))
    await asyncio.sleep(5)
    first.cancel()
    await second
    assert not it.breaker.is_open
    assert first.cancelled()


@in_virtual_time
async def test_an_outage_that_begins_in_the_moment_the_last_one_ends_is_waited_out_by_who_still_waits():
    it = Endpoint(back_at=now() + 60)
    it.fail()
    waiting = asyncio.create_task(it.breaker.closed())
    await asyncio.sleep(0.5)
    it.breaker.succeeded()
    it.fail()
    await waiting
    assert (it.breaker.is_open, it.breaker.num_outages) == (False, 1)
    assert 60 <= it.breaker.paused_s < 71


@pytest.mark.parametrize("num_ticks", range(4))
@in_virtual_time
async def test_whoever_is_cancelled_in_the_moment_an_outage_ends_is_cancelled(num_ticks):
    it = Endpoint()
    it.fail()

    async def wait_then_call():
        await it.breaker.closed()
        await asyncio.sleep(600)

    waiting = asyncio.create_task(wait_then_call())
    await asyncio.sleep(0.5)
    it.breaker.succeeded()
    for _ in range(num_ticks):
        await asyncio.sleep(0)
    waiting.cancel()
    started = now()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert now() == started
