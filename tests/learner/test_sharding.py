import pytest
import torch
from torch import nn

from configs.learner import LearnerConfig
from learner.zero.sharding import learner_settings, part_sizes, reference_settings
from tests.learner.builders import small_model


def zero(settings):
    return settings["zero_optimization"]


def test_sizes_are_those_of_the_librarys_layers():
    model = small_model()
    sizes = part_sizes(model)
    assert sizes.layer_classes == ("Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock")
    layers = [*model.model.language_model.layers, *model.model.visual.blocks]
    assert sizes.layer == max(sum(p.numel() for p in layer.parameters()) for layer in layers)
    assert sizes.parameter == max(p.numel() for p in model.parameters())


def test_a_model_that_names_no_layers_is_gathered_module_by_module():
    sizes = part_sizes(nn.Linear(5, 7))
    assert (sizes.layer_classes, sizes.layer, sizes.parameter) == ((), 35, 35)
    assert "leaf_module" not in zero(learner_settings(LearnerConfig(zero_stage=3), torch.float32, sizes))


@pytest.mark.parametrize("num_gpus", [0, 1])
def test_gathers_and_reductions_have_streams_of_their_own_where_there_are_streams(num_gpus):
    config = LearnerConfig(zero_stage=3, num_gpus=num_gpus)
    assert zero(learner_settings(config, torch.bfloat16, part_sizes(small_model())))["overlap_comm"] == bool(num_gpus)


def test_a_layer_ahead_fits_beside_the_output_layer():
    sizes = part_sizes(small_model())
    found = zero(learner_settings(LearnerConfig(zero_stage=3), torch.bfloat16, sizes))
    assert found["leaf_module"]["classes"] == list(sizes.layer_classes)
    ahead = found["stage3_prefetch_bucket_size"]
    assert ahead >= sizes.layer
    assert found["stage3_max_live_parameters"] >= sizes.parameter + sizes.layer + 2 * ahead
    assert found["reduce_bucket_size"] >= sizes.layer


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_without_shards_nothing_is_set_for_them(stage):
    config = LearnerConfig(zero_stage=stage, num_ranks=2)
    found = zero(learner_settings(config, torch.float32, part_sizes(small_model())))
    assert found == {"stage": stage, "overlap_comm": False}


@pytest.mark.parametrize(("num_ranks", "scatters"), [(1, False), ("1..2", True), (2, True)])
def test_a_rank_that_is_always_alone_copies_no_gradient_to_the_owner_of_its_share(num_ranks, scatters):
    found = zero(learner_settings(LearnerConfig(zero_stage=2, num_ranks=num_ranks), torch.float32))
    assert found.get("reduce_scatter", True) == scatters


def test_a_reference_in_host_memory_is_pinned_for_a_gpu_and_has_no_optimizer():
    config = LearnerConfig(zero_stage=2, num_gpus=1, offload_reference=True)
    found = reference_settings(config, torch.bfloat16, part_sizes(small_model()))
    assert zero(found)["offload_param"] == {"device": "cpu", "pin_memory": True}
    assert zero(found)["stage"] == 3
    assert "optimizer" not in found
