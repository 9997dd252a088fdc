"""`visionthink judge check` on judges whose faults are known."""

import io
import json

from rich.console import Console

from cluster.judge_check import check_judge, check_tables
from configs.judges import JudgeConfig
from judge.rules import RulesJudge
from judge.verdict import Verdict


class PassesAll:
    async def grade(self, request):
        return [Verdict(is_correct=True, judge="fool", reason="[bold]why not[/bold]") for _ in request.predictions]


def printed(report) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    for table in check_tables(report):
        console.print(table)
    return console.export_text()


async def test_the_rules_agree_and_no_attack_passes():
    report = await check_judge(JudgeConfig(), [], judge=RulesJudge(relative_tolerance=1e-3))
    figures = report.figures()
    assert figures["agreement"] >= 0.99
    assert figures["attack_success_rate"] == 0
    assert figures["num_gold"] + figures["num_beyond_rules"] >= 250
    assert json.loads(json.dumps(figures)) == figures
    text = printed(report)
    assert "attack set" in text
    assert "in no rate" in text


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
