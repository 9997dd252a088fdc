"""Groups are learned from as they come: real collection, and a learner that takes its time."""

import asyncio
from dataclasses import replace

import pytest

from actors.data.dataset import CursorState, PromptCursor, SkipLedger
from actors.errors import JudgeError, LearnerError
from actors.fleet.pool import RolloutPool
from cluster.collect import Collector
from cluster.fleet import Fleet
from cluster.staleness import PublishedVersions
from cluster.step import ScoredGroup, StepBatch
from cluster.update_stream import UpdateStream
from configs.schema import Config, RolloutConfig, TrainConfig
from learner.update import UpdateReport
from tests.fakes import ExactJudges, FakeWorker, make_episode, make_group
from tests.virtual_time import in_virtual_time, now

NUM_GROUPS = 32
CONFIG = Config(rollout=RolloutConfig(group_size=2), train=TrainConfig(prompts_per_step=NUM_GROUPS, min_scored=2))


class TimedLearner:
    """Takes a time per group; keeps the parts of its updates by prompt."""

    def __init__(self, seconds=1.0):
        self.seconds = seconds
        self.updates = []
        self.failure = None

    def begin(self):
        self.updates.append([])

    async def learn(self, groups):
        self.updates[-1].append([group.played.ref.row for group in groups])
        await asyncio.sleep(self.seconds * len(groups))
        if self.failure is not None:
            raise self.failure

    async def finish(self):
        seconds = self.seconds * sum(map(len, self.updates[-1]))
        return UpdateReport(start_version=0, optimizer_step=1, num_tokens=0, seconds=seconds, metrics={"a": 1.0})


def scored(row):
    played = make_group([make_episode()])
    played = replace(played, ref=replace(played.ref, row=row))
    return ScoredGroup(played=played, outcomes=(), rewards=(None,), advantages=(None,), image="image")


GROUPS = [scored(row) for row in range(6)]


def batch_of(groups):
    cursor = CursorState(seed=0, epoch=0, position=0)
    return StepBatch(trained=tuple(groups), without_signal=(), lost=(), drawn=(), cursor=cursor, seconds=0.0)


@in_virtual_time
async def test_the_learner_takes_what_is_there_whenever_it_is_free_in_the_order_of_the_batch():
    learner = TimedLearner()
    async with UpdateStream(learner, min_groups=1) as updates:
        for group in GROUPS[:5]:  # at 0.0, 0.4, 0.8, 1.2 and 1.6 s
            updates.add(group)
            await asyncio.sleep(0.4)
        report = await updates.finish(batch_of(GROUPS))
    assert learner.updates == [[[0], [1, 2], [3, 4, 5]]]
    assert report.seconds == 6.0
    assert report.metrics == {"a": 1.0, "time/update_wait_s": pytest.approx(4.0)}


@in_virtual_time
async def test_a_part_has_a_group_for_each_rank_unless_it_is_the_last():
    learner = TimedLearner(seconds=0.0)
    async with UpdateStream(learner, min_groups=2) as updates:
        for group in GROUPS[:5]:
            updates.add(group)
            await asyncio.sleep(1.0)
        await updates.finish(batch_of(GROUPS[:5]))
    assert learner.updates == [[[0, 1], [2, 3], [4]]]


@in_virtual_time
async def test_groups_that_nobody_adds_are_one_part_and_the_wait_is_the_update():
    learner = TimedLearner()
    updates = UpdateStream(learner, min_groups=1)
    for groups in (GROUPS, GROUPS[:2]):
        async with updates:
            await asyncio.sleep(5.0)
            report = await updates.finish(batch_of(groups))
        assert report.metrics["time/update_wait_s"] == pytest.approx(report.seconds) == len(groups)
    assert learner.updates == [[[0, 1, 2, 3, 4, 5]], [[0, 1]]]


@in_virtual_time
async def test_without_a_group_nothing_is_learned():
    learner = TimedLearner()
    async with UpdateStream(learner, min_groups=1) as updates:
        report = await updates.finish(batch_of([]))
    assert learner.updates == [[]]
    assert report.metrics["time/update_wait_s"] == 0.0


