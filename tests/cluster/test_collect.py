"""The path from prompts to scored groups, with fakes for engine and judges and everything between them real."""

import asyncio
import re
from dataclasses import dataclass, field, replace

import pytest

from actors.data.dataset import PromptCursor, SkipLedger
from actors.episode import SampleRef, SkippedSample, VersionSpan
from actors.errors import DataError, JudgeError, RolloutError, RunError
from actors.fleet.pool import RolloutPool
from cluster.collect import Collector
from cluster.fleet import Fleet
from cluster.lookahead import Lookahead
from cluster.staleness import PublishedVersions
from configs.learner import LearnerConfig
from configs.schema import Config, RolloutConfig, TrainConfig
from judge.pool import JudgePool
from judge.verdict import Failure, NoVerdict, Verdict
from learner.advantage import group_advantages
from tests.fakes import ExactJudges, FakeWorker, make_episode, make_group
from tests.judge.scripted import Judges, failed, llm_config, said
from tests.virtual_time import in_virtual_time, now

CONFIG = Config(
    rollout=RolloutConfig(group_size=4),
    train=TrainConfig(prompts_per_step=32, min_scored=2, max_draws=2.0),
)


class NoWatch:
    def send_canary(self, step, sample): ...

    def check(self): ...

    def ask_replicas(self): ...


def always(*versions):
    """These versions, published again before each batch: as if every update was skipped."""
    published = PublishedVersions()
    for version in versions * 100:
        published.add(version)
    return published


@dataclass
class Parts:
    """What a collector works with."""

    rollouts: object
    judges: object = field(default_factory=ExactJudges)
    published: PublishedVersions = field(default_factory=lambda: always(-1, 0))
    prompts: PromptCursor = field(default_factory=lambda: PromptCursor(dataset="train", num_rows=500, seed=0))

    def collector(self, config=CONFIG, on_trained=None):
        return Collector(
            Fleet(rollouts=self.rollouts, judges=self.judges),
            config,
            prompts=self.prompts,
            skips=SkipLedger(max_skipped_fraction=0.01),
            judge_watch=NoWatch(),
            published=self.published,
            last_step=0,
            on_trained=on_trained,
        )


async def collect(parts, config=CONFIG):
    async with parts.collector(config) as collector:
        return await collector.collect()


def pool(*workers):
    return RolloutPool(workers, max_groups_in_flight=8, group_timeout_s=5)


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
    parts = Parts(pool(FakeWorker("a", seconds=0.001), FakeWorker("b")))
    collected = await collect(parts)
    expected = PromptCursor(dataset="train", num_rows=500, seed=0).take(32)
    assert [ref.uid for ref in collected.drawn] == [ref.uid for ref in expected]
    assert {group.played.ref.uid for group in collected.trained} == {ref.uid for ref in expected}
    assert collected.cursor == parts.prompts.state()


async def test_groups_without_signal_are_replaced_up_to_the_bound():
    collected = await collect(Parts(pool(EqualRewards("a"))))
    assert len(collected.trained) == 32
    assert 30 <= len(collected.without_signal) <= 32
    assert len(collected.drawn) == len(collected.trained) + len(collected.without_signal)


@pytest.mark.parametrize("depth", [0, 1])
async def test_each_group_of_a_batch_is_told_of_when_it_joins_it(depth):
    told = []
    parts = Parts(pool(EqualRewards("a"), FakeWorker("b", seconds=0.001)), judges=SilentJudges(every=10))
    async with parts.collector(on_trained=told.append) as collector:
        collector.allow(2 + depth)
        batches = [await collector.collect() for _ in range(2)]
    assert told == [group for batch in batches for group in batch.trained]


async def test_the_bound_on_draws_ends_a_step_with_fewer_groups():
    collected = await collect(
        Parts(pool(EqualRewards("a"))), replace(CONFIG, train=replace(CONFIG.train, max_draws=1.0))
    )
    assert len(collected.drawn) == 32
    assert len(collected.trained) == 16


async def test_a_failed_judge_is_never_a_zero():
    parts = Parts(pool(FakeWorker("a")), judges=SilentJudges(every=10))
    collected = await collect(parts)
    assert len(collected.trained) == 32
    assert len(collected.lost) == 3
    assert all(group.reason == "too few verdicts: judge is down" for group in collected.lost)
    assert all(lost.group.played.ref == lost.ref for lost in collected.lost), "for another judge, later"
    assert all(reward is not None for group in collected.scored for reward in group.rewards)


async def test_too_many_lost_groups_stop_the_run_with_the_reason():
    with pytest.raises(RunError, match="judge is down"):
        await collect(Parts(pool(FakeWorker("a")), judges=SilentJudges()))


async def test_rollouts_that_fail_for_good_stop_the_run():
    with pytest.raises(RunError, match="no rollout worker is left"):
        await collect(Parts(pool(FakeWorker("a", [RolloutError("dead")]))))


async def test_unusable_rows_are_counted_and_stop_the_run_above_the_limit():
    parts = Parts(pool(Skipping("a")))
    with pytest.raises(DataError, match="truncated image"):
        await collect(parts)


