"""`visionthink judge check` on judges whose faults are known."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from actors.errors import JudgeError
from cluster.judging.check import check_judge, check_summary, check_tables
from cluster.judging.cli import judge_app
from configs.judges import JudgeConfig, LLMJudgeConfig
from judge.trust.goldset import ATTACKS_FILE, GOLD_FILE, read_gold
from judge.verdict import Verdict
from tests.judge import openai_server as scripted
from tests.judge.openai_server import OpenAIServer

LLM = JudgeConfig(chain=("openai",), llm=LLMJudgeConfig(model="m", prompt_price=2.5, reply_price=10.0), cache="")
KNOWN = {row.request: row.is_correct for file in (GOLD_FILE, ATTACKS_FILE) for row in read_gold(file)}


class Says:
    """Passes what `is_right` says of a request."""

    def __init__(self, is_right):
        self.is_right = is_right

    async def grade(self, request):
        reason = "[bold]why not[/bold]"
        answers = [replace(request, predictions=(prediction,)) for prediction in request.predictions]
        return [Verdict(is_correct=self.is_right(one), judge="fake", reason=reason) for one in answers]


def checked_by(is_right, files=()):
    return check_judge(LLM, files, make=lambda config: Says(is_right))


def rows_file(folder, *rows):
    """(prediction, verdict) about a red thing."""
    texts = {"question": "What?", "reference": "red", "kind": "k"}
    file = folder / "own.jsonl"
    file.write_text("".join(json.dumps({**texts, "prediction": p, "verdict": v}) + "\n" for p, v in rows))
    return file


def printed(report) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(*check_tables(report), markup=False)
    return console.export_text() + check_summary(report)


async def test_a_judge_that_is_always_right_is_trusted():
    report = await checked_by(KNOWN.get)
    figures = report.figures()
    assert (figures["agreement"], figures["false_positive_rate"], figures["attack_success_rate"]) == (1, 0, 0)
    assert figures["num_gold"] == len(read_gold(GOLD_FILE))
    assert json.loads(json.dumps(figures)) == figures
    assert figures["trusted"] == "yes"
    assert printed(report).splitlines()[-1].startswith("Can this judge be trusted? Yes: 0 of ")


async def test_a_judge_that_passes_everything_is_not():
    report = await checked_by(lambda request: True)
    figures = report.figures()
    assert (figures["false_positive_rate"] > 0.99, figures["false_negative_rate"]) == (True, 0)
    assert figures["attack_success_rate"] > 0.7, "the precheck is part of every chain"
    assert 0.4 < figures["agreement"] < 0.6
    assert figures["trusted"] == "no"
    assert "wrong answers pass (at least 9" in report.verdict[1]


async def test_a_judge_that_only_attacks_or_refusals_give_away_is_not_either():
    fooled = await checked_by(lambda request: KNOWN[request] or "1" in request.predictions[0])
    refusing = await checked_by(lambda request: False)
    assert fooled.verdict[0] == "no"
    assert (refusing.verdict[0], refusing.figures()["attack_success_rate"]) == ("no", 0)
    assert "right answers fail" in refusing.verdict[1]


async def test_few_rows_leave_it_unclear(tmp_path):
    own = rows_file(tmp_path, ("red", 1), ("blue", 0))
    report = await checked_by(lambda request: request.predictions == ("red",), [own])
    assert report.verdict == ("unclear", "0 of 1 wrong answers pass (up to 79.3%, limit 5%)")


async def test_what_rules_decide_is_shown_whoever_judges(tmp_path):
    gold = (await check_judge(JudgeConfig())).figures()
    assert 0.2 < gold["decided"] < 1
    assert gold["decided_agreement"] == 1.0
    assert gold["num_calls"] == 0
    own = rows_file(tmp_path, ("red", 1), ("Red", 1), ("crimson", 1), ("scarlet", 0))
    figures = (await checked_by(lambda request: True, [own])).figures()
    assert (figures["decided"], figures["decided_agreement"], figures["agreement"]) == (0.5, 1.0, 0.75)
    assert figures["num_gold"] == 4


async def test_a_set_without_a_right_answer_is_an_attack_set_and_text_is_no_markup(tmp_path):
    report = await checked_by(lambda request: True, [rows_file(tmp_path, ("[red]blue", 0))])
    figures = report.figures()
    assert (figures["num_gold"], figures["num_attacks"], figures["attack_success_rate"]) == (0, 1, 1)
    assert (figures["decided"], figures["agreement"]) == (0.0, None)
    assert figures["disagreements"][0]["prediction"] == "[red]blue"
    assert "[red]blue" in printed(report)
    assert "[bold]why not" in printed(report)


async def test_rules_alone_need_no_key_and_an_llm_without_one_stops_the_check(tmp_path):
    own = rows_file(tmp_path, ("red", 1))
    with_key = LLMJudgeConfig(model="m", api_key_env="NO_SUCH_KEY_IS_SET")
    assert (await check_judge(JudgeConfig(llm=with_key), [own])).figures()["agreement"] == 1
    with pytest.raises(JudgeError, match="NO_SUCH_KEY_IS_SET"):
        await check_judge(JudgeConfig(chain=("rules", "openai"), llm=with_key), [own])


async def test_an_llm_is_asked_within_the_limits_of_a_run_and_its_calls_tokens_and_cost_are_shown(tmp_path):
    own = rows_file(tmp_path, ("red", 1), ("blue", 0), (":", 0))
    with OpenAIServer(scripted.after(2, scripted.says("Score: 1"))) as server:
        report = await check_judge(replace(LLM, llm=replace(LLM.llm, base_url=server.url)), [own])
    figures = report.figures()
    assert (figures["agreement"], figures["num_unjudged"], figures["num_gold"]) == (1, 0, 3)
    # The endpoint is asked whether it answers; then two rows reach the LLM, one of them twice.
    assert (figures["num_calls"], server.num_calls) == (3, 4)
    assert (figures["prompt_tokens"], figures["reply_tokens"]) == (300, 15)
    assert figures["cost_usd"] == pytest.approx(300 * 2.5e-6 + 15 * 10e-6)
    assert "3 LLM calls, 300 prompt and 15 reply tokens, 0.0009 USD" in printed(report)


async def test_a_row_without_a_verdict_is_counted_and_never_wrong(tmp_path):
    own = rows_file(tmp_path, ("red", 1), ("blue", 0), (":", 0))
    with OpenAIServer(scripted.says("1 or 0")) as server:
        config = replace(LLM, llm=replace(LLM.llm, base_url=server.url), max_tries=2)
        report = await check_judge(config, [own])
    figures = report.figures()
    assert (figures["num_unjudged"], figures["agreement"], figures["false_negative_rate"]) == (2, 1, None)
    assert figures["disagreements"] == []
    reasons = [item.outcome.reason for item in report.all_rows if item.agrees is None]
    assert all("'1 or 0'" in reason for reason in reasons)
    assert "None" in printed(report), "rows without a verdict stand among the disagreements"


def test_the_command_prints_one_json_object_and_the_answer_on_one_line(tmp_path):
    own = rows_file(tmp_path, ("red", 1), ("blue", 0))
    done = CliRunner().invoke(judge_app, ["check", "--set", str(own), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["agreement"] == 1
    assert done.stderr.splitlines()[-1].startswith("Can this judge be trusted? Unclear: ")
    assert CliRunner().invoke(judge_app, ["check", "--set", str(tmp_path / "none")]).exit_code == 1
