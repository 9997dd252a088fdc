from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.views import Crop
from cluster.heldout import HeldoutPlay, paired_plays
from cluster.records.episodes import rows_of_evaluation, write_episodes
from cluster.records.tool_metrics import Drift, PairedPlay, drift, tool_effect, tool_figures
from judge.verdict import NoVerdict, Verdict
from tests.fakes import make_episode, make_group, make_turn

RIGHT, WRONG = (Verdict(is_correct=is_correct, judge="x", reason="") for is_correct in (True, False))
UNKNOWN = NoVerdict(reason="late")
CROP = Crop(left=0, top=0, right=56, bottom=56)


def called(*tools):
    """An episode of these calls: `resize_image` shows the full view, others a crop of 4 tokens; None is refused."""
    turns = [make_turn()]
    for tool in tools:
        before = turns[-1]
        turn = make_turn("full", prompt=(*before.prompt_ids, *before.completion_ids, 5))
        if tool is None:
            turn = replace(turn, view=None, num_visual_tokens=0)
        elif tool != "resize_image":
            turn = replace(turn, view=CROP, num_visual_tokens=4)
        turns.append(replace(turn, tool=tool))
    return replace(make_episode(), turns=tuple(turns))


def test_figures_of_calls_by_hand():
    episodes = [called(), called("resize_image"), called("request_local_region", None, "resize_image"), called(None)]
    assert tool_figures(episodes) == {
        "policy/calls_per_episode": 3 / 4,
        "policy/refused_per_episode": 2 / 4,
        "policy/tokens_per_call": (64 + 4 + 64) / 3,
        "policy/tool_share/request_local_region": 1 / 3,
        "policy/tool_share/resize_image": 2 / 3,
    }


def test_figures_without_calls_have_no_mean_over_them():
    assert tool_figures([called()]) == {"policy/calls_per_episode": 0.0, "policy/refused_per_episode": 0.0}
    assert tool_figures([]) == {}


def paired(with_tools, without, asked, times):
    return [PairedPlay(is_correct=with_tools, asked=asked, is_correct_without=without)] * times


def test_the_effect_of_tools_by_hand():
    """Of 20: 9 right both ways, 4 only after a call, 1 only with the prompt; 2 and 1 lost; 3 wrong both ways."""
    plays = [
        *paired(True, True, True, 4),
        *paired(True, True, False, 5),
        *paired(True, False, True, 4),
        *paired(True, False, False, 1),
        *paired(False, True, True, 2),
        *paired(False, True, False, 1),
        *paired(False, False, True, 3),
    ]
    effect = tool_effect(plays)
    assert effect is not None
    assert (effect.num_samples, effect.intrinsic_accuracy) == (20, 12 / 20)
    assert effect.figures() == {
        "tool_gain": pytest.approx(2 / 20),
        "tool_gain_by_call": 4 / 20,
        "tool_gain_by_prompt": 1 / 20,
        "tool_harm_by_call": 2 / 20,
        "tool_harm_by_prompt": 1 / 20,
    }
    assert tool_effect([]) is None


@given(st.lists(st.builds(PairedPlay, is_correct=st.booleans(), asked=st.booleans(), is_correct_without=st.booleans())))
def test_the_gain_is_the_difference_of_the_accuracies(plays):
    effect = tool_effect(plays)
    if effect is not None:
        accuracy = sum(play.is_correct for play in plays) / len(plays)
        assert effect.tool_gain == pytest.approx(accuracy - effect.intrinsic_accuracy)


def test_only_samples_judged_with_and_without_tools_are_compared():
    def play(kind, uid, episode, outcome):
        group = make_group([episode])
        group = replace(group, ref=replace(group.ref, uid=uid))
        return HeldoutPlay(kind=kind, played=group, outcomes=(outcome,))

    full = replace(make_episode(), turns=(make_turn("full"),))
    plays = [
        play("policy", "a", called("resize_image"), RIGHT),
        play("policy", "b", called(), RIGHT),
        play("policy", "c", called(), UNKNOWN),
        play("policy", "d", full, RIGHT),
        play("policy", "e", called(), RIGHT),
        *(play("always_quarter", uid, called(), WRONG) for uid in "acd"),
        play("always_quarter", "b", called(), UNKNOWN),
        *(play("always_full", uid, full, RIGHT) for uid in "abcde"),
    ]
    assert list(paired_plays(plays)) == [PairedPlay(is_correct=True, asked=True, is_correct_without=False)]


def test_what_was_learned_splits_into_intrinsic_and_tool():
    before = {"heldout/accuracy": 0.5, "heldout/accuracy_quarter": 0.25}
    after = {"heldout/accuracy": 1.0, "heldout/accuracy_quarter": 0.5}
    assert drift(before, after) == Drift(intrinsic=0.25, tool=0.25)
    assert drift({}, after) is None
    assert drift(before, {"heldout/accuracy": 1.0}) is None


def test_records_hold_what_each_turn_showed_and_by_which_tool(tmp_path):
    played = make_group([called("request_local_region", None, "resize_image")])
    rows = rows_of_evaluation(3, [HeldoutPlay(kind="policy", played=played, outcomes=(RIGHT,))])
    write_episodes(tmp_path / "episodes.parquet", rows)
    (row,) = pq.read_table(tmp_path / "episodes.parquet").to_pylist()
    assert [(turn["view"], turn["tool"], turn["num_visual_tokens"]) for turn in row["turns"]] == [
        ("quarter", None, 16),
        ("crop:0,0,56,56", "request_local_region", 4),
        (None, None, 0),
        ("full", "resize_image", 64),
    ]
    assert row["asked"]