async def test_a_bug_in_a_worker_stops_the_run():
    with pytest.raises(ZeroDivisionError):
        await collect(Parts(pool(FakeWorker("a", [ZeroDivisionError()]))))


async def test_an_unjudged_episode_is_masked_and_its_group_goes_on():
    class OneMissing:
        async def grade(self, request):
            return (
                NoVerdict(reason="late"),
                *(Verdict(is_correct=p == "red", judge="x", reason="") for p in request.predictions[1:]),
            )

    collected = await collect(Parts(pool(FakeWorker("a")), judges=OneMissing()))
    group = collected.trained[0]
    assert group.rewards[0] is None
    assert group.advantages[0] is None
    assert all(advantage is not None for advantage in group.advantages[1:])
    assert group.training.rewards[0] is None


async def test_advantages_and_credits_of_turns_are_those_of_the_objective():
    rloo = replace(CONFIG, learner=LearnerConfig(objective="rloo", turn_credit=0.3))
    (group, *_) = (await collect(Parts(pool(FakeWorker("a"))), rloo)).trained
    assert group.advantages == group_advantages(group.totals, "leave_one_out") != group_advantages(group.totals)
    assert group.training.turn_credits == tuple((0.0,) * len(each.turns) for each in group.played.episodes)


@in_virtual_time
async def test_an_outage_of_the_judges_draws_nothing_more_and_loses_nothing():
    """Judges go away in the middle of the first step and are back a minute later."""
    went_at, back_at = now() + 0.5, now() + 60.5

    def judge(request, prediction):
        return failed(Failure.UNREACHABLE) if went_at <= now() < back_at else said(request, prediction)

    parts = Parts(pool(FakeWorker("a", seconds=0.1)), judges=JudgePool(Judges(judge, seconds=0.2), llm_config()))
    first = asyncio.create_task(collect(parts))
    await asyncio.sleep(55)
    assert parts.prompts.state().position == 32, "drawn before the outage, and none since"
    steps = [await first, await collect(parts)]
    drawn = [ref.uid for step in steps for ref in step.drawn]
    assert drawn == [ref.uid for ref in PromptCursor(dataset="train", num_rows=500, seed=0).take(64)]
    assert sorted(drawn) == sorted(group.played.ref.uid for step in steps for group in step.trained)
    assert all(step.lost == () for step in steps)
    assert parts.judges.counters.num_unjudged == 0
    assert 55 < parts.judges.counters.paused_s < 75


@in_virtual_time
async def test_an_outage_beyond_its_limit_stops_the_step_with_the_reason():
    config = llm_config(max_pause_s=100.0)
    parts = Parts(pool(FakeWorker("a")), judges=JudgePool(Judges(lambda *_: failed(Failure.DENIED, "401")), config))
    with pytest.raises(JudgeError, match=r"401.*--resume"):
        await collect(parts)


async def test_the_wait_for_verdicts_counts_what_play_does_not_hide():
    hidden = await collect(Parts(pool(FakeWorker("a", seconds=0.03)), judges=ExactJudges()))
    assert hidden.judge_wait_s < 0.02
    shown = await collect(Parts(pool(FakeWorker("a", seconds=0.03)), judges=SlowJudges(0.2)))
    assert 0.15 < shown.judge_wait_s < 0.25 < shown.seconds


async def batches(parts, num, *, depth, update_s=0.0, config=CONFIG):
    """The first batches of an endless loop whose learner takes so long, and the seconds from first to last."""
    taken = []
    async with (
        parts.collector(config) as collector,
        Lookahead(collector.collect, depth=depth, num_batches=99, allow=collector.allow) as ahead,
    ):
        for _ in range(num):
            taken.append((await ahead.take(), now()))
            await asyncio.sleep(update_s)
    return [batch for batch, _ in taken], taken[-1][1] - taken[0][1]


class SlowJudges(ExactJudges):
    def __init__(self, seconds):
        self.seconds = seconds

    async def grade(self, request):
        await asyncio.sleep(self.seconds)
        return await super().grade(request)


@pytest.mark.parametrize(("depth", "judge_s", "update_s"), [(1, 0.5, 0.0), (1, 3.5, 0.5), (1, 1.0, 3.0), (2, 3.9, 4.0)])
@in_virtual_time
async def test_with_look_ahead_a_judge_costs_no_time_beside_play(depth, judge_s, update_s):
    """Play of a batch takes 4 s here, 8 groups at a time; depth + 1 of them fit into the way of a batch."""
    times = []
    for seconds in (0.0, judge_s):
        parts = Parts(pool(FakeWorker("a", seconds=1.0)), judges=SlowJudges(seconds))
        taken, elapsed_s = await batches(parts, 5, depth=depth, update_s=update_s)
        times.append(elapsed_s)
        assert all(batch.judge_wait_s < 1e-6 for batch in taken[1:])
    assert times == pytest.approx([16.0, 16.0])


