"""An update in pieces and in parts gives what the update in one gives."""

import pytest
import torch

from tests.learner.builders import (
    images_of,
    make_group,
    plan_of,
)
from tests.learner.one_rank import GROUPS, exported, gradients_of, started, update

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.mark.parametrize("vision", [1, 21, 10**6], ids="vision passes of {}".format)
def test_pieces_of_a_mini_batch_add_up_to_the_whole(folder, vision):
    """Whether the tower's graph is kept or its passes are encoded again."""

    def planned(groups, **settings):
        return plan_of(groups, prompts=4, **settings)[0], groups

    expected, whole = gradients_of(started(folder, zero_stage=0), [planned(GROUPS)])
    pieces = [planned(GROUPS[:1], budget=100, vision=vision), planned(GROUPS[1:], budget=100, vision=vision)]
    found, metrics = gradients_of(started(folder, zero_stage=0, max_tokens_per_vision_pass=vision), pieces)
    assert metrics == pytest.approx(whole, abs=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-3, msg=name)


def in_parts(rank, groups, sizes, *, prompts=4):
    """An update in parts of these sizes."""
    rank.begin()
    start = 0
    for size in sizes:
        part = groups[start : start + size]
        (plan,) = plan_of(part, prompts=prompts, budget=400, num_before=start % prompts)
        rank.learn(plan, images_of(plan, part))
        start += size
    assert start == len(groups)
    return rank.finish()


@pytest.mark.parametrize("sizes", [[6], [1, 1, 1, 1, 1, 1], [3, 3], [5, 1]])
def test_an_update_in_parts_is_the_update_in_one(folder, sizes):
    """Three updates of two optimizer steps, the second with a mini-batch that is not full."""
    groups = [make_group(seed) for seed in range(6)]
    whole, streamed = (started(folder, learning_rate=1e-5, zero_stage=0) for _ in range(2))
    for _ in range(3):
        expected, found = update(whole, groups), in_parts(streamed, groups, sizes)
        for name in ("start_version", "optimizer_step", "num_tokens"):
            assert getattr(found, name) == getattr(expected, name)
        learned = {name for name in expected.metrics if name.startswith("learner/") and "memory" not in name}
        for name in learned - {"learner/computed_share", "learner/rank_imbalance"}:
            assert found.metrics[name] == pytest.approx(expected.metrics[name], abs=1e-6, rel=1e-4), name
        assert found.metrics["learner/computed_share"] == pytest.approx(expected.metrics["learner/computed_share"])
    assert streamed._engine.optimizer_step == 6
    for (name, ours), (_, theirs) in zip(streamed._parameters(), whole._parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0, msg=name)


def test_parts_that_are_micro_batches_change_no_bit(folder):
    """Micro-batches of a group each, costly ones first, and views that are encoded one by one: the same additions."""
    groups = [make_group(seed) for seed in (3, 7, 2, 0)]
    (plan,) = plan_of(groups, budget=160, vision=1)
    assert [[f.rows[0].image for f in families] for families in plan.mini_batches[0].micro_batches] == [
        [0],
        [1],
        [2],
        [3],
    ]
    whole, streamed = (started(folder, zero_stage=0, max_tokens_per_vision_pass=1) for _ in range(2))
    for _ in range(3):
        expected = whole.update(plan, images_of(plan, groups))
        streamed.begin()
        for number, group in enumerate(groups):
            (part,) = plan_of([group], prompts=4, budget=160, vision=1, num_before=number)
            streamed.learn(part, images_of(part, [group]))
        assert streamed.finish().metrics["learner/loss"] == expected.metrics["learner/loss"]
        assert exported(streamed) == exported(whole)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_an_update_that_was_not_finished_leaves_nothing_to_the_next(folder, stage):
    straight, disturbed = (started(folder, zero_stage=stage) for _ in range(2))
    (plan,) = plan_of([make_group(99)], prompts=4)
    for _ in range(2):
        disturbed.begin()
        disturbed.learn(plan, images_of(plan, [make_group(99)]))
        reports = [update(rank) for rank in (straight, disturbed)]
        learned, expected = (
            {name: value for name, value in report.metrics.items() if "memory" not in name and "time/" not in name}
            for report in reports
        )
        assert learned == expected
        assert learned["learner/skipped_updates"] == 0
    assert exported(disturbed) == exported(straight)
