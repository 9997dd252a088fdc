"""The main loop with fakes for engines, judges and learner; collection, records and display are real."""

import asyncio
import dataclasses
import io
import itertools
import json

import pytest
from rich.console import Console

from actors.data.dataset import PromptCursor, SkipLedger
from actors.errors import LearnerError, RolloutError, RunError, SampleError
from actors.fleet.pool import RolloutPool
from cluster.collect import Collector
from cluster.display import Display
from cluster.fleet import Fleet
from cluster.folders import read_summary
from cluster.judging.watch import JudgeWatch
from cluster.launch import Parts
from cluster.records.events import read_events
from cluster.records.journal import Journal
from cluster.records.reading import read_metrics
from cluster.status.observer import Observer
from cluster.status.scaling import SizeDesk
from cluster.timekeeping import RunClock
from cluster.train import train
from cluster.update_stream import UpdateStream
from cluster.weights import WeightChannel
from configs.load import load_config, to_yaml
from judge.pool import JudgePool
from judge.verdict import NoVerdict, Verdict
from learner.update import UpdateReport
from tests.fakes import ExactJudges, FakeWeightSource, FakeWorker, make_episode, make_group

SETTINGS = ["train.num_steps=4", "train.prompts_per_step=8", "learner.prompts_per_mini_batch=8", "eval.num_samples=2"]


class FakeLearner(FakeWeightSource):
    """Steps once per update that has a group."""

    def __init__(self):
        super().__init__()
        self.exported_to = []
        self.learned = []
        """Prompts by update."""

    def begin(self):
        self.learned.append([])

    async def learn(self, groups):
        await asyncio.sleep(0)
        self.learned[-1] += [group.played.ref.uid for group in groups]

    async def finish(self):
        start, self.version = self.version, self.version + bool(self.learned[-1])
        return UpdateReport(start_version=start, optimizer_step=self.version, num_tokens=0, seconds=0.0, metrics={})

    async def export_hf(self, folder):
        self.exported_to.append(folder)


class FakeCheckpoints:
    def __init__(self, every):
        self.every, self.saved, self.last = every, [], None

    async def reached(self, step, cursor):
        self.last = step
        if step % self.every == 0:
            self.saved.append(step)

    async def save_last(self):
        if self.last is not None and self.last not in self.saved:
            self.saved.append(self.last)


class RunsDry(FakeWorker):
    """From the second step on every group is right throughout."""

    async def play(self, request):
        played, image = await super().play(request)
        if request.step > 1:
            ids = range(request.num_episodes)
            same = [make_episode(version=self.version, index=i, sample=request.ref.uid) for i in ids]
            played = make_group(same, ref=request.ref)
        return played, image


async def trained(tmp_path, worker, *overrides, learner=None, step=0, lease=None, others=(), backend=None):
    """Play a run; its summary, parts and what a person saw."""
    config = load_config("tiny", [*SETTINGS, *overrides])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    shown = io.StringIO()
    display = Display(config, Console(file=shown, width=200))
    judges = JudgePool(None, config.judge, local=[backend or ExactBackend()])
    watch = JudgeWatch(judges, config, warn=display.warn)
    fleet = Fleet(rollouts=RolloutPool([worker, *others], max_groups_in_flight=8, group_timeout_s=5), judges=judges)
    learner = learner or FakeLearner()
    before_publish = {"before_publish": lease.check} if lease else {}
    weights = WeightChannel(learner, fleet.rollouts, timeout_s=1.0, **before_publish)
    updates = UpdateStream(learner, min_groups=1)
    collector = Collector(
        fleet,
        config,
        prompts=PromptCursor(dataset="train", num_rows=500, seed=0),
        skips=SkipLedger(max_skipped_fraction=0.01),
        judge_watch=watch,
        published=weights.published,
        last_step=step,
        on_trained=updates.add if config.streams_updates else None,
    )
    desk = SizeDesk(tmp_path, config)
    observer = Observer(tmp_path, config, desk=desk, screen=display, publish=lambda readings: None)
    parts = Parts(
        fleet=fleet,
        learner=learner,
        weights=weights,
        collector=collector,
        updates=updates,
        checkpoints=FakeCheckpoints(config.train.checkpoint_every),
        journal=Journal(
            tmp_path,
            config,
            step=step,
            clock=RunClock(0.0),
            judge_watch=watch,
            display=display,
            observer=observer,
            lease=lease,
        ),
        heldout=range(500),
        display=display,
    )
    async with observer:
        return await train(config, parts), parts, shown.getvalue()