@in_virtual_time
async def test_on_policy_verdicts_are_waited_for_and_nothing_is_drawn_beyond_the_batch():
    parts = Parts(pool(FakeWorker("a", seconds=1.0)), judges=SlowJudges(3.0))
    taken, elapsed_s = await batches(parts, 3, depth=0, update_s=2.0)
    assert elapsed_s == pytest.approx(2 * (4 + 3 + 2))
    assert [batch.judge_wait_s for batch in taken] == pytest.approx([3.0] * 3)
    assert parts.prompts.num_taken == 3 * 32


@in_virtual_time
async def test_batches_that_run_ahead_are_unbroken_pieces_of_the_cursors_order():
    """Half of the groups teach nothing, so each batch takes some that were begun for the next one."""
    parts = Parts(pool(EqualRewards("a", seconds=0.5), EqualRewards("b", seconds=0.7)), judges=SlowJudges(2.0))
    config = replace(CONFIG, train=replace(CONFIG.train, max_draws=3.0))
    taken, _ = await batches(parts, 4, depth=1, update_s=1.0, config=config)
    cursor = PromptCursor(dataset="train", num_rows=500, seed=0)
    for batch in taken:
        assert len(batch.trained) == 32
        assert list(batch.drawn) == cursor.take(len(batch.drawn))
        assert batch.cursor == cursor.state(), "a run that is resumed here goes on with the next batch's first prompt"
        assert {group.played.ref for group in batch.scored} == set(batch.drawn)


@pytest.mark.parametrize("depth", [1, 2])
@in_virtual_time
async def test_a_group_is_played_at_most_the_look_ahead_before_its_batch_is_learned(depth):
    learned = 0
    played_under = {}

    class Noting(FakeWorker):
        async def play(self, request):
            played_under[request.ref] = learned
            return await super().play(request)

    parts = Parts(pool(Noting("a", seconds=0.3)), judges=SlowJudges(1.0))
    async with (
        parts.collector() as collector,
        Lookahead(collector.collect, depth=depth, num_batches=99, allow=collector.allow) as ahead,
    ):
        for number in range(6):
            batch = await ahead.take()
            ages = {number - played_under[group.played.ref] for group in batch.scored}
            assert max(ages) <= depth
            await asyncio.sleep(5.0)
            learned += 1
    assert max(ages) == depth, "the learner is the slow part here: all is played as early as it may"


class Aged(FakeWorker):
    """Every fourth group has an episode that an older version, or one from elsewhere, began."""

    def __init__(self, name, version):
        super().__init__(name)
        self.other = version
        self.version = 7

    async def play(self, request):
        played, image = await super().play(request)
        if self.num_played % 4 == 0:
            first, *others = played.episodes
            spans = (VersionSpan(version=self.other, num_tokens=1), VersionSpan(version=self.version, num_tokens=1))
            first = replace(first, turns=(replace(first.turns[0], version_spans=spans), *first.turns[1:]))
            played = replace(played, episodes=(first, *others))
        return played, image


@pytest.mark.parametrize(
    ("version", "max_staleness", "reason"),
    [
        (6, 0, r"sampled under version 6, 1 steps old \(train\.max_staleness=0\)"),
        (5, 1, r"sampled under version 5, 2 steps old \(train\.max_staleness=1\)"),
        (8, 1, "sampled under version 8, which was not published"),
        (6, 1, None),
    ],
)
async def test_groups_of_a_version_too_old_or_unknown_are_lost_and_never_trained_on(version, max_staleness, reason):
    """Fault 17. One such token is enough: the bound counts the oldest of an episode."""
    parts = Parts(pool(Aged("a", version)))
    parts.published = PublishedVersions()
    config = replace(CONFIG, train=replace(CONFIG.train, max_staleness=max_staleness, max_lost_fraction=1.0))
    async with parts.collector(config) as collector:
        for published in (5, 6, 7):
            parts.published.add(published)
            collector.allow(3)
        collector._num_begun = 2  # two batches were trained on
        batch = await collector.collect()
    assert len(batch.trained) == 32
    others = [group for group in batch.trained if version in {e.oldest_version for e in group.played.episodes}]
    if reason is None:
        assert others
        assert batch.lost == ()
    else:
        assert others == []
        assert batch.lost
        assert all(re.fullmatch(reason, lost.reason) for lost in batch.lost)
        assert {group.played.ref for group in batch.trained}.isdisjoint(lost.ref for lost in batch.lost)


@in_virtual_time
async def test_what_runs_ahead_is_given_up_with_the_loop():
    worker = FakeWorker("a", seconds=1.0)
    parts = Parts(pool(worker), judges=SlowJudges(0.5))
    await batches(parts, 2, depth=1)
    num_played = worker.num_played
    await asyncio.sleep(30)
    assert worker.num_played == num_played < parts.prompts.num_taken


def test_refs_are_all_that_a_draw_holds():
    (ref,) = PromptCursor(dataset="train", num_rows=5, seed=0).take(1)
    assert isinstance(ref, SampleRef)
