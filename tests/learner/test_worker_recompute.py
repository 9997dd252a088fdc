"""What a rank computes again, and what it leaves out."""

import json

import pytest
import torch
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

from learner.families.lookup import read_shape
from learner.memory import language_bytes
from tests.learner.builders import (
    images_of,
    plan_of,
)
from tests.learner.one_rank import GROUPS, exported, started, update
from tests.learner.whole_state import whole_state

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.mark.parametrize(
    ("vision", "settings", "times"),
    [
        (10**6, {}, 1),
        (21, {}, 1),  # the views of a group
        (19, {}, 2),  # fewer than those
        (21, {"gradient_checkpointing": True}, 2),
        (21, {"zero_stage": 3}, 2),
        (21, {"train_vision": False}, 1),
    ],
)
def test_the_tower_runs_once_per_view_and_again_only_where_its_activations_cannot_stay(folder, vision, settings, times):
    rank = started(folder, kl_coefficient=0.0, **settings)
    encoded, tower = [], rank._engine.module.model.model.visual
    tower.merger.register_forward_hook(lambda _, __, out: encoded.append(len(out)))
    (plan,) = plan_of(GROUPS, budget=80, vision=vision)
    rank.update(plan, images_of(plan, GROUPS))
    distinct = sum(4 + 16 * any(e.asked for e in group.played.episodes) for group in GROUPS)
    assert len(plan.mini_batches[0].micro_batches) > 4
    assert sum(encoded) == times * distinct


def test_what_is_recomputed_changes_no_bit(folder):
    """Neither how many layers keep their activations, nor whether the tower's graph stays."""
    (plan,) = plan_of(GROUPS, budget=120, vision=21)
    images = images_of(plan, GROUPS)
    shape = read_shape(json.loads((folder / "config.json").read_text()))
    some = language_bytes(shape, 120, 4, num_kept=1)
    found = {}
    for room in (None, 0, some, 10**12):
        rank = started(folder, zero_stage=0, gradient_checkpointing=True)
        rank._trainer._recomputation._room = None if room is None else lambda room=room: room
        rank.update(plan, images)
        layers, visual = rank._trainer._recomputation.num_tokens, rank._trainer._recomputation.num_visual_tokens
        found[room] = exported(rank), layers[0] / layers[1], visual[0] / visual[1]
    assert [share for _, share, _ in found.values()][::3] == [1, 0]
    assert [share for _, _, share in found.values()] == [1, 1, 1, 0]
    assert 0 < found[some][1] < 1
    assert all(weights == found[None][0] for weights, _, _ in found.values())


def test_activations_that_do_not_fit_after_all_are_recomputed(folder, monkeypatch):
    (plan,) = plan_of(GROUPS, budget=120)
    images = images_of(plan, GROUPS)
    expected, rank = (started(folder, zero_stage=0, gradient_checkpointing=True) for _ in range(2))
    expected.update(plan, images)
    recomputation = rank._trainer._recomputation
    recomputation._room = lambda: 10**12
    loss, kept = rank._trainer._loss, []

    def short_of_memory(*given):
        kept.append(recomputation._num_kept)
        if len(kept) == 1:
            raise torch.OutOfMemoryError("out of memory")
        return loss(*given)

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(rank._trainer, "_loss", short_of_memory)
    rank.update(plan, images)
    assert kept[0] > 0 == kept[1]
    assert exported(rank) == exported(expected)
    monkeypatch.setattr(recomputation, "_room", lambda: 0)
    monkeypatch.setattr(rank._trainer, "_loss", lambda *given: (_ for _ in ()).throw(torch.OutOfMemoryError("still")))
    with pytest.raises(torch.OutOfMemoryError, match="still"):
        rank.update(plan, images)


def test_under_zero_3_no_order_of_modules_is_forgotten(folder, monkeypatch):
    """Vision passes without and with gradients, micro-batches, and the reference's: each is looked ahead in."""
    forgotten = []
    forget = PartitionedParameterCoordinator._invalidate_trace
    monkeypatch.setattr(
        PartitionedParameterCoordinator, "_invalidate_trace", lambda self: (forgotten.append(self), forget(self))
    )
    rank = started(folder, zero_stage=3, param_persistence_threshold=0)
    (plan,) = plan_of(GROUPS, budget=150, vision=21)
    for _ in range(2):
        rank.update(plan, images_of(plan, GROUPS))
    orders = rank._engine._orders._by_kind
    assert len(orders) == 3
    assert all(order.is_complete_trace() for order in orders.values())
    assert not forgotten


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_frozen_tower_keeps_its_weights_and_has_no_state(folder, stage):
    rank = started(folder, zero_stage=stage, train_vision=False)
    before = exported(rank)
    update(rank)
    after = exported(rank)
    changed = {name for name in before if before[name] != after[name]}
    assert changed
    assert not any("visual" in name for name in changed)
    assert not any("visual" in key for key, _ in whole_state(rank._engine))
    assert any("visual" in name for name in before)
