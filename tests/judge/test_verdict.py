import pytest

from actors.episode import Episode, EpisodeId, PlayedGroup, SampleRef, Status, Turn
from actors.errors import JudgeError
from judge.verdict import JudgeRequest, NoVerdict, Verdict, check_outcomes, judge_request, spread_outcomes

RIGHT = Verdict(is_correct=True, judge="rules", reason="same text")
UNKNOWN = NoVerdict(reason="timed out")


def episode(index: int, answer: str | None, status: Status = Status.ANSWERED) -> Episode:
    turn = Turn(
        prompt_ids=(1,),
        completion_ids=(2,),
        logprobs=(-0.5,),
        policy_version=0,
        finish_reason="stop",
        text="",
        view="quarter",
        num_visual_tokens=4,
    )
    return Episode(
        id=EpisodeId(run="r", step=0, sample="s", index=index, attempt=0),
        turns=(turn,),
        status=status,
        answer=answer,
        is_well_formed=answer is not None,
    )


EPISODES = (episode(0, "red"), episode(1, None, Status.TRUNCATED), episode(2, ""), episode(3, None, Status.MALFORMED))


def test_a_request_holds_the_answers_given_and_nothing_else():
    group = PlayedGroup(
        ref=SampleRef(dataset="d", row=0, uid="0-0"),
        question="Which colour?",
        answer="red",
        needs_full=False,
        episodes=EPISODES,
        full_size=(56, 56),
        num_full_tokens=4,
        image_sha256="",
    )
    assert judge_request(group) == JudgeRequest(question="Which colour?", reference="red", predictions=("red", ""))


def test_outcomes_are_spread_over_all_episodes_and_no_answer_is_wrong():
    outcomes = spread_outcomes(EPISODES, [RIGHT, UNKNOWN])
    assert outcomes[0] == RIGHT
    assert outcomes[2] == UNKNOWN
    assert outcomes[1] == Verdict(is_correct=False, judge="format", reason="no answer: truncated")
    assert outcomes[3] == Verdict(is_correct=False, judge="format", reason="no answer: malformed")


def test_spreading_refuses_a_wrong_number_of_outcomes():
    with pytest.raises(AssertionError):
        spread_outcomes(EPISODES, [RIGHT])


@pytest.mark.parametrize(
    "reply", [None, "1", 1, {}, [], [RIGHT], [RIGHT, UNKNOWN, RIGHT], [RIGHT, 1], [RIGHT, True], "11"]
)
def test_a_reply_that_is_not_one_outcome_per_prediction_is_refused(reply):
    with pytest.raises(JudgeError, match="judge replied with"):
        check_outcomes(reply, 2)


def test_a_good_reply_is_taken_as_it_is():
    assert check_outcomes([RIGHT, UNKNOWN], 2) == (RIGHT, UNKNOWN)
