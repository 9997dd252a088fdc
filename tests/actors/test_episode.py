import pytest

from actors.episode import Episode, EpisodeId, Finish, ShowFull, Status, next_move
from actors.prompts import Answer, Malformed, ToolCall
from tests.fakes import make_episode, make_turn

ANSWER, CALL, BROKEN = Answer(text="red"), ToolCall(), Malformed(reason="x")


@pytest.mark.parametrize(
    ("reply", "finish_reason", "offers_tool", "expected"),
    [
        (ANSWER, "stop", True, Finish(status=Status.ANSWERED, answer="red", is_well_formed=True)),
        (ANSWER, "stop", False, Finish(status=Status.ANSWERED, answer="red", is_well_formed=True)),
        (CALL, "stop", True, ShowFull()),
        (CALL, "stop", False, Finish(status=Status.MALFORMED, answer=None, is_well_formed=False)),
        (BROKEN, "stop", True, Finish(status=Status.MALFORMED, answer=None, is_well_formed=False)),
        (BROKEN, "stop", False, Finish(status=Status.MALFORMED, answer=None, is_well_formed=False)),
        (ANSWER, "length", True, Finish(status=Status.TRUNCATED, answer=None, is_well_formed=False)),
        (CALL, "length", True, Finish(status=Status.TRUNCATED, answer=None, is_well_formed=False)),
    ],
)
def test_the_state_machine(reply, finish_reason, offers_tool, expected):
    assert next_move(reply, finish_reason, offers_tool=offers_tool) == expected


def test_figures_of_an_episode_come_from_its_turns():
    direct, asked = make_episode(), make_episode(asked=True)
    assert (direct.asked, direct.num_visual_tokens, direct.num_generated_tokens) == (False, 16, 2)
    assert (asked.asked, asked.num_visual_tokens, asked.num_generated_tokens) == (True, 80, 4)
    assert asked.token_ids == (1, 2, 3, 4, 5, 3, 4)


def test_a_second_turn_that_retells_the_first_is_a_bug():
    with pytest.raises(AssertionError, match="starts with"):
        Episode(
            id=EpisodeId(run="r", step=0, sample="s", index=0, attempt=0),
            turns=(make_turn(), make_turn("full", prompt=(1, 2, 9, 9, 5))),
            status=Status.ANSWERED,
            answer="red",
            is_well_formed=True,
        )
