"""`visionthink judge check` on judges whose faults are known."""

import io
import json

import pytest
from rich.console import Console

from actors.errors import JudgeError
from cluster.judging.check import check_judge, check_tables
from configs.judges import JudgeConfig, LLMJudgeConfig
from judge.rules.judge import RulesJudge
from judge.verdict import Verdict
from tests.judge import openai_server as scripted
from tests.judge.openai_server import OpenAIServer


class PassesAll:
    async def grade(self, request):
        return [Verdict(is_correct=True, judge="fool", reason="[bold]why not[/bold]") for _ in request.predictions]


def printed(report) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    for table in check_tables(report):
        console.print(table)
    return console.export_text()


async def test_the_rules_agree_and_no_attack_passes():
    report = await check_judge(JudgeConfig(), [], judge=RulesJudge())
    figures = report.figures()
    assert figures["agreement"] >= 0.99
    assert figures["attack_success_rate"] == 0
    assert figures["num_gold"] + figures["num_beyond_rules"] >= 250
    assert json.loads(json.dumps(figures)) == figures
    text = printed(report)
    assert "attack set" in text
    assert "in no rate" in text


async def test_rules_alone_need_no_key(tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"question": "?", "reference": "red", "prediction": "red", "kind": "k", "verdict": 1}))
    with_key = LLMJudgeConfig(model="m", api_key_env="NO_SUCH_KEY_IS_SET")
    assert (await check_judge(JudgeConfig(llm=with_key), [own])).figures()["agreement"] == 1
    with pytest.raises(JudgeError, match="NO_SUCH_KEY_IS_SET"):
        await check_judge(JudgeConfig(chain=("rules", "openai"), llm=with_key), [own])


async def test_a_judge_that_passes_everything_is_found_out():
    figures = (await check_judge(JudgeConfig(), [], judge=PassesAll())).figures()
    assert figures["attack_success_rate"] == 1
    assert figures["false_positive_rate"] == 1
    assert figures["false_negative_rate"] == 0
    assert 0.4 < figures["agreement"] < 0.6


async def test_a_set_of_ones_own_replaces_the_shipped_ones_and_text_is_no_markup(tmp_path):
    own = tmp_path / "own.jsonl"
    row = {"question": "?", "reference": "red", "prediction": "[red]blue", "kind": "k"}
    own.write_text("".join(json.dumps({**row, "verdict": verdict}) + "\n" for verdict in (1, 0)))
    report = await check_judge(JudgeConfig(), [own], judge=PassesAll())
    figures = report.figures()
    assert (figures["num_gold"], figures["num_attacks"], figures["attack_success_rate"]) == (2, 0, None)
    assert figures["disagreements"][0]["prediction"] == "[red]blue"
    text = printed(report)
    assert "[red]blue" in text
    assert "[bold]why not" in text
    assert "attack set" not in text


def rows_file(folder):
    rows = [
        {
            "question": "?",
            "reference": "red",
            "prediction": prediction,
            "verdict": int(prediction == "red"),
            "kind": "k",
        }
        for prediction in ("red", "blue", ":")
    ]
    file = folder / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def llm_config(server, **settings):
    llm = LLMJudgeConfig(model="m", base_url=server.url, prompt_price=2.5, reply_price=10.0)
    return JudgeConfig(chain=("openai",), llm=llm, **settings)


async def test_an_llm_is_asked_through_the_pool_and_its_calls_tokens_and_cost_are_shown(tmp_path):
    with OpenAIServer(scripted.after(1, scripted.says("Score: 1"))) as server:
        report = await check_judge(llm_config(server), [rows_file(tmp_path)])
    figures = report.figures()
    assert (figures["agreement"], figures["num_unjudged"], figures["num_gold"]) == (1, 0, 3)
    # Two rows reach the LLM, one of them twice.
    assert figures["num_calls"] == server.num_calls == 3
    assert (figures["prompt_tokens"], figures["reply_tokens"]) == (300, 15)
    assert figures["cost_usd"] == pytest.approx(300 * 2.5e-6 + 15 * 10e-6)
    assert "0.0009 USD" in printed(report)


async def test_a_row_without_a_verdict_is_counted_and_never_wrong(tmp_path):
    with OpenAIServer(lambda call: scripted.says("1 or 0")(call)) as server:
        report = await check_judge(llm_config(server, max_tries=2), [rows_file(tmp_path)])
    figures = report.figures()
    assert (figures["num_unjudged"], figures["agreement"], figures["false_negative_rate"]) == (2, 1, None)
    assert figures["disagreements"] == []
    assert figures["num_calls"] == server.num_calls == 4
    text = printed(report)
    assert "no verdict (in no rate)" in text
    assert "not a verdict: '1 or 0'" in text


async def test_a_missing_key_stops_the_check_before_any_call(tmp_path):
    config = JudgeConfig(chain=("openai",), llm=LLMJudgeConfig(model="m", api_key_file=str(tmp_path / "none")))
    with pytest.raises(JudgeError, match="api_key_file"):
        await check_judge(config, [])
