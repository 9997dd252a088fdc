"""Deep-stack features in a rank of the learner: encoded once, their gradient accumulated and backpropagated once."""

import pytest
import torch
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

from tests.learner.builders import SPECS, images_of, make_group, plan_of, save_model, small_model
from tests.learner.one_rank import exported, gradients_of, started

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
SPEC = SPECS["qwen3_vl"]
GROUPS = [make_group(seed, spec=SPEC) for seed in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save_model(path, small_model(family="qwen3_vl"), SPEC)
    return path


@pytest.mark.parametrize("vision", [21, 10**6], ids="vision passes of {}".format)
def test_passes_and_micro_batches_add_up_to_the_whole(folder, vision):
    """Whether the tower's graph is kept or its passes are encoded again."""
    (whole,), (cut,) = plan_of(GROUPS), plan_of(GROUPS, budget=100, vision=vision)
    expected, metrics = gradients_of(started(folder, zero_stage=0), [(whole, GROUPS)])
    rank = started(folder, zero_stage=0, max_tokens_per_vision_pass=vision)
    found, others = gradients_of(rank, [(cut, GROUPS)])
    assert others == pytest.approx(metrics, abs=1e-5)
    deep = [name for name in found if "deepstack_merger_list" in name or "pos_embed" in name]
    assert len(deep) == 2 * 6 + 1
    assert all(expected[name].count_nonzero() for name in deep)
    for name, gradient in found.items():
        largest = expected[name].abs().max().clamp_min(1e-6)
        torch.testing.assert_close(gradient / largest, expected[name] / largest, atol=1e-3, rtol=0, msg=name)


@pytest.mark.slow
def test_the_weights_do_not_depend_on_the_zero_stage_and_no_order_of_modules_is_forgotten(folder, monkeypatch):
    forgotten, found = [], []
    forget = PartitionedParameterCoordinator._invalidate_trace
    monkeypatch.setattr(
        PartitionedParameterCoordinator, "_invalidate_trace", lambda self: (forgotten.append(self), forget(self))
    )
    (plan,) = plan_of(GROUPS, budget=150, vision=21)
    for stage in (0, 2, 3):
        rank = started(folder, zero_stage=stage, param_persistence_threshold=0)
        for _ in range(2):
            rank.update(plan, images_of(plan, GROUPS))
        found.append(exported(rank))
    assert not forgotten
    for other in found[1:]:
        for name, content in found[0].items():
            a, b = (torch.frombuffer(bytearray(raw), dtype=torch.float32) for raw in (content, other[name]))
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0, msg=name)
