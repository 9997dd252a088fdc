"""Recorded runs scored again: the same judge changes nothing and is not asked, another changes what it must."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from actors.data.dataset import CursorState
from actors.episode import Episode, SampleRef
from actors.errors import RunError
from cluster.fleet import spread_outcomes
from cluster.judging.cli import judge_app
from cluster.judging.replay import read_step, replay_run, replay_summary, replay_tables
from cluster.records.recorder import Recorder
from cluster.step import ScoredGroup, StepBatch
from configs.judges import JudgeConfig, LLMJudgeConfig
from configs.load import load_config, to_yaml
from configs.schema import Config, TrainConfig
from judge.llm.version import judge_version
from judge.reward import group_rewards
from judge.rules.judge import RulesJudge
from judge.verdict import Failure, JudgeRequest, NoVerdict, Outcome, Usage, Verdict
from learner.advantage import group_advantages
from tests.fakes import make_episode, make_group
from tests.judge.openai_server import OpenAIServer, verdict

LLM = JudgeConfig(
    chain=("rules", "openai"),
    llm=LLMJudgeConfig(model="m", prompt_price=1.0, reply_price=2.0),
    max_tries=1,
)


def scored(
    uid: str, reference: str, episodes: Sequence[Episode], graded: Sequence[Outcome], config: Config
) -> ScoredGroup:
    played = replace(
        make_group(episodes, ref=SampleRef(dataset="train", row=0, uid=uid)), question="how much?", answer=reference
    )
    outcomes = spread_outcomes(episodes, graded)
    rewards = group_rewards(episodes, outcomes, config.reward)
    totals = [None if reward is None else reward.total for reward in rewards]
    return ScoredGroup(
        played=played, outcomes=outcomes, rewards=rewards, advantages=group_advantages(totals), image=None
    )


def record(folder: Path, config: Config, *steps: Sequence[ScoredGroup]) -> Path:
    recorder = Recorder(folder, step=0)
    for step, groups in enumerate(steps, 1):
        collected = StepBatch(
            trained=tuple(groups),
            without_signal=(),
            lost=(),
            drawn=tuple(group.played.ref for group in groups),
            cursor=CursorState(seed=0, epoch=0, position=1),
            seconds=1.0,
        )
        recorder.record_step(step, collected, {})
    recorder.close()
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder


def answers(*texts: str | None, asked: Sequence[int] = ()) -> list[Episode]:
    return [make_episode(answer=text, asked=index in asked, index=index) for index, text in enumerate(texts)]


async def by_rules(reference: str, *texts: str) -> list[Outcome]:
    request = JudgeRequest(question="how much?", reference=reference, predictions=texts)
    return await RulesJudge.from_config(JudgeConfig()).grade(request)


class NeverAsked:
    async def grade(self, request):
        raise AssertionError("nobody should ask")


class Contrary:
    """Says that everything is right but for some answers, for a price."""

    def __init__(self, version: str, wrong: Sequence[str] = ()) -> None:
        self.version, self.wrong, self.seen = version, wrong, []

    async def grade(self, request):
        self.seen += request.predictions
        return [
            Verdict(
                is_correct=prediction not in self.wrong,
                judge="openai",
                reason="[bold]kind[/bold]",
                judge_version=self.version,
                usage=Usage(num_calls=1, prompt_tokens=1_000_000, reply_tokens=500_000),
            )
            for prediction in request.predictions
        ]


class Down:
    async def grade(self, request):
        return [NoVerdict(reason="refused", failure=Failure.REJECTED) for _ in request.predictions]


def llm_config(folder: Path, judge: JudgeConfig = LLM) -> Config:
    return Config(judge=replace(judge, cache=str(folder / "verdicts.sqlite")), train=TrainConfig(min_scored=2))


def llm_run(folder: Path) -> tuple[Path, Config]:
    """Two steps of a chain: verdicts of rules and of the LLM, an answer without a verdict, episodes without answers."""
    config = llm_config(folder)
    version = judge_version(config.judge)
    llm = Verdict(is_correct=False, judge="openai", reason="no", judge_version=version, usage=Usage(num_calls=1))
    rules = Verdict(is_correct=True, judge="rules", reason="same text")
    late = NoVerdict(reason="late")
    first = scored("a", "12", answers("12", "twelve", "dozen", None, asked=(0, 1)), [rules, llm, late], config)
    second = scored("b", "7", answers("seven", "8", asked=(1,)), [llm, llm], config)
    return record(folder / "run", config, [first], [second, first]), config


def settings(run: Path, *overrides: str) -> Config:
    return load_config(str(run / "config.yaml"), overrides)


async def test_the_same_judge_changes_nothing_and_its_llm_is_not_asked_again(tmp_path):
    run, config = llm_run(tmp_path)
    late = Contrary(judge_version(config.judge))
    figures = (await replay_run(run, config.judge, make=lambda _: late)).figures()
    assert set(late.seen) <= {"12", "dozen"}, "what rules decided and what had no verdict"
    assert (figures["num_episodes"], figures["num_answers"]) == (10, 8)
    assert figures["changes"] == {"right to right": 2, "wrong to wrong": 4, "no verdict to right": 2}
    assert (figures["accuracy_before"], figures["num_changed"]) == (0.25, 2)


async def test_a_run_of_rules_is_judged_by_the_rules_again(tmp_path):
    config = Config()
    group = scored("a", "100", answers("100", "103", None), await by_rules("100", "100", "103"), config)
    run = record(tmp_path / "run", config, [group])
    figures = (await replay_run(run, settings(run).judge)).figures()
    assert (figures["num_changed"], figures["num_answers"], figures["num_llm_calls"]) == (0, 2, 0)
    assert figures["accuracy_before"] == figures["accuracy_after"] == pytest.approx(1 / 3)


async def test_another_judge_changes_verdicts_and_accuracy_step_by_step(tmp_path):
    config = llm_config(tmp_path)

    def said(*decisions: bool) -> list[Verdict]:
        return [
            Verdict(is_correct=is_right, judge="openai", reason="no", judge_version="old") for is_right in decisions
        ]

    first = scored("a", "red", answers("crimson", "ruby", "scarlet", None), said(True, False, False), config)
    second = scored("b", "red", answers("maroon", "brick"), said(False, False), config)
    run = record(tmp_path / "run", config, [first], [second])
    judge = Contrary(judge_version(config.judge), wrong=("scarlet", "crimson"))
    figures = (await replay_run(run, config.judge, make=lambda _: judge)).figures()
    assert figures["changes"] == {"right to wrong": 1, "wrong to right": 3, "wrong to wrong": 1}
    assert (figures["num_episodes"], figures["num_answers"], figures["num_changed"]) == (6, 5, 4)
    assert figures["changed_share"] == 0.8
    assert (figures["accuracy_before"], figures["accuracy_after"]) == (pytest.approx(1 / 6), 0.5)
    assert figures["steps"] == [
        {"step": 1, "accuracy_before": 0.25, "accuracy_after": 0.25},
        {"step": 2, "accuracy_before": 0.0, "accuracy_after": 1.0},
    ]
    assert [row["prediction"] for row in figures["changed"]] == ["crimson", "ruby", "maroon", "brick"]
    assert (figures["changed"][0]["before"], figures["changed"][0]["after"]) == (
        "right: no",
        "wrong: [bold]kind[/bold]",
    )


async def test_another_llm_is_asked_once_and_then_known(tmp_path):
    run, _ = llm_run(tmp_path)
    config = settings(run, "judge.llm.model=other", "judge.chain=[openai]")
    other = Contrary(judge_version(config.judge))
    figures = (await replay_run(run, config.judge, make=lambda _: other)).figures()
    assert sorted(other.seen) == ["12", "8", "dozen", "seven", "twelve"], "each question and answer once"
    assert (figures["num_llm_calls"], figures["cost_usd"], figures["num_changed"]) == (5, 10.0, 6)
    again = (await replay_run(run, config.judge, make=lambda _: NeverAsked())).figures()
    assert (again["num_llm_calls"], again["num_cache_hits"], again["cost_usd"]) == (0, 8, 0.0)
    assert again["changes"] == figures["changes"]


async def test_what_the_other_judge_cannot_decide_is_masked_and_not_wrong(tmp_path):
    run, _ = llm_run(tmp_path)
    config = settings(run, "judge.llm.model=other", "judge.chain=[openai]")
    figures = (await replay_run(run, config.judge, make=lambda _: Down())).figures()
    assert figures["changes"] == {"right to no verdict": 2, "wrong to no verdict": 4, "no verdict to no verdict": 2}
    assert figures["accuracy_after"] == 0.0, "the episodes without an answer are all that is scored"


def test_damage_and_strangers_are_named(tmp_path):
    run, _ = llm_run(tmp_path)
    file = run / "episodes" / "step-000002.parquet"
    whole = file.read_bytes()
    for content in (whole[:-20], whole[:100] + b"\0" * 50 + whole[150:], b"", b"text"):
        file.write_bytes(content)
        with pytest.raises(RunError, match=r"step-000002\.parquet cannot be read: .*move it away"):
            read_step(file)
    file.write_bytes(whole)
    table = pq.read_table(file)
    for foreign, message in (
        (pa.table({"step": [1]}), "column 'sample' is missing, not string"),
        (table.set_column(0, "step", pa.array(["1"] * len(table))), "column 'step' is string, not int64"),
    ):
        pq.write_table(foreign, file)
        with pytest.raises(RunError, match=message):
            read_step(file)


async def test_tables_show_text_as_it_is_and_long_runs_in_stretches(tmp_path):
    config = llm_config(tmp_path)
    verdict = Verdict(is_correct=False, judge="openai", reason="no", judge_version="old")
    group = scored("a", "[red]1", answers("[b]one"), [verdict], config)
    run = record(tmp_path / "run", config, *[[group]] * 45)
    told: list[tuple[int, int]] = []
    other = Contrary(judge_version(config.judge))
    report = await replay_run(
        run, config.judge, make=lambda _: other, advance=lambda done, total: told.append((done, total))
    )
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(*replay_tables(report), replay_summary(report), sep="\n", markup=False)
    text = console.export_text()
    for shown in ("[red]1", "[b]one", "right: [bold]kind[/bold]", "1 to 5", "42 to 45", "45 of 45 verdicts"):
        assert shown in text
    assert max(map(len, text.splitlines())) <= 80
    assert (told[0], told[-1]) == ((0, 45), (44, 45))
    assert other.seen == ["[b]one"]


def test_a_real_endpoint_is_asked_by_the_first_replay_alone(tmp_path):
    run, _ = llm_run(tmp_path)
    with OpenAIServer(lambda call: verdict(call, call.fields["prediction"] != "8")) as server:
        command = ["replay", str(run), "--json", f"judge.llm.base_url={server.url}", "judge.chain=[openai]"]
        done = [CliRunner().invoke(judge_app, command) for _ in range(2)]
        first, second = (json.loads(one.stdout.splitlines()[-1]) for one in done)
        assert server.num_calls == 5 + 2, "each question and answer once, and each replay whether somebody answers"
    assert (first["num_llm_calls"], first["num_changed"]) == (5, 5)
    assert first["cost_usd"] > 0
    assert (second["num_llm_calls"], second["cost_usd"], second["num_changed"]) == (0, 0.0, 5)
    assert [step["step"] for step in first["steps"]] == [1, 2]


@pytest.mark.parametrize("overrides", [["judge.llm.api_key_file={}/none"], ["judge.nonsense=1"]])
def test_what_cannot_be_asked_ends_the_command_at_once(tmp_path, overrides):
    run, _ = llm_run(tmp_path)
    done = CliRunner().invoke(judge_app, ["replay", str(run), *(text.format(tmp_path) for text in overrides)])
    assert done.exit_code == 1
    assert "none" in done.stderr or "nonsense" in done.stderr


async def test_what_is_no_run_is_named(tmp_path):
    done = CliRunner().invoke(judge_app, ["replay", str(tmp_path / "nowhere")])
    assert done.exit_code == 1
    assert "no config.yaml: give a run folder" in " ".join(done.stderr.split())
    run = record(tmp_path / "run", Config())
    with pytest.raises(RunError, match=r"no episodes/step-\*\.parquet"):
        await replay_run(run, settings(run).judge)
