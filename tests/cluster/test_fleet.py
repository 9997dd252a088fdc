"""What is judged of a group, and which outcome belongs to which of its episodes."""

from dataclasses import replace

import pytest

from actors.episode import SampleRef, Status
from cluster.fleet import Fleet, spread_outcomes
from judge.verdict import JudgeRequest, NoVerdict, Verdict
from tests.fakes import make_episode, make_group

RIGHT = Verdict(is_correct=True, judge="rules", reason="same text")
UNKNOWN = NoVerdict(reason="timed out")
EPISODES = (
    make_episode(answer="red", index=0),
    replace(make_episode(answer=None, index=1), status=Status.TRUNCATED),
    make_episode(answer="", index=2),
    replace(make_episode(answer=None, index=3), status=Status.MALFORMED),
)


class Remembering:
    def __init__(self, *outcomes):
        self.outcomes, self.asked = outcomes, []

    async def grade(self, request):
        self.asked.append(request)
        return self.outcomes


def group(episodes):
    played = make_group(episodes, ref=SampleRef(dataset="d", row=0, uid="0-0"))
    return replace(played, question="Which colour?", answer="red")


async def test_answers_are_judged_and_nothing_else_and_an_episode_without_one_is_wrong():
    judges = Remembering(RIGHT, UNKNOWN)
    outcomes = await Fleet(rollouts=None, judges=judges).judge(group(EPISODES))
    assert judges.asked == [JudgeRequest(question="Which colour?", reference="red", predictions=("red", ""))]
    assert outcomes == (
        RIGHT,
        Verdict(is_correct=False, judge="format", reason="no answer: truncated"),
        UNKNOWN,
        Verdict(is_correct=False, judge="format", reason="no answer: malformed"),
    )


async def test_a_group_without_an_answer_asks_nobody():
    judges = Remembering()
    outcomes = await Fleet(rollouts=None, judges=judges).judge(group(EPISODES[1::2]))
    assert judges.asked == []
    assert [outcome.is_correct for outcome in outcomes] == [False, False]


def test_spreading_refuses_a_wrong_number_of_outcomes():
    with pytest.raises(AssertionError):
        spread_outcomes(EPISODES, [RIGHT])