class ExactBackend:
    """`ExactJudges` as a judge of a chain."""

    async def grade(self, request) -> list[Verdict]:
        return list(await ExactJudges().grade(request))


def ledger_steps(folder):
    return [json.loads(line)["step"] for line in (folder / "ledger.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("depth", "streams"), [(0, False), (0, True), (1, False), (1, True)])
async def test_a_run_learns_syncs_records_and_saves_each_step(tmp_path, depth, streams):
    worker = FakeWorker("a")
    summary, parts, _ = await trained(
        tmp_path, worker, "train.checkpoint_every=3", f"train.max_staleness={depth}", f"learner.stream={streams}"
    )
    assert (summary["steps"], parts.learner.version, worker.version) == (4, 4, 4)
    assert ledger_steps(tmp_path) == [1, 2, 3, 4]
    assert parts.checkpoints.saved == [3, 4], "every third, and the last"
    assert parts.learner.exported_to == [tmp_path / "export"]
    assert sorted(path.name for path in (tmp_path / "heldout").iterdir()) == ["step-000004.parquet"]
    cursor = PromptCursor(dataset="train", num_rows=500, seed=0)
    assert [sorted(uids) for uids in parts.learner.learned] == [
        sorted(ref.uid for ref in cursor.take(8)) for _ in range(4)
    ]


async def test_a_death_in_the_final_evaluation_costs_neither_the_export_nor_the_run(tmp_path, monkeypatch):
    """The run is not complete without its evaluation: given again, the command evaluates and ends it."""

    async def dies(*_):
        raise RunError("killed")

    learner = FakeLearner()
    with monkeypatch.context() as patch:
        patch.setattr("cluster.train.evaluate", dies)
        with pytest.raises(RunError, match="killed"):
            await trained(tmp_path, FakeWorker("a"), learner=learner)
    assert learner.exported_to == [tmp_path / "export"]
    assert not (tmp_path / "summary.json").exists()
    summary, parts, _ = await trained(tmp_path, FakeWorker("a"), step=4)
    assert (summary["steps"], summary["num_steps"]) == (4, 4)
    assert parts.learner.learned == [], "nothing is learned twice"
    assert read_summary(tmp_path) is not None


async def test_a_driver_that_was_replaced_learns_and_saves_nothing_more(tmp_path):
    class Replaced:
        """From the second sync on."""

        looks = 0

        def check(self):
            self.looks += 1
            if self.looks > 2:
                raise RunError("driven by another one")

    lease = Replaced()
    with pytest.raises(RunError, match="driven by another one"):
        await trained(tmp_path, FakeWorker("a"), lease=lease)
    assert not (tmp_path / "ledger.jsonl").exists(), "the first sync, the second one, then no record"


async def test_what_is_lost_masked_or_played_again_is_told_and_counted(tmp_path):
    class SkipsUpdates(FakeLearner):
        async def finish(self):
            report = await super().finish()
            skipped = 1.0 if self.version >= 2 else 0.0
            return dataclasses.replace(report, metrics={"learner/skipped_updates": skipped})

    dies = FakeWorker("dies", [None, RolloutError("its node left")])
    lives = FakeWorker("lives", [SampleError("no such picture")])
    _, _, shown = await trained(tmp_path, dies, learner=SkipsUpdates(), others=[lives])
    events = read_events(tmp_path)
    (lost,) = [event for event in events if event.who.startswith("sample")]
    assert (lost.kind, lost.step) == ("skip", 1)
    assert "no such picture" in lost.detail
    assert shown.count("no such picture") == 1
    (skipped,) = [event for event in events if event.who == "learner"]
    assert (skipped.kind, skipped.step) == ("skip", 2), "the count of skipped updates is of the whole run"
    metrics = [line for line in read_metrics(tmp_path) if "run/useful_time" in line]
    assert [line["waste/episodes_again"] for line in metrics] == [8.0, 0.0, 0.0, 0.0], "one group of 8"
    assert [line["events/skip"] for line in metrics] == [1.0, 2.0, 2.0, 2.0]
    useful = [line["run/useful_s"] for line in metrics]
    assert useful == pytest.approx(list(itertools.accumulate(line["time/step_s"] for line in metrics)))


async def test_a_call_that_fails_after_it_ran_counts_once(tmp_path):
    """Ray may lose the answer of a call that ran: its group is played again, and nothing is learned twice."""

    class LosesAnswers(FakeWorker):
        num_lost = 0

        async def play(self, request):
            answer = await super().play(request)
            if self.num_lost < 3:
                self.num_lost += 1
                raise SampleError("lost") if self.num_lost == 1 else RolloutError("its answer was lost")
            return answer

    _, parts, _ = await trained(tmp_path, LosesAnswers("a"), others=[FakeWorker("b")])
    learned = [uid for step in parts.learner.learned for uid in step]
    assert len(learned) == len(set(learned)) == 4 * 8
    assert ledger_steps(tmp_path) == [1, 2, 3, 4]


async def test_episodes_without_a_verdict_are_an_event_of_their_step(tmp_path):
    class Mute(ExactBackend):
        """On the first answer that it sees."""

        num_calls = 0

        async def grade(self, request):
            self.num_calls += 1
            outcomes = await super().grade(request)
            return [NoVerdict(reason="mute"), *outcomes[1:]] if self.num_calls == 1 else outcomes

    await trained(tmp_path, FakeWorker("a"), backend=Mute())
    (mask,) = [event for event in read_events(tmp_path) if event.kind == "mask"]
    assert mask.step == 1
    assert mask.detail == "4 of 72 episodes left out of their groups, for lack of a verdict", (
        "all that gave this answer"
    )


async def test_a_learner_that_fails_ends_the_run_while_others_still_play(tmp_path):
    class Fails(FakeLearner):
        async def learn(self, groups):
            raise LearnerError("learner rank 0 died")

    class PlaysTheLastForLong(FakeWorker):
        async def play(self, request):
            self.seconds = 0.0 if self.most_in_flight < 8 else 3600.0
            return await super().play(request)

    with pytest.raises(LearnerError, match="learner rank 0 died"):
        async with asyncio.timeout(30):
            await trained(tmp_path, PlaysTheLastForLong("a"), "learner.stream=true", learner=Fails())


async def test_a_run_that_runs_out_of_signal_says_so_and_goes_on(tmp_path):
    summary, parts, shown = await trained(tmp_path, RunsDry("a"))
    assert (summary["steps"], parts.learner.version) == (4, 1)
    assert shown.count("no group to train on") == 3
    assert "Likely causes" not in shown, "the first step had a signal"


async def test_a_run_that_asked_for_it_stops_without_signal_and_is_saved_where_it_stopped(tmp_path):
    summary, parts, shown = await trained(
        tmp_path, RunsDry("a"), "train.stop_without_signal=2", "train.checkpoint_every=100"
    )
    assert summary["steps"] == 3
    assert parts.checkpoints.saved == [3]
    assert ledger_steps(tmp_path) == [1, 2, 3]
    assert "the run stops here" in shown
    assert parts.learner.exported_to, "the policy is exported as at the end of any run"


async def test_a_run_that_never_had_a_signal_ends_with_the_likely_causes(tmp_path):
    class AlwaysRight(FakeWorker):
        async def play(self, request):
            _, image = await super().play(request)
            ids = range(request.num_episodes)
            same = [make_episode(version=self.version, index=i, sample=request.ref.uid) for i in ids]
            return make_group(same, ref=request.ref), image

    _, parts, shown = await trained(tmp_path, AlwaysRight("a"))
    assert parts.learner.version == 0
    assert "Likely causes" in shown
