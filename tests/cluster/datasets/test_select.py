"""The selection end to end with a scripted fleet: counts, kills, refusals, and a table that a run reads."""

import asyncio
import io
import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from actors.data.dataset import Dataset
from actors.data.shapes import write_split
from actors.episode import SampleRef, SkippedSample
from actors.errors import DataError, RolloutError, RunError, SampleError
from actors.play import PlayRequest
from cluster.datasets.select import (
    SAMPLES,
    Trials,
    check_settings,
    drawing_order,
    run_selection,
    try_samples,
    write_selected,
)
from cluster.datasets.selection import Rule, Tried, figures, select_balanced
from cluster.display import Display
from cluster.fleet import Fleet
from cluster.runs.lease import lease
from configs.load import load_config
from configs.paths import resolve_paths
from judge.pool import JudgePool
from judge.verdict import Failure, Verdict
from tests.fakes import make_episode, make_group, make_turn
from tests.judge.scripted import Judges, failed, llm_config

NUM_ROWS = 40


class KilledError(Exception):
    """As a kill ends everything: nothing handles it."""


class Rollouts:
    """Row % 4: 0 and 1 are right on both views, 2 on the full view only, 3 on half of either."""

    def __init__(self, *, dies_after: int | None = None):
        self.requests: list[PlayRequest] = []
        self.dies_after = dies_after

    async def play(self, request):
        self.requests.append(request)
        if self.dies_after is not None and len(self.requests) > self.dies_after:
            raise KilledError
        await asyncio.sleep(0)
        row, is_full = request.ref.row, request.kind == "always_full"
        if row == 4:
            return SkippedSample(ref=request.ref, reason="row 4: truncated"), None
        if row == 8:
            raise SampleError("this group failed")
        num_right = {0: 8, 1: 8, 2: 8 if is_full else 0, 3: 4}[row % 4]
        answers = ["red" if index < num_right else "blue" for index in range(request.num_episodes)]
        if row == 12:
            answers = ["filtered"] * request.num_episodes
        episodes = [make_episode(answer=answer, index=index) for index, answer in enumerate(answers)]
        return make_group(episodes, ref=request.ref), None


def judged(request, prediction):
    if prediction == "filtered":
        return failed(Failure.REJECTED, "a content filter")
    return Verdict(is_correct=prediction == "red", judge="llm", reason="")


@pytest.fixture
def setup(tmp_path):
    write_split(tmp_path / "train.parquet", num_rows=NUM_ROWS, seed=0, split="train")
    config = load_config("tiny", [f"data.train={tmp_path}/train.parquet", "rollout.max_groups_in_flight=2"])
    out = tmp_path / "out"
    out.mkdir()
    return config, Dataset.open(config.data.train), out


async def run(config, out, rollouts, *, rule=None, limit=None):
    fleet = Fleet(rollouts=rollouts, judges=JudgePool(Judges(judged), llm_config(max_tries=1)))
    display = Display(config, Console(file=io.StringIO(), width=200))
    rule = rule or Rule()
    trials, order = Trials(out, rule), drawing_order(config, NUM_ROWS, limit)
    num_lost = await try_samples(fleet, order, trials, config, rule, display)
    return [trials.by_row[ref.row] for ref in order if ref.row in trials.by_row], num_lost


async def test_counts_are_kept_and_failures_are_in_no_class(setup):
    config, dataset, out = setup
    rollouts = Rollouts()
    tried, num_lost = await run(config, out, rollouts)
    found = figures(tried, Rule())
    assert (found["num_tried"], found["num_unreadable"], found["num_no_verdict"], num_lost) == (39, 1, 1, 1)
    assert (found["num_low"], found["num_full"], found["num_neither"]) == (17, 10, 10)
    kinds = {(request.kind, request.greedy, request.num_episodes) for request in rollouts.requests}
    assert kinds == {("always_quarter", False, 8), ("always_full", False, 8)}
    table = write_selected(out, dataset, select_balanced(tried, Rule()), config.data.train, Rule())
    rows = pq.read_table(table).to_pylist()
    assert len(rows) == 20
    source = pq.read_table(config.data.train).to_pylist()
    for row in rows:
        assert row["images"][0]["bytes"] == source[row["source_row"]]["images"][0]["bytes"]
        assert row["problem"] == source[row["source_row"]]["problem"]
        assert (
            row["info"]["use_tool"]
            == (row["source_row"] % 4 == 2)
            == (row["full_correct"] - row["quarter_correct"] >= 6)
        )
        assert (row["info"]["tgt_width"], row["num_rollouts"]) == (224, 8)
    again = Dataset.open(str(table))
    assert again.read(SampleRef(dataset="d", row=0, uid="0")).answer == rows[0]["original_answer"]


async def test_a_killed_selection_goes_on_and_keeps_every_sample_once(setup):
    config, _, out = setup
    with pytest.raises(ExceptionGroup):
        await run(config, out, Rollouts(dies_after=21))
    finished = (out / SAMPLES).read_bytes()
    num_finished = finished.count(b"\n")
    assert 5 < num_finished < 15
    (out / SAMPLES).write_bytes(finished + b'{"row": 31, "status": "jud')  # as a kill leaves it
    rollouts = Rollouts()
    tried, _ = await run(config, out, rollouts)
    lines = [json.loads(line) for line in (out / SAMPLES).read_bytes().splitlines()]
    rows = [line["row"] for line in lines]
    assert len(set(rows)) == len(tried) == 39
    assert {row for row in rows if rows.count(row) > 1} <= {12}, "tried again: it had no verdict"
    done_before = {json.loads(line)["row"] for line in finished.splitlines()} - {12}
    assert done_before.isdisjoint({request.ref.row for request in rollouts.requests}), (
        "no finished sample is played again"
    )
    (out.parent / "other").mkdir()
    assert tried == (await run(config, out.parent / "other", Rollouts()))[0], "as if it had never been killed"


