"""Judges in a row."""

import pytest

from configs.judges import JudgeConfig, LLMJudgeConfig
from judge.chain import Chain, local_judges, make_judge
from judge.verdict import Failure, JudgeRequest, NoVerdict, Verdict

REQUEST = JudgeRequest(question="?", reference="red", predictions=("red", "unsure", "blue", "crimson"))


class Table:
    """Knows some predictions; the rest it leaves to the next."""

    def __init__(self, name, known):
        self.name, self.known, self.asked = name, known, []

    async def grade(self, request):
        self.asked.append(request.predictions)
        return [
            Verdict(is_correct=self.known[text], judge=self.name, reason="")
            if text in self.known
            else NoVerdict(reason="do not know", failure=Failure.UNDECIDED)
            for text in request.predictions
        ]


async def test_the_next_judge_sees_only_what_the_one_before_left_open_and_order_is_kept():
    rules, llm = Table("rules", {"red": True, "blue": False}), Table("llm", {"crimson": True})
    outcomes = await Chain(judges=[rules, llm]).grade(REQUEST)
    assert llm.asked == [("unsure", "crimson")]
    assert [getattr(outcome, "judge", None) for outcome in outcomes] == ["rules", None, "rules", "llm"]
    assert isinstance(outcomes[1], NoVerdict)


async def test_a_failure_is_not_handed_on():
    class Failing:
        async def grade(self, request):
            return [NoVerdict(reason="down", failure=Failure.UNREACHABLE) for _ in request.predictions]

    last = Table("last", {"red": True})
    outcomes = await Chain(judges=[Failing(), last]).grade(REQUEST)
    assert last.asked == []
    assert {outcome.failure for outcome in outcomes} == {Failure.UNREACHABLE}


async def test_the_config_names_the_judges():
    verdicts = await make_judge(JudgeConfig(metric="relaxed")).grade(
        JudgeRequest(question="What is the value?", reference="10.0", predictions=("10.4", "16"))
    )
    assert [verdict.is_correct for verdict in verdicts] == [True, False]


@pytest.mark.parametrize(
    ("chain", "local", "all_of_them"),
    [
        (("rules",), ["Precheck", "RulesJudge"], ["Precheck", "RulesJudge"]),
        (("rules", "openai"), ["Precheck", "RulesJudge"], ["Precheck", "RulesJudge", "LLMJudge"]),
        (("openai",), ["Precheck"], ["Precheck", "LLMJudge"]),
    ],
)
def test_all_but_the_llm_judges_in_the_process_that_asks(chain, local, all_of_them):
    config = JudgeConfig(chain=chain, llm=LLMJudgeConfig(model="m"))
    for judges, expected in ((local_judges(config), local), (make_judge(config), all_of_them)):
        assert [type(judge).__name__ for judge in judges.judges] == expected
