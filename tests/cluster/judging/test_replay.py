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
from actors.errors import JudgeError, RunError
from cluster.judging.cli import judge_app
from cluster.judging.recorded import read_step
from cluster.judging.replay import find_judge, replay_run
from cluster.judging.replay_asking import ReplayJudge
from cluster.judging.replay_report import ReplayReport
from cluster.judging.replay_tables import replay_tables, summary_lines
from cluster.records.recorder import Recorder
from cluster.step import ScoredGroup, StepBatch
from configs.judges import JudgeConfig, LLMJudgeConfig
from configs.load import to_yaml
from configs.schema import Config, TrainConfig
from judge.llm.version import judge_version
from judge.reward import conduct_of, group_rewards
from judge.rules.judge import RulesJudge
from judge.trust.goldset import read_gold
from judge.verdict import Failure, JudgeRequest, NoVerdict, Outcome, Usage, Verdict, spread_outcomes
from learner.advantage import group_advantages
from tests.fakes import make_episode, make_group
from tests.judge.openai_server import OpenAIServer, verdict

LLM = JudgeConfig(
    chain=("openai",),
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
    rewards = group_rewards([conduct_of(episode) for episode in episodes], outcomes, config.reward)
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
    return await RulesJudge().grade(request)


class NeverAsked:
    async def grade(self, request):
        raise AssertionError("nobody should ask")


class Contrary:
    """Says that everything is right, for a price."""

    def __init__(self, version: str) -> None:
        self.version, self.seen = version, []

    async def grade(self, request):
        self.seen += request.predictions
        return [
            Verdict(
                is_correct=True,
                judge="openai",
                reason="[bold]kind[/bold]",
                judge_version=self.version,
                usage=Usage(num_calls=1, prompt_tokens=1_000_000, reply_tokens=500_000),
            )
            for _ in request.predictions
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


async def replayed(run: Path, judge: ReplayJudge, **options) -> ReplayReport:
    return await replay_run(run, judge, **options)


async def test_the_same_judge_changes_nothing_and_is_not_asked_even_without_a_cache(tmp_path):
    run, config = llm_run(tmp_path)
    judge = replace(find_judge(run, [], None), make=lambda _: NeverAsked())
    figures = (await replay_run(run, judge)).figures()
    assert (figures["num_episodes"], figures["num_judged"], figures["num_unjudged"]) == (10, 6, 2)
    assert (figures["num_changed"], figures["changed_share"]) == (0, 0.0)
    assert (figures["num_llm_calls"], figures["num_cache_hits"], figures["cost_usd"]) == (0, 0, 0.0)
    assert figures["num_from_record"] == 8
    assert figures["reward_mean_before"] == figures["reward_mean_after"]
    assert figures["accuracy_before"] == figures["accuracy_after"] == 0.25
    assert not Path(config.judge.cache).exists()


async def test_a_run_of_rules_is_judged_by_the_rules_again(tmp_path):
    config = Config()
    group = scored("a", "100", answers("100", "103", None), await by_rules("100", "100", "103"), config)
    run = record(tmp_path / "run", config, [group])
    figures = (await replay_run(run, find_judge(run, [], None))).figures()
    assert (figures["num_changed"], figures["num_from_record"], figures["num_judged"]) == (0, 0, 2)


async def test_another_metric_changes_the_rows_between_the_two_and_no_others(tmp_path):
    config = Config(train=TrainConfig(min_scored=2))
    texts = ("2.50", "2.58", "2.75", "red")
    # Only the first group has one that asked: r of Eq. 5 is 1/2 there, so it pays.
    groups = [
        scored("a", "2.50", answers(*texts, asked=(1,)), await by_rules("2.50", *texts), config),
        scored("b", "2.50", answers("2.58", "2.58"), await by_rules("2.50", "2.58", "2.58"), config),
        scored("c", "2.50", answers("2.58", "2.50"), await by_rules("2.50", "2.58", "2.50"), config),
        scored("d", "2.50", answers("2.58", "2.75"), await by_rules("2.50", "2.58", "2.75"), config),
    ]
    run = record(tmp_path / "run", config, groups)
    report = await replay_run(run, find_judge(run, ["judge.metric=relaxed"], None))
    figures = report.figures()
    assert (figures["num_changed"], figures["num_gained_right"], figures["num_lost_right"]) == (5, 5, 0)
    assert figures["changed_share"] == 0.5
    before = [1.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1.5, 0.5, 0.5]
    after = [1.5, 1.4, 0.5, 0.5, 1.5, 1.5, 1.5, 1.5, 1.5, 0.5]
    assert figures["reward_mean_before"] == pytest.approx(sum(before) / 10)
    assert figures["reward_mean_after"] == pytest.approx(sum(after) / 10)
    assert (figures["accuracy_before"], figures["accuracy_after"]) == (0.2, 0.7)
    assert (figures["num_signal_gained"], figures["num_signal_lost"]) == (1, 1), "d gains what c loses"
    assert {row.prediction for row in report.examples} == {"2.58"}
    assert report.total.decisions == {("right", "right"): 2, ("wrong", "right"): 5, ("wrong", "wrong"): 3}


async def test_another_reward_changes_rewards_and_no_verdict(tmp_path):
    run, _ = llm_run(tmp_path)
    judge = replace(find_judge(run, ["reward.format_weight=0"], None), make=lambda _: NeverAsked())
    figures = (await replay_run(run, judge)).figures()
    assert figures["num_changed"] == 0
    assert figures["reward_mean_after"] == pytest.approx(2 / 8), (
        "of eight scored, two right ones earn, and asking was worth it"
    )


async def test_another_llm_is_asked_once_and_then_known(tmp_path):
    run, _ = llm_run(tmp_path)
    judge = find_judge(run, ["judge.llm.model=other"], None)
    other = Contrary(judge.version)
    figures = (await replay_run(run, replace(judge, make=lambda _: other))).figures()
    assert sorted(other.seen) == ["12", "8", "dozen", "seven", "twelve"], "each question and answer once"
    assert (figures["num_llm_calls"], figures["cost_usd"]) == (5, 10.0)
    assert (figures["num_changed"], figures["num_gained_right"], figures["num_unjudged"]) == (6, 6, 0)
    again = (await replay_run(run, replace(judge, make=lambda _: NeverAsked()))).figures()
    assert (again["num_llm_calls"], again["num_cache_hits"], again["cost_usd"]) == (0, 8, 0.0)
    assert {**again, "num_llm_calls": 5, "num_cache_hits": figures["num_cache_hits"], "cost_usd": 10.0} == figures


async def test_what_the_other_judge_cannot_decide_is_masked_and_not_wrong(tmp_path):
    run, _ = llm_run(tmp_path)
    judge = replace(find_judge(run, ["judge.llm.model=other"], None), make=lambda _: Down())
    report = await replay_run(run, judge)
    figures = report.figures()
    assert (figures["num_judged"], figures["num_unjudged"], figures["num_lost_right"]) == (0, 8, 2)
    assert figures["accuracy_after"] == 0.0, "the episodes without an answer are all that is scored"
    assert report.total.count(before="no verdict", after="no verdict") == 2


async def test_a_resumed_run_with_another_judge_is_told_by_its_rows_and_not_by_its_settings(tmp_path):
    run, config = llm_run(tmp_path)
    resumed = replace(config, judge=replace(LLM, llm=replace(LLM.llm, model="other"), cache=""))
    (run / "config.yaml").write_text(to_yaml(resumed))
    judge = find_judge(run, [], None)
    other = Contrary(judge.version)
    figures = (await replay_run(run, replace(judge, make=lambda _: other))).figures()
    assert figures["num_from_record"] == 0
    back = replace(find_judge(run, ["judge.llm.model=m"], None), make=lambda _: NeverAsked())
    assert (await replay_run(run, back)).figures()["num_changed"] == 0


async def test_a_run_whose_own_wording_is_gone_is_judged_by_another_all_the_same(tmp_path):
    run, config = llm_run(tmp_path)
    llm = replace(LLM.llm, prompt=str(tmp_path / "gone.yaml"))
    (run / "config.yaml").write_text(to_yaml(replace(config, judge=replace(LLM, llm=llm, cache=""))))
    with pytest.raises(ValueError, match=r"judge.llm.prompt='.*gone.yaml'"):
        find_judge(run, [], None)
    for overrides, name in ((["judge.llm.prompt=judge"], None), ([], "tiny")):
        assert not find_judge(run, overrides, name).is_of_run


def test_a_real_endpoint_is_asked_by_the_first_replay_alone(tmp_path):
    run, _ = llm_run(tmp_path)
    with OpenAIServer(lambda call: verdict(call, call.fields["prediction"] != "8")) as server:
        command = ["replay", str(run), "--json", f"judge.llm.base_url={server.url}", "judge.llm.max_reply_tokens=17"]
        first, second = (json.loads(CliRunner().invoke(judge_app, command).stdout.splitlines()[-1]) for _ in range(2))
        assert server.num_calls == 5, "each question and answer once"
    assert (first["num_llm_calls"], first["num_changed"], first["num_gained_right"]) == (5, 5, 5)
    assert first["cost_usd"] > 0
    assert (second["num_llm_calls"], second["cost_usd"]) == (0, 0.0)
    assert second["num_changed"] == 5


def test_a_missing_key_ends_the_command_at_once(tmp_path):
    run, _ = llm_run(tmp_path)
    command = ["replay", str(run), "judge.llm.model=other", f"judge.llm.api_key_file={tmp_path}/none"]
    done = CliRunner().invoke(judge_app, command)
    assert done.exit_code == 1
    assert "none" in done.stderr


async def test_a_judge_inside_the_cluster_needs_the_folder_of_its_model_before_ray_starts(tmp_path):
    run, _ = llm_run(tmp_path)
    with pytest.RaisesGroup(
        pytest.RaisesExc(JudgeError, match=r"is no folder"), allow_unwrapped=True, flatten_subgroups=True
    ):
        await replay_run(run, find_judge(run, ["judge.chain=[rules,cluster]"], None))


async def test_files_of_earlier_runs_are_read(tmp_path):
    run, _ = llm_run(tmp_path)
    for file in (run / "episodes").iterdir():
        table = pq.read_table(file).drop_columns(["judge_version", "num_calls", "prompt_tokens", "reply_tokens"])
        pq.write_table(table, file)
    (group,) = read_step(run / "episodes" / "step-000001.parquet")
    assert [episode.answer for episode in group.episodes] == ["12", "twelve", "dozen", None]
    assert {outcome.judge_version for e in group.episodes if isinstance(outcome := e.outcome, Verdict)} == {""}


async def test_a_recorded_group_earns_what_it_earned(tmp_path):
    run, config = llm_run(tmp_path)
    for group in read_step(run / "episodes" / "step-000002.parquet"):
        conducts = [episode.conduct for episode in group.episodes]
        rewards = group_rewards(conducts, [episode.outcome for episode in group.episodes], config.reward)
        assert [None if reward is None else reward.total for reward in rewards] == [e.reward for e in group.episodes]


async def test_changed_rows_are_a_gold_set_to_settle(tmp_path):
    run, _ = llm_run(tmp_path)
    judge = find_judge(run, ["judge.llm.model=other"], None)
    out = tmp_path / "changed.jsonl"
    await replay_run(run, replace(judge, make=lambda _: Contrary(judge.version)), out=out)
    rows = read_gold(out)
    assert [(row.reference, row.prediction, row.is_correct, row.kind) for row in rows] == [
        ("12", "twelve", True, "replay"),
        ("12", "dozen", True, "replay"),
        ("7", "seven", True, "replay"),
        ("7", "8", True, "replay"),
    ]
    assert list(tmp_path.glob("*.tmp")) == []
    with pytest.raises(RunError, match="cannot be written"):
        await replay_run(run, judge, out=tmp_path / "no" / "folder.jsonl")


async def test_damage_and_strangers_are_named(tmp_path):
    run, _ = llm_run(tmp_path)
    judge = replace(find_judge(run, [], None), make=lambda _: NeverAsked())
    file = run / "episodes" / "step-000002.parquet"
    whole = file.read_bytes()
    for content in (whole[:-20], whole[:100] + b"\0" * 50 + whole[150:], b"", b"text"):
        file.write_bytes(content)
        with pytest.raises(RunError, match=r"step-000002\.parquet cannot be read: .*move it away"):
            await replay_run(run, judge)
    file.write_bytes(whole)
    table = pq.read_table(file)
    for foreign, message in (
        (pa.table({"step": [1]}), "it has no column 'sample'"),
        (table.set_column(0, "step", pa.array(["1"] * len(table))), "column 'step' is string, not int64"),
        (table.set_column(0, "step", pa.nulls(len(table), pa.int64())), "column 'step' has empty cells"),
    ):
        pq.write_table(foreign, file)
        with pytest.raises(RunError, match=message):
            await replay_run(run, judge)


async def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(RunError, match=r"no config\.yaml: name the folder of a run"):
        find_judge(tmp_path / "nowhere", [], None)
    run = record(tmp_path / "run", Config())
    with pytest.raises(RunError, match=r"no episodes/step-\*\.parquet"):
        await replay_run(run, find_judge(run, [], None))
    (run / "config.yaml").write_text("judge:\n  backend: rules\n")
    with pytest.raises(RunError, match=r"of another version .*backend.*--config NAME"):
        find_judge(run, [], None)
    assert find_judge(run, ["judge.metric=anls"], "tiny").config.judge.metric == "anls"


async def test_tables_show_text_as_it_is_and_long_runs_in_stretches(tmp_path):
    config = llm_config(tmp_path)
    verdict = Verdict(is_correct=False, judge="openai", reason="no", judge_version="old")
    group = scored("a", "[red]1", answers("[b]one"), [verdict], config)
    run = record(tmp_path / "run", config, *[[group]] * 45)
    judge = find_judge(run, [], None)
    told: list[tuple[int, int]] = []
    other = Contrary(judge.version)
    report = await replay_run(
        run, replace(judge, make=lambda _: other), advance=lambda done, total: told.append((done, total))
    )
    console = Console(width=200, record=True, file=io.StringIO())
    for table in replay_tables(report):
        console.print(table)
    console.print("\n".join(summary_lines(report)), markup=False)
    text = console.export_text()
    assert "[red]1" in text
    assert "[b]one" in text
    assert "right: [bold]kind[/bold]" in text
    assert "1 to 3" in text
    assert "45 of 45 answers" in text
    assert told[0] == (0, 45)
    assert told[-1] == (45, 45)
    assert other.seen == ["[b]one"]


def test_the_command_prints_one_json_object(tmp_path):
    run, _ = llm_run(tmp_path)
    done = CliRunner().invoke(judge_app, ["replay", str(run), "--json"])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["num_episodes"], figures["num_changed"], figures["num_llm_calls"]) == (10, 0, 0)
    assert [step["step"] for step in figures["steps"]] == [1, 2]
    missing = CliRunner().invoke(judge_app, ["replay", str(tmp_path / "none")])
    assert missing.exit_code == 1
