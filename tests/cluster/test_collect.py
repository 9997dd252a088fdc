"""The path from prompts to scored groups, with fakes for engine and judges and everything between them real."""

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from actors.dataset import PromptCursor, SkipLedger
from actors.episode import SampleRef, SkippedSample
from actors.errors import DataError, JudgeError, RolloutError, RunError
from actors.rollout_pool import RolloutPool
from cluster.collect import collect
from configs.schema import Config, RolloutConfig, TrainConfig
from judge.pool import JudgePool
from judge.verdict import Failure, NoVerdict, Verdict
from tests.fakes import ExactJudges, FakeWorker, make_episode, make_group
from tests.judge.scripted import Judges, failed, llm_config, said
from tests.virtual_time import in_virtual_time, now

CONFIG = Config(
    rollout=RolloutConfig(group_size=4),
    train=TrainConfig(prompts_per_step=32, min_scored=2, max_draws=2.0),
)


class QuietDisplay:
    def group_done(self) -> None: ...


class NoWatch:
    def ride_along(self, step, sample): ...

    def check(self): ...

    def ask_replicas(self): ...


@dataclass
class FakeRun:
    rollouts: object
    judges: object = field(default_factory=ExactJudges)
    prompts: PromptCursor = field(default_factory=lambda: PromptCursor(dataset="train", num_rows=500, seed=0))
    skips: SkipLedger = field(default_factory=lambda: SkipLedger(max_skipped_fraction=0.01))
    display: QuietDisplay = field(default_factory=QuietDisplay)
    judge_watch: object = field(default_factory=NoWatch)


def pool(*workers):
    return RolloutPool(workers, max_groups_in_flight=8, group_timeout_s=5, sync_timeout_s=1)


class EqualRewards(FakeWorker):
    """Every other group is right throughout: nothing to learn from it."""

    async def play(self, request):
        played, image = await super().play(request)
        if self.num_played % 2:
            same = [make_episode(index=i, sample=request.ref.uid) for i in range(request.num_episodes)]
            played = make_group(same, ref=request.ref)
        return played, image


class Skipping(FakeWorker):
    async def play(self, request):
        return SkippedSample(ref=request.ref, reason="truncated image"), None


class SilentJudges:
    def __init__(self, every: int = 1) -> None:
        self.every, self.num_calls = every, 0

    async def grade(self, request):
        self.num_calls += 1
        if self.num_calls % self.every == 0:
            return tuple(NoVerdict(reason="judge is down") for _ in request.predictions)
        return await ExactJudges().grade(request)


async def test_a_step_draws_what_it_trains_in_the_cursors_order():
    run = FakeRun(pool(FakeWorker("a", seconds=0.001), FakeWorker("b")))
    collected = await collect(run, CONFIG, 1)
    expected = PromptCursor(dataset="train", num_rows=500, seed=0).take(32)
    assert [ref.uid for ref in collected.drawn] == [ref.uid for ref in expected]
    assert {group.played.ref.uid for group in collected.trained} == {ref.uid for ref in expected}
    assert collected.cursor == run.prompts.state()


async def test_groups_without_signal_are_replaced_up_to_the_bound():
    collected = await collect(FakeRun(pool(EqualRewards("a"))), CONFIG, 1)
    assert len(collected.trained) == 32
    assert 30 <= len(collected.without_signal) <= 32
    assert len(collected.drawn) == len(collected.trained) + len(collected.without_signal)


async def test_the_bound_on_draws_ends_a_step_with_fewer_groups():
    collected = await collect(
        FakeRun(pool(EqualRewards("a"))), replace(CONFIG, train=replace(CONFIG.train, max_draws=1.0)), 1
    )
    assert len(collected.drawn) == 32
    assert len(collected.trained) == 16


async def test_a_failed_judge_is_never_a_zero():
    run = FakeRun(pool(FakeWorker("a")), judges=SilentJudges(every=10))
    collected = await collect(run, CONFIG, 1)
    assert len(collected.trained) == 32
    assert len(collected.lost) == 3
    assert all(group.reason == "too few verdicts: judge is down" for group in collected.lost)
    assert all(reward is not None for group in collected.scored for reward in group.rewards)