async def test_only_what_judges_failed_on_is_tried_again(setup):
    config, _, out = setup
    await run(config, out, Rollouts())
    rollouts = Rollouts()
    await run(config, out, rollouts)
    assert {request.ref.row for request in rollouts.requests} == {8, 12}, "a lost sample, and one without a verdict"


async def test_it_stops_as_soon_as_both_classes_are_full(setup):
    config, _, out = setup
    rollouts = Rollouts()
    tried, _ = await run(config, out, rollouts, rule=Rule(per_class=3))
    assert len(tried) < NUM_ROWS
    assert len(select_balanced(tried, Rule(per_class=3))) == 6


async def test_a_limit_takes_a_random_part_of_the_rows_and_a_larger_one_more(setup):
    config, _, out = setup
    tried, _ = await run(config, out, Rollouts(), limit=10)
    assert len(tried) == 10
    assert [one.row for one in tried] != sorted(one.row for one in tried)
    more, _ = await run(config, out, Rollouts(), limit=20)
    assert more[:10] == tried


async def test_too_many_lost_samples_stop_it(setup):
    config, _, out = setup

    class Dead(Rollouts):
        async def play(self, request):
            raise RolloutError("no worker is left")

    with pytest.raises(ExceptionGroup) as caught:
        await run(config, out, Dead())
    assert caught.group_contains(RunError, match="10 samples were lost, the last: no worker is left")


async def test_a_picture_without_a_quarter_view_is_in_no_class(setup):
    config, _, out = setup

    class Small(Rollouts):
        async def play(self, request):
            episode = make_episode(answer="red")
            object.__setattr__(episode, "turns", (make_turn("full"),))
            return make_group([episode], ref=request.ref), None

    tried, _ = await run(config, out, Small(), limit=5)
    assert [one.status for one in tried] == ["too_small"] * 5


def test_counts_of_other_settings_are_not_added_to(setup):
    config, dataset, out = setup
    check_settings(out, config, dataset, Rule())
    check_settings(out, config, dataset, Rule(margin=2, per_class=9))
    for changed, rule, told in (
        (config, Rule(num_rollouts=4), "rollouts=8, this command has 4"),
        (
            load_config("tiny", [f"data.train={config.data.train}", "rollout.temperature=0.5"]),
            Rule(),
            "rollout.temperature",
        ),
    ):
        with pytest.raises(RunError, match=told):
            check_settings(out, changed, dataset, rule)


async def test_a_finished_selection_is_written_again_without_a_fleet_and_under_another_rule(setup, monkeypatch):
    config, _, out = setup
    config = resolve_paths(config)
    display = Display(config, Console(file=io.StringIO()))
    trials = Trials(out, Rule())
    for row in range(NUM_ROWS):
        trials.add(Tried(row=row, num_quarter=8 if row % 2 else 3, num_full=8, full_size=(224, 224)))
    with pytest.raises(RunError, match=r"nothing is selected: of 40 .* for 20 .* needed for 0.*smaller --margin"):
        await run_selection(config, out, Rule(), limit=None, display=display)
    summary = await run_selection(config, out, Rule(margin=5, per_class=4), limit=None, display=display)
    assert (summary["num_selected"], summary["num_full"], summary["llm_calls"]) == (8, 20, 0)
    assert json.loads((out / "summary.json").read_text()) == summary
    assert len(Dataset.open(summary["table"])) == 8
    with pytest.raises(DataError, match=r"data.train: /no/org/name does not exist"):
        await run_selection(
            replace(config, data=replace(config.data, train="/no/org/name")), out, Rule(), limit=None, display=display
        )


def test_a_full_disk_is_one_line(setup, monkeypatch):
    _, _, out = setup

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cluster.datasets.select.append_line", full)
    with pytest.raises(RunError, match=r"samples.jsonl cannot be written: No space left.*it goes on"):
        Trials(out, Rule()).add(Tried(row=1))


def test_a_damaged_line_is_named(setup):
    _, _, out = setup
    (out / SAMPLES).write_bytes(b'{"row": 1, "full_size": [1, 1]}\nnot json\n')
    with pytest.raises(RunError, match=r"samples.jsonl: line 2 is damaged .*remove it"):
        Trials(out, Rule())


async def test_a_folder_that_cannot_be_had_is_refused_with_the_option_that_chooses_another(setup):
    config, _, out = setup
    display = Display(resolve_paths(config), Console(file=io.StringIO()))

    async def refusal(folder):
        with pytest.raises(RunError) as refused:
            await run_selection(resolve_paths(config), folder, Rule(), limit=None, display=display)
        return str(refused.value)

    told = await refusal(Path("/proc/selected"))
    assert told.startswith("/proc/selected/lease cannot be written: ")
    assert told.endswith("; give another --out")
    with lease(out, say=lambda _: None):
        told = await refusal(out)
    assert told.endswith("wait for it, stop it, or give another --out")
    assert "run." not in told.replace(str(out), "")
