"""Suites are played, scored and recorded with a scripted fleet; what is recorded is not played again."""

import asyncio
import io
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from actors.errors import RunError, SampleError
from cluster.display import Display
from cluster.evaluation.play import is_complete, play_suite, unjudged
from cluster.evaluation.suites import open_suites, parse_suites
from cluster.evaluation.transcript import PART_ROWS, Transcript
from cluster.fleet import Fleet
from configs.judges import JudgeConfig, LLMJudgeConfig
from configs.load import load_config
from judge.verdict import Failure, NoVerdict, Verdict
from tests.actors.data.benchmarks.layouts import ROWS, write_suite
from tests.fakes import make_episode, make_group

CONFIG = load_config("tiny")
LLM = replace(CONFIG, judge=JudgeConfig(chain=("rules", "openai"), llm=LLMJudgeConfig(model="m")))


@dataclass
class Rollouts:
    """Answers with what `answer` says; dies at the n-th play where told to."""

    answer: object
    dies_at: int = 10**9
    num_workers: int = 1
    played: list = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0

    async def play(self, request):
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        if len(self.played) >= self.dies_at:
            raise RuntimeError("killed")
        self.played.append((request.kind, request.ref.uid))
        answer = self.answer(request)
        if answer is LOST:
            raise SampleError("lost")
        asked = request.kind == "policy" and request.ref.row % 2 == 1
        episode = make_episode(answer=answer, asked=asked, sample=request.ref.uid)
        return make_group([episode], ref=request.ref), None


LOST = object()


@dataclass
class Judges:
    outcome: object
    asked: list = field(default_factory=list)

    async def grade(self, request):
        self.asked.append(request)
        outcome = self.outcome(request)
        return [NoVerdict(reason="down", failure=Failure.UNREACHABLE) if outcome is None else outcome]


def graded(reply):
    return Verdict(is_correct=float(reply) >= 0.5, judge="llm", reason="", reply=reply)


def suite_of(name, folder: Path, *, num_rows=10, config=CONFIG, limit=None):
    if not folder.exists():
        rows = ROWS[name] * num_rows if name != "mme" else mme_rows(num_rows)
        write_suite(name, folder, rows)
    return open_suites([name], folder, config, limit)[0]


