from dataclasses import replace

import pytest

from actors.episode import Episode, EpisodeId, Finish, Progress, Show, Status, VersionSpan, next_move
from actors.replies import Answer, Malformed
from actors.tools.registry import RESIZE_ALONE, ToolCall
from actors.tools.tool import Scene
from tests.fakes import make_episode, make_turn

ANSWER, BROKEN = Answer(text="red"), Malformed(reason="x")
CALL = ToolCall(name="resize_image", arguments={"action": "resize"})
SCENE = Scene(full_size=(224, 224), token_side=28, shown=("quarter",))
OFFER, NONE = Progress(toolbox=RESIZE_ALONE, scene=SCENE), Progress(toolbox=None, scene=SCENE)
SHOW = Show(view="full", tool="resize_image")


@pytest.mark.parametrize(
    ("reply", "finish_reason", "progress", "expected"),
    [
        (ANSWER, "stop", OFFER, Finish(status=Status.ANSWERED, answer="red", is_well_formed=True)),
        (ANSWER, "stop", NONE, Finish(status=Status.ANSWERED, answer="red", is_well_formed=True)),
        (CALL, "stop", OFFER, SHOW),
        (CALL, "stop", NONE, Finish(status=Status.MALFORMED, answer=None, is_well_formed=False)),
        (CALL, "stop", OFFER.after(SHOW), Finish(status=Status.MALFORMED, answer=None, is_well_formed=False)),
        (BROKEN, "stop", OFFER, Finish(status=Status.MALFORMED, answer=None, is_well_formed=False)),
        (BROKEN, "stop", NONE, Finish(status=Status.MALFORMED, answer=None, is_well_formed=False)),
        (ANSWER, "length", OFFER, Finish(status=Status.TRUNCATED, answer=None, is_well_formed=False)),
        (CALL, "length", OFFER, Finish(status=Status.TRUNCATED, answer=None, is_well_formed=False)),
    ],
)
def test_the_state_machine(reply, finish_reason, progress, expected):
    assert next_move(reply, finish_reason, progress) == expected


def test_figures_of_an_episode_come_from_its_turns():
    direct, asked = make_episode(), make_episode(asked=True)
    assert (direct.asked, direct.num_visual_tokens, direct.num_generated_tokens) == (False, 16, 2)
    assert (asked.asked, asked.num_visual_tokens, asked.num_generated_tokens) == (True, 80, 4)
    assert asked.token_ids == (1, 2, 3, 4, 5, 3, 4)


def in_spans(*spans):
    """A direct episode of two tokens, sampled in these spans (version, tokens)."""
    spans = tuple(VersionSpan(version=version, num_tokens=num_tokens) for version, num_tokens in spans)
    return replace(make_episode(), turns=(replace(make_turn(), version_spans=spans),))


def test_an_episode_is_as_old_as_its_oldest_token():
    first, second = in_spans((3, 1), (5, 1)), make_episode(asked=True, version=7)
    both = replace(first, turns=(first.turns[0], second.turns[1]))
    assert (first.oldest_version, first.newest_version) == (3, 5)
    assert (both.oldest_version, both.newest_version) == (3, 7)


@pytest.mark.parametrize("spans", [(), [(3, 1)], [(3, 1), (5, 2)]])
def test_versions_that_do_not_cover_each_token_once_are_a_bug(spans):
    with pytest.raises(AssertionError):
        in_spans(*spans)


def test_a_second_turn_that_retells_the_first_is_a_bug():
    with pytest.raises(AssertionError, match="starts with"):
        Episode(
            id=EpisodeId(run="r", step=0, sample="s", index=0, attempt=0),
            turns=(make_turn(), make_turn("full", prompt=(1, 2, 9, 9, 5))),
            status=Status.ANSWERED,
            answer="red",
            is_well_formed=True,
        )
