import pytest

from cluster.records.metrics import score_play
from judge.verdict import NoVerdict, Verdict
from tests.fakes import make_episode, make_group

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
