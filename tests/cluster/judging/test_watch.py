"""Judges as the loop sees them, with canaries beside the groups."""

import asyncio
from dataclasses import replace

import pytest

from actors.errors import JudgeError, RunError
from cluster.judging.watch import JudgeWatch
from configs.judges import JudgeConfig
from configs.schema import Config
from judge.pool import JudgePool
from judge.trust.check import certain_rules
from judge.trust.goldset import ATTACKS_FILE, GOLD_FILE, read_gold
from judge.verdict import Verdict
from tests.judge.scripted import Judges, ask, llm_config, said
from tests.virtual_time import in_virtual_time

KNOWN = {
    (row.question, row.reference, row.prediction): row.is_correct
    for file in (GOLD_FILE, ATTACKS_FILE)
    for row in read_gold(file)
}


def knowing(request, prediction):
    """A judge that knows the settled rows."""
    verdict = said(request, prediction)
    return replace(verdict, is_correct=KNOWN[request.question, request.reference, prediction])


def easy(request, prediction):
    """One that passes everything."""
    return replace(said(request, prediction), is_correct=True)


def watch(judge, *, seconds: float = 0.0, count_replicas=None, **settings):
    config = Config(judge=llm_config(**{"canary_share": 1.0, "chain": ("openai",), **settings}))
    handle, said_to_a_person = Judges(judge, seconds=seconds), []
    pool = JudgePool(handle, config.judge)
    return (
        JudgeWatch(pool, config, warn=said_to_a_person.append, count_replicas=count_replicas),
        pool,
        handle,
        said_to_a_person,
    )


async def settle():
    await asyncio.sleep(10)


@in_virtual_time
async def test_canaries_are_judged_beside_the_groups_and_are_counted_by_step():
    it, _, handle, warnings = watch(knowing)
    for step in (1, 2):
        for number in range(50 * step):
            it.send_canary(step, f"0-{number}")
        assert handle.calls == [] or step == 2, "nobody waited"
        await settle()
        it.check()
        figures = it.figures()
        assert figures["judge/canaries"] == 50 * step
        assert figures["judge/canary_false_positive_rate"] == 0.0
    assert warnings == []
    assert it.totals()["canaries"] == 150


@in_virtual_time
async def test_no_share_no_canary():
    it, _, handle, _ = watch(knowing, canary_share=0.0)
    for number in range(100):
        it.send_canary(1, f"0-{number}")
    await settle()
    assert handle.calls == []
    assert "judge/canary_false_positive_rate" not in it.figures()


async def canaries_of(*chain: str) -> list[bool]:
    """Of each canary that reaches the LLM beside a hundred groups: whether certain rules would have decided it."""
    asked = []

    def remember(request, prediction):
        asked.append(request)
        return knowing(request, prediction)

    it, *_ = watch(remember, chain=chain)
    for number in range(100):
        it.send_canary(1, f"0-{number}")
    async with asyncio.timeout(60):
        while "openai" in chain and it.totals()["canaries"] < 100:
            await asyncio.sleep(0.05)
    it.check()
    rules = certain_rules(JudgeConfig())
    return [isinstance((await rules.grade(request))[0], Verdict) for request in asked]


async def test_rules_alone_have_no_canary_and_before_an_llm_only_what_they_leave_open_is_one():
    assert await canaries_of("rules") == []
    alone, behind = await canaries_of("openai"), await canaries_of("rules", "openai")
    assert len(alone) == len(behind) == 100
    assert any(alone)
    assert not any(behind)


@in_virtual_time
async def test_a_judge_that_passes_everything_warns_and_then_stops_the_run():
    it, _, _, warnings = watch(easy)
    for number in range(40):
        it.send_canary(1, f"0-{number}")
    await settle()
    with pytest.raises(RunError, match="canary_stop"):
        it.check()
    assert len(warnings) == 1


@in_virtual_time
async def test_a_bug_met_by_a_canary_comes_out_at_check():
    it, *_ = watch(lambda request, prediction: 1 / 0)
    it.send_canary(1, "0-0")
    await settle()
    with pytest.raises(ZeroDivisionError):
        it.check()


@in_virtual_time
async def test_figures_are_of_the_step_and_totals_of_the_run_also_after_a_resumption():
    it, pool, _, _ = watch(said, canary_share=0.0)
    await pool.grade(ask("red", "blue"))
    first = it.figures()
    await pool.grade(ask("green"))
    second = it.figures()
    assert (first["judge/llm_calls"], second["judge/llm_calls"]) == (2.0, 1.0)
    assert (first["judge/cost_usd"], second["judge/cost_usd"]) == pytest.approx((0.0003, 0.00015))
    assert it.totals()["prompt_tokens"] == 300
    resumed, pool, _, _ = watch(said, canary_share=0.0)
    resumed.restore(it.totals())
    await pool.grade(ask("red"))
    assert resumed.totals()["llm_calls"] == 4
    assert resumed.totals()["cost_usd"] == pytest.approx(0.0006)
    assert resumed.figures()["judge/llm_calls"] == 1.0


@in_virtual_time
async def test_calls_that_brought_no_reply_are_a_figure_of_the_step_and_of_the_run():
    it, pool, handle, _ = watch(said, canary_share=0.0)
    handle.judge = lambda request, prediction: (
        JudgeError("replica died") if len(handle.calls) == 1 else said(request, prediction)
    )
    await pool.grade(ask("red"))
    assert it.figures()["judge/lost_calls"] == 1.0
    await pool.grade(ask("red"))
    assert it.figures()["judge/lost_calls"] == 0.0
    assert it.totals()["lost_calls"] == 1


async def test_replicas_are_counted_beside_the_loop():
    it, *_ = watch(said, count_replicas=lambda: 3)
    assert "judge/replicas" not in it.figures()
    it.ask_replicas()
    await asyncio.sleep(0.1)
    it.check()
    assert it.figures()["judge/replicas"] == 3.0


@in_virtual_time
async def test_closing_gives_up_what_is_under_way():
    it, _, handle, _ = watch(knowing, seconds=100.0)
    it.send_canary(1, "0-0")
    await settle()
    assert handle.under_way == 1
    async with asyncio.timeout(1):
        await it.close()
    assert handle.under_way == 0