async def test_too_many_lost_groups_stop_the_run_with_the_reason():
    with pytest.raises(RunError, match="judge is down"):
        await collect(FakeRun(pool(FakeWorker("a")), judges=SilentJudges()), CONFIG, 1)


async def test_rollouts_that_fail_for_good_stop_the_run():
    with pytest.raises(RunError, match="no rollout worker is left"):
        await collect(FakeRun(pool(FakeWorker("a", [RolloutError("dead")]))), CONFIG, 1)


async def test_unusable_rows_are_counted_and_stop_the_run_above_the_limit():
    run = FakeRun(pool(Skipping("a")))
    with pytest.raises(DataError, match="truncated image"):
        await collect(run, CONFIG, 1)


async def test_a_bug_in_a_worker_stops_the_run():
    with pytest.raises(ZeroDivisionError):
        await collect(FakeRun(pool(FakeWorker("a", [ZeroDivisionError()]))), CONFIG, 1)


async def test_an_unjudged_episode_is_masked_and_its_group_goes_on():
    class OneMissing:
        async def grade(self, request):
            return (
                NoVerdict(reason="late"),
                *(Verdict(is_correct=p == "red", judge="x", reason="") for p in request.predictions[1:]),
            )

    collected = await collect(FakeRun(pool(FakeWorker("a")), judges=OneMissing()), CONFIG, 1)
    group = collected.trained[0]
    assert group.rewards[0] is None
    assert group.advantages[0] is None
    assert all(advantage is not None for advantage in group.advantages[1:])
    assert group.training.rewards[0] is None


@in_virtual_time
async def test_an_outage_of_the_judges_draws_nothing_more_and_loses_nothing():
    """Judges go away in the middle of the first step and are back a minute later."""
    went_at, back_at = now() + 0.5, now() + 60.5

    def judge(request, prediction):
        return failed(Failure.UNREACHABLE) if went_at <= now() < back_at else said(request, prediction)

    run = FakeRun(pool(FakeWorker("a", seconds=0.1)), judges=JudgePool(Judges(judge, seconds=0.2), llm_config()))
    first = asyncio.create_task(collect(run, CONFIG, 1))
    await asyncio.sleep(55)
    assert run.prompts.state().position == 32, "drawn before the outage, and none since"
    steps = [await first, await collect(run, CONFIG, 2)]
    drawn = [ref.uid for step in steps for ref in step.drawn]
    assert drawn == [ref.uid for ref in PromptCursor(dataset="train", num_rows=500, seed=0).take(64)]
    assert sorted(drawn) == sorted(group.played.ref.uid for step in steps for group in step.trained)
    assert all(step.lost == () for step in steps)
    assert run.judges.counters.num_unjudged == 0
    assert 55 < run.judges.counters.paused_s < 75


@in_virtual_time
async def test_an_outage_beyond_its_limit_stops_the_step_with_the_reason():
    config = llm_config(max_pause_s=100.0)
    run = FakeRun(pool(FakeWorker("a")), judges=JudgePool(Judges(lambda *_: failed(Failure.DENIED, "401")), config))
    with pytest.raises(JudgeError, match=r"401.*--resume"):
        await collect(run, CONFIG, 1)


async def test_the_wait_for_verdicts_counts_what_play_does_not_hide():
    class SlowJudges(ExactJudges):
        async def grade(self, request):
            await asyncio.sleep(0.2)
            return await super().grade(request)

    hidden = await collect(FakeRun(pool(FakeWorker("a", seconds=0.03)), judges=ExactJudges()), CONFIG, 1)
    assert hidden.judge_wait_s < 0.02
    shown = await collect(FakeRun(pool(FakeWorker("a", seconds=0.03)), judges=SlowJudges()), CONFIG, 1)
    assert 0.15 < shown.judge_wait_s < 0.25 < shown.seconds


def test_refs_are_all_that_a_draw_holds():
    (ref,) = PromptCursor(dataset="train", num_rows=5, seed=0).take(1)
    assert isinstance(ref, SampleRef)
