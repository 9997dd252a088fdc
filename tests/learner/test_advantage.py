import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.advantage import group_advantages, has_signal

REWARDS = st.lists(st.none() | st.floats(-10, 10, allow_nan=False).map(lambda r: round(r, 3)), min_size=2, max_size=16)


def test_advantages_are_the_hand_computed_ones():
    # mean 0.75, population std 0.75
    assert group_advantages((1.5, 0.0, 1.5, 0.0)) == pytest.approx((1.0, -1.0, 1.0, -1.0))


def test_without_the_std_and_against_the_others():
    assert group_advantages((1.5, None, 0.0, 0.0), "mean") == pytest.approx((1.0, None, -0.5, -0.5))
    assert group_advantages((1.5, None, 0.0, 0.0), "leave_one_out") == pytest.approx((1.5, None, -0.75, -0.75))
    assert group_advantages((0.5, 0.5), "leave_one_out") == (0.0, 0.0)


def test_an_unscored_episode_stays_unscored_and_does_not_shift_the_others():
    assert group_advantages((1.5, None, 0.0)) == (1.0, None, -1.0)


def test_equal_rewards_give_zeros():
    assert group_advantages((0.1 + 0.2, 0.3, None)) == (0.0, 0.0, None)


def test_a_group_without_a_verdict_has_no_advantages():
    assert group_advantages((None, None)) == (None, None)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="not finite"):
        group_advantages((1.0, bad))


@given(REWARDS)
def test_scored_advantages_have_mean_0_and_mean_square_1_or_are_all_0(rewards):
    scored = [a for a in group_advantages(rewards) if a is not None]
    assert len(scored) == sum(reward is not None for reward in rewards)
    if any(scored):
        assert math.fsum(scored) / len(scored) == pytest.approx(0, abs=1e-6)
        assert math.fsum(a * a for a in scored) / len(scored) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("rewards", "min_scored", "expected"),
    [
        ((1.5, 0.0), 2, True),
        ((1.5, 1.5), 2, False),
        ((1.5, None, 0.0), 3, False),
        ((None, None), 1, False),
        ((1.5, None), 1, False),
    ],
)
def test_a_group_has_signal_when_enough_rewards_differ(rewards, min_scored, expected):
    assert has_signal(rewards, min_scored) is expected
