"""Rewards against tables worked out by hand from Eq. 4 and 5."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.episode import Episode, EpisodeId, Status, Turn, VersionSpan
from actors.views import Crop
from configs.rewards import RewardConfig
from judge.reward import direct_share, group_rewards
from judge.verdict import NoVerdict, Outcome, Verdict

RIGHT = Verdict(is_correct=True, judge="rules", reason="same text")
WRONG = Verdict(is_correct=False, judge="rules", reason="different text")
UNKNOWN = NoVerdict(reason="no judge could be reached")


def play(
    kind: str, *, is_well_formed: bool = True, status: Status = Status.ANSWERED, view: str = "quarter", index: int = 0
) -> Episode:
    """An episode that answers directly (`direct`) or after the full image (`asked`)."""
    first = Turn(
        prompt_ids=(1,),
        completion_ids=(2,),
        logprobs=(-0.5,),
        version_spans=(VersionSpan(version=0, num_tokens=1),),
        finish_reason="stop",
        text="",
        view=view,  # type: ignore[arg-type]
        num_visual_tokens=4,
    )
    second = Turn(
        prompt_ids=(1, 2, 3),
        completion_ids=(4,),
        logprobs=(-0.5,),
        version_spans=(VersionSpan(version=0, num_tokens=1),),
        finish_reason="stop",
        text="",
        view="full",
        num_visual_tokens=16,
    )
    return Episode(
        id=EpisodeId(run="r", step=0, sample="s", index=index, attempt=0),
        turns=(first, second) if kind == "asked" else (first,),
        status=status,
        answer="red" if status is Status.ANSWERED else None,
        is_well_formed=is_well_formed,
    )


def group(*rows: tuple[str, Outcome]) -> tuple[list[Episode], list[Outcome]]:
    return [play(kind, index=index) for index, (kind, _) in enumerate(rows)], [outcome for _, outcome in rows]


def penalties(rows: list[tuple[str, Outcome]], **settings) -> list[float | None]:
    rewards = group_rewards(*group(*rows), RewardConfig(**settings))
    return [None if reward is None else reward.penalty for reward in rewards]


MOSTLY_DIRECT = [("direct", RIGHT), ("direct", WRONG), ("asked", RIGHT), ("asked", WRONG)]  # r = 1/2
MOSTLY_ASKED = [("direct", RIGHT), ("direct", WRONG), *[("asked", RIGHT)] * 5, ("asked", WRONG)]  # r = 1/6
NEVER_RIGHT = [("direct", WRONG), ("asked", WRONG)]
NEVER_DIRECT = [("direct", WRONG), ("asked", RIGHT), ("asked", RIGHT)]  # r = 0


@pytest.mark.parametrize(
    ("rows", "settings", "expected"),
    [
        (MOSTLY_DIRECT, {}, [0, 0, 0.1, 0]),
        (MOSTLY_DIRECT, {"applies_to": "all"}, [0, 0, 0.1, 0.1]),
        (MOSTLY_ASKED, {}, [0.1, 0, 0, 0, 0, 0, 0, 0]),
        (MOSTLY_ASKED, {"applies_to": "all"}, [0.1, 0.1, 0, 0, 0, 0, 0, 0]),
        (NEVER_DIRECT, {}, [0, 0, 0]),
        (NEVER_DIRECT, {"applies_to": "all"}, [0.1, 0, 0]),
        (NEVER_RIGHT, {}, [0, 0]),
        (NEVER_RIGHT, {"applies_to": "all"}, [0, 0]),
        (MOSTLY_DIRECT, {"penalty": "always"}, [0, 0, 0.1, 0]),
        (MOSTLY_ASKED, {"penalty": "always"}, [0, 0, 0.1, 0.1, 0.1, 0.1, 0.1, 0]),
        (MOSTLY_ASKED, {"penalty": "always", "applies_to": "all"}, [0, 0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]),
        (MOSTLY_DIRECT, {"penalty": "never"}, [0, 0, 0, 0]),
        (MOSTLY_ASKED, {"penalty": "never", "applies_to": "all"}, [0] * 8),
        (MOSTLY_DIRECT, {"theta": 0.5}, [0, 0, 0.1, 0]),
        (MOSTLY_DIRECT, {"theta": 0.51}, [0.1, 0, 0, 0]),
        (MOSTLY_DIRECT, {"theta": 0.0}, [0, 0, 0.1, 0]),
        (NEVER_DIRECT, {"theta": 0.0}, [0, 0.1, 0.1]),
        (MOSTLY_DIRECT, {"penalty_weight": 0.3}, [0, 0, 0.3, 0]),
    ],
)
def test_penalty_table(rows, settings, expected):
    assert penalties(rows, **settings) == expected


@pytest.mark.parametrize(("num_direct", "num_asked"), [(1, 4), (2, 8), (3, 12), (5, 20)])
def test_a_share_equal_to_theta_penalises_asking(num_direct, num_asked):
    rows = [("direct", RIGHT)] * num_direct + [("asked", RIGHT)] * num_asked
    assert penalties(rows) == [0.0] * num_direct + [0.1] * num_asked


def test_total_is_accuracy_plus_format_minus_penalty():
    episodes = [
        play("direct"),
        play("direct", is_well_formed=False),
        play("asked"),
        play("asked", is_well_formed=False),
    ]
    rewards = group_rewards(episodes, [RIGHT, RIGHT, RIGHT, WRONG], RewardConfig())
    assert [(r.total, r.accuracy, r.format, r.penalty, r.is_correct) for r in rewards if r is not None] == [
        (1.5, 1.0, 0.5, 0.0, True),
        (1.0, 1.0, 0.0, 0.0, True),
        (1.4, 1.0, 0.5, 0.1, True),
        (0.0, 0.0, 0.0, 0.0, False),
    ]


def test_a_missing_verdict_gives_no_reward_and_does_not_count_in_the_share():
    rows = [("direct", UNKNOWN), ("direct", RIGHT), ("asked", RIGHT), ("asked", UNKNOWN)]
    assert penalties(rows) == [None, 0.0, 0.1, None]
    assert direct_share(*group(*rows)) == 0.5
    assert penalties([("direct", UNKNOWN), ("asked", RIGHT)]) == [None, 0.0], "r is 0 without the unscored answer"
    assert penalties([("direct", UNKNOWN), ("asked", UNKNOWN)]) == [None, None]


@pytest.mark.parametrize("status", [Status.MALFORMED, Status.TRUNCATED])
def test_an_episode_without_an_answer_is_wrong_whatever_its_outcome(status):
    episodes = [play("direct", status=status, is_well_formed=False), play("asked")]
    for outcome in (RIGHT, WRONG, UNKNOWN):
        rewards = group_rewards(episodes, [outcome, RIGHT], RewardConfig(applies_to="all"))
        assert rewards[0] is not None
        assert (rewards[0].total, rewards[0].is_correct) == (0.0, False)
        assert direct_share(episodes, [outcome, RIGHT]) == 0.0


def test_without_the_tool_there_is_no_penalty():
    episodes = [play("direct", view="full"), play("direct", view="full")]
    for penalty, theta in itertools.product(("threshold", "always"), (0.0, 1.0)):
        rewards = group_rewards(episodes, [RIGHT, WRONG], RewardConfig(penalty=penalty, theta=theta, applies_to="all"))
        assert [reward.total for reward in rewards if reward is not None] == [1.5, 0.5]


def test_the_share_is_unknown_when_nobody_is_right():
    assert direct_share(*group(*NEVER_RIGHT)) is None
    assert direct_share(*group(("direct", UNKNOWN))) is None


def test_outcomes_of_another_group_are_refused():
    with pytest.raises(ValueError, match="argument 2 is longer"):
        group_rewards([play("direct")], [RIGHT, WRONG], RewardConfig())


@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["direct", "asked"]), st.sampled_from([RIGHT, WRONG, UNKNOWN])),
        min_size=1,
        max_size=16,
    ),
    accuracy=st.sampled_from([0.0, 0.1, 0.5, 0.7, 1.0, 1e-9]),
    format_=st.sampled_from([0.0, 0.5, 0.3]),
    penalty_weight=st.sampled_from([0.0, 0.1, 0.7]),
    penalty=st.sampled_from(["threshold", "always", "never"]),
    theta=st.floats(0, 1),
    applies_to=st.sampled_from(["correct", "all"]),
)
def test_correctness_survives_any_weights(rows, accuracy, format_, penalty_weight, penalty, theta, applies_to):
    config = RewardConfig(
        accuracy_weight=accuracy,
        format_weight=format_,
        penalty=penalty,
        penalty_weight=penalty_weight,
        theta=theta,
        applies_to=applies_to,
    )
    rewards = group_rewards(*group(*rows), config)
    payers = set()
    for (kind, outcome), reward in zip(rows, rewards, strict=True):
        if isinstance(outcome, NoVerdict):
            assert reward is None
            continue
        assert reward is not None
        assert reward.is_correct is outcome.is_correct
        assert reward.total == reward.accuracy + reward.format - reward.penalty
        if reward.penalty:
            payers.add(kind)
            assert outcome.is_correct or applies_to == "all"
    assert len(payers) <= 1, "a group pays for asking or for answering directly, never for both"


def turn_of(view, tokens: int, prompt: tuple[int, ...]) -> Turn:
    return Turn(
        prompt_ids=prompt,
        completion_ids=(4,),
        logprobs=(-0.5,),
        version_spans=(VersionSpan(version=0, num_tokens=1),),
        finish_reason="stop",
        text="",
        view=view,
        num_visual_tokens=tokens,
    )


def crop_of(tokens: int) -> Crop:
    return Crop(left=0, top=0, right=28 * tokens, bottom=28)


def tooled(*tokens: int, index: int = 0) -> Episode:
    """An episode about a picture of 64 visual tokens: after the quarter view, a view per number; 64 is the full one."""
    turns = [turn_of("quarter", 16, (1,))]
    for number in tokens:
        view = "full" if number == 64 else crop_of(number) if number else None
        turns.append(turn_of(view, number, (*turns[-1].prompt_ids, 4, 1)))
    return Episode(
        id=EpisodeId(run="r", step=0, sample="s", index=index, attempt=0),
        turns=tuple(turns),
        status=Status.ANSWERED,
        answer="red",
        is_well_formed=True,
    )


FREE = {"penalty": "never", "format_weight": 0.0}


@pytest.mark.parametrize(
    ("rows", "applies_to", "expected"),
    [
        # Areas 4, 4 and 16 of 64: mean 8. 16 / 8 - 1 = 1.
        ([((4,), RIGHT), ((4,), RIGHT), ((16,), RIGHT)], "correct", [0, 0, 0.2]),
        # Mean 3: 4 / 3 - 1 = 1 / 3.
        ([((2,), RIGHT), ((4,), RIGHT)], "correct", [0, 0.2 / 3]),
        # Means 2.5 (of 1, 1, 1 and 7): 7 / 2.5 - 1 = 1.8, cut at 1.
        ([((1,), RIGHT)] * 3 + [((7,), RIGHT)], "correct", [0, 0, 0, 0.2]),
        # Wrong answers neither pay nor count in the mean, which is 3 again.
        ([((2,), RIGHT), ((4,), RIGHT), ((32,), WRONG)], "correct", [0, 0.2 / 3, 0]),
        # With them the mean is 38 / 3: 32 * 3 / 38 - 1 = 58 / 38, cut at 1.
        ([((2,), RIGHT), ((4,), RIGHT), ((32,), WRONG)], "all", [0, 0, 0.2]),
        # Two crops of 2 have the area of one of 4. The full view is no crop, nor is a refused call.
        ([((2,), RIGHT), ((2, 0, 2), RIGHT), ((64,), RIGHT), ((), RIGHT)], "correct", [0, 0.2 / 3, 0, 0]),
        ([((2,), RIGHT), ((4,), UNKNOWN)], "correct", [0, None]),
        ([((64,), RIGHT), ((), RIGHT)], "correct", [0, 0]),
    ],
)
def test_the_area_penalty_is_relative_to_the_groups_mean(rows, applies_to, expected):
    """AdaptVision: 0.2 * clip(area / mean area of the right answers after a crop - 1, 0, 1)."""
    episodes = [tooled(*tokens, index=index) for index, (tokens, _) in enumerate(rows)]
    config = RewardConfig(area_weight=0.2, applies_to=applies_to, **FREE)
    rewards = group_rewards(episodes, [outcome for _, outcome in rows], config)
    assert [reward and reward.area for reward in rewards] == pytest.approx(expected)
    for reward, (_, outcome) in zip(rewards, rows, strict=True):
        if reward is not None:
            assert reward.total == pytest.approx((outcome is RIGHT) - reward.area)


@pytest.mark.parametrize(
    ("tokens", "outcome", "expected"),
    [
        ((), RIGHT, 0.0),  # 16 / 64 is the budget
        ((4,), RIGHT, 0.4 * 4 / 64),  # 20 / 64
        ((64,), RIGHT, 0.4),  # 80 / 64
        ((4, 64), RIGHT, 0.4 * 68 / 64),
        ((64,), WRONG, 0.0),
    ],
)
def test_tokens_above_the_budget_cost_in_proportion(tokens, outcome, expected):
    config = RewardConfig(budget_weight=0.4, token_budget=0.25, **FREE)
    (reward,) = group_rewards([tooled(*tokens)], [outcome], config)
    assert reward is not None
    assert (reward.budget, reward.penalty) == pytest.approx((expected, expected))
    assert reward.total == pytest.approx((outcome is RIGHT) - expected)


def test_a_right_answer_after_a_crop_earns_the_box():
    rows = [((4,), RIGHT), ((4,), WRONG), ((64,), RIGHT), ((), RIGHT), ((4,), UNKNOWN), ((64, 4), RIGHT)]
    episodes = [tooled(*tokens, index=index) for index, (tokens, _) in enumerate(rows)]
    rewards = group_rewards(episodes, [outcome for _, outcome in rows], RewardConfig(box_weight=0.1, **FREE))
    assert [reward and reward.total for reward in rewards] == pytest.approx([1.1, 0, 1, 1, None, 1.1])
    assert [reward and reward.box for reward in rewards] == [0.1, 0, 0, 0, None, 0.1]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (MOSTLY_DIRECT, [0, 0, 0.1, 0]),
        (MOSTLY_ASKED, [0.1, 0, 0.1, 0.1, 0.1, 0.1, 0.1, 0]),
        (NEVER_DIRECT, [0, 0.1, 0.1]),
        (NEVER_RIGHT, [0, 0]),
    ],
)
def test_adaptvisions_control_charges_calls_always_and_direct_answers_below_theta(rows, expected):
    assert penalties(rows, penalty="calls_and_threshold") == expected


def test_a_group_with_all_parts_of_adaptvision():
    """Two right crops of 2 and 4 tokens, a right direct answer and a wrong one after the full view; r = 1 / 3."""
    episodes = [tooled(2), tooled(4, index=1), tooled(index=2), tooled(64, index=3)]
    config = RewardConfig(penalty="calls_and_threshold", box_weight=0.1, area_weight=0.2)
    rewards = group_rewards(episodes, [RIGHT, RIGHT, RIGHT, WRONG], config)
    assert [reward and reward.total for reward in rewards] == pytest.approx(
        [1 + 0.5 + 0.1 - 0.1, 1 + 0.5 + 0.1 - 0.1 - 0.2 / 3, 1 + 0.5, 0.5]
    )


def test_without_a_choice_no_tokens_are_charged():
    config = RewardConfig(budget_weight=1.0, token_budget=0.0, area_weight=1.0, **FREE)
    (reward,) = group_rewards([play("direct", view="full")], [RIGHT], config)
    assert reward is not None
    assert reward.total == 1.0


@pytest.mark.parametrize("name", ["box_weight", "area_weight", "budget_weight", "token_budget"])
def test_negative_weights_are_refused(name):
    with pytest.raises(ValueError, match=rf"reward\.{name}=-1 is invalid: must be at least 0"):
        RewardConfig(**{name: -1})