def mme_rows(num_rows):
    """Images in pairs of questions."""
    return [{**ROWS["mme"][at % 2], "question_id": str(at // 2)} for at in range(num_rows)]


async def played(suite, transcript, rollouts, judges=None, *, config=CONFIG, num_judgements=1):
    shown = io.StringIO()
    fleet = Fleet(rollouts=rollouts, judges=judges or Judges(lambda request: None))
    await play_suite(fleet, suite, config, transcript, num_judgements, Display(config, Console(file=shown, width=200)))
    return shown.getvalue()


async def test_a_suite_is_played_in_three_ways_and_scored(tmp_path):
    suite = suite_of("chartqa", tmp_path / "sets")
    transcript = Transcript(tmp_path / "out", {})
    rollouts = Rollouts(lambda request: "14.5" if request.kind == "policy" else None)
    await played(suite, transcript, rollouts)
    assert Counter(kind for kind, _ in rollouts.played) == {"policy": 20, "always_quarter": 20, "always_full": 20}
    assert rollouts.most_under_way <= CONFIG.rollout.max_groups_in_flight
    scores = {(kind, sample): play.score for (kind, sample), play in transcript.plays.items()}
    assert scores["policy", "chartqa-0"] == 1.0  # 14.5 is within 5 % of 14
    assert scores["policy", "chartqa-1"] == 0.0
    assert scores["always_full", "chartqa-0"] == 0.0  # no answer is wrong
    rows = pq.read_table(sorted((tmp_path / "out").glob("part-*.parquet"))).to_pylist()
    assert len(rows) == 60
    assert {row["judge"] for row in rows} == {"chartqa", "format"}
    assert is_complete(suite, transcript, 1)


async def test_a_killed_evaluation_continues_and_plays_each_sample_once(tmp_path):
    suite, finished = suite_of("pope", tmp_path / "sets", num_rows=100), PART_ROWS + 10
    dying = Rollouts(lambda request: "yes", dies_at=finished)
    with pytest.raises(ExceptionGroup):
        await played(suite, Transcript(tmp_path / "out", {"policy": 1}), dying)
    sorted((tmp_path / "out").glob("part-*.parquet"))[-1].unlink()  # a kill leaves no time to write what is waiting
    (tmp_path / "out" / "part-000009.parquet.tmp").write_bytes(b"half a part")
    resumed = Transcript(tmp_path / "out", {"policy": 1})
    num_kept = len(resumed.plays)
    assert num_kept == PART_ROWS
    rest = Rollouts(lambda request: "yes")
    await played(suite, resumed, rest)
    assert len(rest.played) == 300 - num_kept
    again = Transcript(tmp_path / "out", {"policy": 1})
    assert len(again.plays) == 300
    assert is_complete(suite, again, 1)
    again.merge(tmp_path / "all.parquet", 7)
    merged = pq.read_table(tmp_path / "all.parquet").to_pylist()
    assert len({(row["kind"], row["sample"]) for row in merged}) == len(merged) == 300
    assert {row["step"] for row in merged} == {7}


def test_a_folder_of_another_policy_is_refused_with_what_differs(tmp_path):
    Transcript(tmp_path, {"policy": "a", "model.max_pixels": 1})
    with pytest.raises(RunError, match=r"another policy.*--restart.*--out"):
        Transcript(tmp_path, {"policy": "b", "model.max_pixels": 1})


def test_a_folder_that_cannot_be_written_and_a_damaged_part_are_told_in_one_line(tmp_path):
    with pytest.raises(RunError, match=r"/proc/x.* cannot be written: .*--out"):
        Transcript(Path("/proc/x/chartqa"), {})
    Transcript(tmp_path, {})
    (tmp_path / "part-000001.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(RunError, match=r"part-000001.parquet cannot be read .*: delete it"):
        Transcript(tmp_path, {})


async def test_two_processes_in_one_folder_overwrite_nothing(tmp_path):
    suite = suite_of("pope", tmp_path / "sets", num_rows=4)
    one, other = Transcript(tmp_path / "out", {}), Transcript(tmp_path / "out", {})
    for transcript in (one, other):
        await played(suite, transcript, Rollouts(lambda request: "yes"))
    assert len(list((tmp_path / "out").glob("part-*"))) == 6
    assert len(Transcript(tmp_path / "out", {}).plays) == 12


async def test_what_the_judge_did_not_score_is_asked_again_and_not_played_again(tmp_path):
    suite = suite_of("mmvet", tmp_path / "sets", config=LLM)
    down = Judges(lambda request: None)
    rollouts = Rollouts(lambda request: f"answer {request.ref.row}")
    transcript = Transcript(tmp_path / "out", {})
    await played(suite, transcript, rollouts, down, config=LLM)
    assert {play.score for play in transcript.plays.values()} == {None}
    assert not is_complete(suite, transcript, 1)
    resumed = Transcript(tmp_path / "out", {})
    await played(suite, resumed, Rollouts(lambda request: pytest.fail("played again")), Judges(lambda r: graded("0.7")))
    again = Transcript(tmp_path / "out", {})
    assert {play.score for play in again.plays.values()} == {0.7}
    assert is_complete(suite, again, 1)
    again.merge(tmp_path / "all.parquet", 0)
    rows = pq.read_table(tmp_path / "all.parquet").to_pylist()
    assert {(row["is_correct"], row["judge"], tuple(row["scores"])) for row in rows} == {(True, "llm", (0.7,))}
    assert all(row["turns"] for row in rows)


async def test_judging_again_adds_runs_and_keeps_the_first(tmp_path):
    suite = suite_of("mmvet", tmp_path / "sets", num_rows=2, config=LLM)
    judges = Judges(lambda request: graded(("0.4", "0.8", "0.6")[request.run]))
    transcript = Transcript(tmp_path / "out", {})
    await played(suite, transcript, Rollouts(lambda request: "x"), judges, config=LLM)
    assert not is_complete(suite, transcript, 3)
    await played(suite, transcript, Rollouts(lambda request: pytest.fail("again")), judges, num_judgements=3)
    plays = Transcript(tmp_path / "out", {}).plays.values()
    assert {play.scores for play in plays} == {(0.4, 0.8, 0.6)}
    assert Counter(request.run for request in judges.asked) == {0: 6, 1: 6, 2: 6}


async def test_rules_are_not_asked_twice_however_often_one_judges(tmp_path):
    suite = suite_of("chartqa", tmp_path / "sets")
    transcript = Transcript(tmp_path / "out", {})
    await played(suite, transcript, Rollouts(lambda request: "14"), num_judgements=5)
    assert unjudged(suite, transcript, 5) == []


async def test_lost_episodes_stop_an_evaluation_only_where_they_are_many(tmp_path):
    suite = suite_of("pope", tmp_path / "sets", num_rows=20)
    transcript = Transcript(tmp_path / "out", {})
    shown = await played(suite, transcript, Rollouts(lambda request: LOST if request.ref.row == 3 else "yes"))
    assert "lost" in shown
    assert len(transcript.plays) == 57
    with pytest.raises(RunError, match=r"pope lost 60 of 60 episodes"):
        await played(suite, Transcript(tmp_path / "other", {}), Rollouts(lambda request: LOST))


def test_a_limit_takes_whole_images_of_mme_and_grows_by_adding(tmp_path):
    folder = tmp_path / "sets"
    few = suite_of("mme", folder, num_rows=40, limit=9)
    more = suite_of("mme", folder, limit=20)
    rows = {ref.row for ref in few.refs}
    assert len(rows) == 8
    assert {row ^ 1 for row in rows} == rows
    assert rows < {ref.row for ref in more.refs}


def test_suites_are_named_or_refused():
    assert parse_suites("mme, chartqa,mme") == ["mme", "chartqa"]
    assert len(parse_suites("all")) == 9
    with pytest.raises(ValueError, match=r"--suite=mmbench is invalid: must be one or more of heldout, chartqa"):
        parse_suites("mmbench")
    with pytest.raises(ValueError, match="--suite is empty"):
        parse_suites(",")
    with pytest.raises(ValueError, match="--suite=pope needs --suite-dir"):
        open_suites(["pope"], None, CONFIG, None)
    with pytest.raises(ValueError, match=r"--suite=mmvet is scored by an LLM: set judge.chain"):
        open_suites(["mmvet"], Path(), CONFIG, None)
