"""The rules as a judge: what they are asked, what they answer, and how they do on the shipped sets."""

import pytest

from actors.errors import JudgeError
from configs.judges import JudgeConfig, LLMJudgeConfig
from judge.rules.judge import RulesJudge, certain_verdict
from judge.trust.check import check_rows, measure
from judge.trust.goldset import ATTACKS_FILE, GOLD_FILE, read_gold
from judge.verdict import Failure, JudgeRequest, NoVerdict


async def test_where_they_decide_with_certainty_they_agree_with_people_on_every_row():
    rows = read_gold(GOLD_FILE)
    trust = measure(await check_rows(RulesJudge(is_last=False), rows, timeout_s=60))
    assert trust.agreement.share == 1.0
    assert trust.agreement.num_cases > 150


async def test_no_attack_is_certainly_right_and_none_is_by_guess():
    rows = read_gold(ATTACKS_FILE)
    for judge in (RulesJudge(is_last=False), RulesJudge(), RulesJudge(metric="relaxed")):
        assert measure(await check_rows(judge, rows, timeout_s=60)).false_positives.num_hits == 0


async def test_outcomes_keep_the_order_of_the_predictions():
    request = JudgeRequest(question="How many?", reference="5", predictions=("5", "6", "five", "5.0"))
    outcomes = await RulesJudge(is_last=False).grade(request)
    assert [getattr(outcome, "is_correct", None) for outcome in outcomes] == [True, False, None, True]


async def test_an_empty_reference_is_refused_once_and_for_all():
    with pytest.raises(JudgeError, match="empty"):
        certain_verdict("?", "  ", "red")
    (outcome,) = await RulesJudge().grade(JudgeRequest(question="?", reference=" ", predictions=("red",)))
    assert isinstance(outcome, NoVerdict)
    assert outcome.failure is Failure.REJECTED


def test_only_the_last_of_a_chain_guesses():
    llm = LLMJudgeConfig(model="m")
    assert RulesJudge.from_config(JudgeConfig(metric="relaxed")) == RulesJudge(metric="relaxed", is_last=True)
    assert not RulesJudge.from_config(JudgeConfig(chain=("rules", "openai"), llm=llm)).is_last


@pytest.mark.parametrize("text", ["red", "red, and then " * 500, "9^{9^{9^9}}", "1" * 5000])
def test_the_same_text_is_right_at_any_length(text):
    finding = certain_verdict("?", text, f" {text}\n")
    assert finding is not None
    assert finding.is_correct
