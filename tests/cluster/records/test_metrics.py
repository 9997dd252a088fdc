from dataclasses import replace

import pytest

from actors.episode import Status
from actors.views import Crop
from cluster.records.metrics import score_play
from judge.verdict import NoVerdict, Verdict
from tests.fakes import make_episode, make_group, make_turn

RIGHT, WRONG = (Verdict(is_correct=is_correct, judge="x", reason="") for is_correct in (True, False))


def test_shares_by_hand():
    needs = make_group([make_episode(asked=True), make_episode()], needs_full=True)
    easy = make_group([make_episode(), make_episode()], needs_full=False)
    score = score_play([(needs, (RIGHT, WRONG)), (easy, (RIGHT, RIGHT))])
    assert score.accuracy == 0.75
    assert score.ask_share == 0.25
    assert score.ask_share_needed == 0.5
    assert score.ask_share_unneeded == 0.0
    assert score.need_share == 0.5
    assert score.visual_token_share == pytest.approx((80 + 16 * 3) / (4 * 64))


def test_a_missing_verdict_is_neither_right_nor_wrong():
    group = make_group([make_episode(), make_episode()])
    score = score_play([(group, (RIGHT, NoVerdict(reason="late")))])
    assert (score.accuracy, score.num_unscored) == (1.0, 1)


def test_what_is_not_known_is_none():
    score = score_play([(make_group([make_episode()], needs_full=None), (RIGHT,))])
    assert (score.ask_share_needed, score.ask_share_unneeded, score.need_share) == (None, None, None)
    assert score_play([]).accuracy is None


CROP = Crop(left=56, top=0, right=112, bottom=56)


def shown(*views, status=Status.ANSWERED):
    """An episode that was shown these views after the quarter view."""
    episode = make_episode()
    ids = (1, 2)
    turns = list(episode.turns)
    for view in views:
        ids = (*ids, 3, 4, 5)
        tokens = {"full": 64}.get(view, 4)
        turns.append(replace(make_turn("full", prompt=ids), view=view, num_visual_tokens=tokens))
    return replace(episode, turns=tuple(turns), status=status)


def test_the_right_tool_by_hand():
    """Of the four episodes on each sample one showed what is needed and no more."""
    played = [shown(), shown(CROP), shown("full"), shown(CROP, "full")]
    groups = [make_group(played, needed_view=needed) for needed in ("quarter", CROP, "full")]
    score = score_play([(group, (RIGHT,) * 4) for group in groups])
    assert score.right_tool_share_quarter == score.right_tool_share_region == score.right_tool_share_full == 0.25
    assert score.right_tool_share == 0.25
    assert score.visual_token_optimum == pytest.approx((16 + (16 + 4) + (16 + 64)) / (3 * 64))
    assert score.visual_token_share == pytest.approx((16 + 20 + 80 + 84) / (4 * 64))


def test_the_share_of_the_right_tool_is_that_of_the_worst_kind():
    score = score_play(
        [
            (make_group([shown(), shown()], needed_view="quarter"), (RIGHT, RIGHT)),
            (make_group([shown(CROP), shown("full")], needed_view=CROP), (RIGHT, RIGHT)),
        ]
    )
    assert (score.right_tool_share_quarter, score.right_tool_share_region) == (1.0, 0.5)
    assert (score.right_tool_share_full, score.right_tool_share) == (None, 0.5)


def test_an_episode_without_an_answer_took_no_right_tool():
    episodes = [shown(status=Status.MALFORMED), shown("full", status=Status.TRUNCATED)]
    scores = [
        score_play([(make_group([episode], needed_view=needed), (WRONG,))])
        for episode, needed in zip(episodes, ("quarter", "full"), strict=True)
    ]
    assert [score.right_tool_share for score in scores] == [0.0, 0.0]


def test_a_set_that_says_yes_or_no_needs_the_full_or_the_quarter_view():
    groups = [
        make_group([make_episode(asked=asked)], needs_full=needs) for asked, needs in ((True, True), (True, False))
    ]
    score = score_play([(group, (RIGHT,)) for group in groups])
    assert (score.right_tool_share_full, score.right_tool_share_quarter) == (1.0, 0.0)
    assert score.visual_token_optimum == pytest.approx((80 + 16) / 128)


def test_without_a_record_or_without_a_choice_there_is_no_right_tool():
    full_at_once = replace(make_episode(), turns=(make_turn("full"),))
    for group in (make_group([shown()]), make_group([full_at_once], needed_view="full")):
        score = score_play([(group, (RIGHT,))])
        assert (score.right_tool_share, score.visual_token_optimum) == (None, None)