@pytest.mark.parametrize("num_added", [1, 0], ids=["while others are played", "in the end"])
@in_virtual_time
async def test_an_error_of_the_learner_ends_the_step_at_once_and_as_itself(num_added):
    learner = TimedLearner()
    learner.failure = LearnerError("rank 0 is gone")
    started = now()

    async def step():
        async with UpdateStream(learner, min_groups=1) as updates:
            for group in GROUPS[:num_added]:
                updates.add(group)
            if num_added:
                await asyncio.sleep(3600)
            await updates.finish(batch_of(GROUPS[:1]))

    with pytest.raises(LearnerError, match="rank 0 is gone"):
        await step()
    assert now() - started == pytest.approx(1.0)


@in_virtual_time
async def test_a_step_that_fails_gives_its_update_up_and_the_next_begins_anew():
    learner = TimedLearner()
    updates = UpdateStream(learner, min_groups=1)

    async def failing_step():
        async with updates:
            updates.add(GROUPS[0])
            await asyncio.sleep(0.5)
            raise JudgeError("outage")

    with pytest.raises(JudgeError, match="outage"):
        await failing_step()
    await asyncio.sleep(60.0)
    async with updates:
        await updates.finish(batch_of(GROUPS[1:3]))
    assert learner.updates == [[[0]], [[1, 2]]]


@in_virtual_time
async def test_a_step_that_is_cancelled_gives_its_update_up():
    learner = TimedLearner()

    async def step():
        async with UpdateStream(learner, min_groups=1) as updates:
            updates.add(GROUPS[0])
            await asyncio.sleep(3600)

    task = asyncio.create_task(step())
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == {asyncio.current_task()}, "nobody learns any more"


@in_virtual_time
async def test_leaving_a_step_without_its_batch_hangs_nobody():
    async with UpdateStream(TimedLearner(), min_groups=1) as updates:
        updates.add(GROUPS[0])


class NoWatch:
    def send_canary(self, step, sample): ...

    def check(self): ...

    def ask_replicas(self): ...


class Staggered(FakeWorker):
    """Its groups end one after the other, a second apart."""

    async def play(self, request):
        self.seconds += 1.0
        return await super().play(request)


async def step_seconds(worker, learner, *, streams):
    """Seconds of a step, and the report of its update."""
    published = PublishedVersions()
    published.add(worker.version)
    updates = UpdateStream(learner, min_groups=1)
    collector = Collector(
        Fleet(
            rollouts=RolloutPool([worker], max_groups_in_flight=NUM_GROUPS, group_timeout_s=999), judges=ExactJudges()
        ),
        CONFIG,
        prompts=PromptCursor(dataset="train", num_rows=500, seed=0),
        skips=SkipLedger(max_skipped_fraction=0.01),
        judge_watch=NoWatch(),
        published=published,
        last_step=0,
        on_trained=updates.add if streams else None,
    )
    started = now()
    async with collector, updates:
        batch = await collector.collect()
        report = await updates.finish(batch)
    order = [group.played.ref.row for group in batch.trained]
    assert [row for part in learner.updates[-1] for row in part] == order
    return now() - started, report


@pytest.mark.parametrize(
    ("streams", "step_s", "wait_s"), [(False, 64.0, 32.0), (True, 33.0, 1.0)], ids=["whole", "streamed"]
)
@in_virtual_time
async def test_a_step_takes_as_long_as_play_or_learner_and_not_as_both(streams, step_s, wait_s):
    """Play ends after 32 s, the learner needs 32 s: streamed, the last group's second is all that is waited for."""
    seconds, report = await step_seconds(Staggered("a"), TimedLearner(seconds=1.0), streams=streams)
    assert seconds == pytest.approx(step_s)
    assert report.seconds == 32.0
    assert report.metrics["time/update_wait_s"] == pytest.approx(wait_s)


@pytest.mark.parametrize("learner_s", [0.25, 4.0])
@in_virtual_time
async def test_the_longer_of_play_and_learner_decides(learner_s):
    seconds, report = await step_seconds(Staggered("a"), TimedLearner(seconds=learner_s), streams=True)
    first, last = 1.0, learner_s
    assert seconds == pytest.approx(max(NUM_GROUPS + last, first + NUM_GROUPS * learner_s))
    assert report.metrics["time/update_wait_s"] == pytest.approx(seconds - NUM_GROUPS)
