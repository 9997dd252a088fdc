"""Tokens per step, by model, pictures and GPU memory."""

from dataclasses import replace

import pytest

from actors.engine.budget import ModelWidths, check_max_prefill_tokens, token_budget
from actors.images import ViewSpec
from configs.load import load_config
from configs.schema import RolloutConfig

GIB = 2**30
QWEN_3B = ModelWidths(hidden=2048, intermediate=11008, vision_hidden=1280, vision_intermediate=3420, merge_size=2)
QWEN_7B = ModelWidths(hidden=3584, intermediate=18944, vision_hidden=1280, vision_intermediate=3420, merge_size=2)
QWEN_72B = ModelWidths(hidden=8192, intermediate=29568, vision_hidden=1280, vision_intermediate=3456, merge_size=2)
TINY = ModelWidths.from_model("configs/tiny")


def spec(max_pixels: int) -> ViewSpec:
    return ViewSpec(patch_size=14, merge_size=2, min_pixels=56 * 56, max_pixels=max_pixels)


ROLLOUT_3B, ROLLOUT_7B = (load_config(name).rollout for name in ("visionthink_3b_2gpu", "visionthink_7b_4x8gpu"))


@pytest.mark.parametrize(
    ("rollout", "widths", "max_pixels", "gpu_gib", "per_step", "encoder_cache"),
    [
        # What vLLM's `LLM` takes on such a GPU, where its asynchronous engine takes 2,048. The cache holds every view.
        (ROLLOUT_3B, QWEN_3B, 2048**2, 80, 16_384, 32 * (5349 + 1337)),
        (ROLLOUT_7B, QWEN_7B, 2048**2, 80, 16_384, 32 * (5349 + 1337)),
        (ROLLOUT_3B, QWEN_3B, 1024**2, 141, 16_384, 32 * (1337 + 334)),
        # Smaller GPUs and wider models take less, and a cache within its share of the memory.
        (ROLLOUT_7B, QWEN_7B, 2048**2, 24, 12_288, 71_902),
        (ROLLOUT_7B, QWEN_7B, 2048**2, 16, 8_192, 47_934),
        (ROLLOUT_7B, QWEN_72B, 2048**2, 40, 11_264, 52_428),
        (ROLLOUT_7B, QWEN_72B, 1024**2, 4, 2_048, 5_242),
        # A full view always fits, even where memory alone would not suggest it.
        (ROLLOUT_7B, QWEN_72B, 2048**2, 4, 5_349, 5_349),
        # The tiny run on a CPU: as vLLM has it, and a view of 64 visual tokens is small.
        (RolloutConfig(), TINY, 224 * 224, None, 2_048, 2_048),
        # Never more than all turns together can hold.
        (RolloutConfig(max_groups_in_flight=1, group_size=2), TINY, 224 * 224, 80, 3 * 560, 3 * 560),
        # As many tokens as turns, each of which generates one.
        (RolloutConfig(max_groups_in_flight=512), TINY, 224 * 224, None, 4_097, 512 * (64 + 16)),
        # On a CPU, too, the cache holds every view of the groups in flight, up to an eighth of the KV cache.
        (RolloutConfig(), TINY, 1008 * 1008, None, 2_048, 16 * (1296 + 324)),
        (RolloutConfig(max_groups_in_flight=512), TINY, 1008 * 1008, None, 4_097, 2**30 // 8 // (TINY.hidden * 4)),
        (replace(ROLLOUT_7B, max_prefill_tokens=6_000), QWEN_7B, 2048**2, 80, 6_000, 32 * (5349 + 1337)),
        (replace(ROLLOUT_7B, max_prefill_tokens=50_000), QWEN_7B, 2048**2, 16, 50_000, 50_000),
    ],
)
def test_an_engine_takes_what_its_gpu_has_room_for(rollout, widths, max_pixels, gpu_gib, per_step, encoder_cache):
    budget = token_budget(
        rollout,
        widths,
        spec(max_pixels),
        bytes_per_value=4 if widths is TINY else 2,
        gpu_memory=None if gpu_gib is None else gpu_gib * GIB,
    )
    assert (budget.per_step, budget.encoder_cache) == (per_step, encoder_cache)
    assert budget.encoder_per_step == budget.per_step
    assert budget.encoder_cache >= max_pixels // 28**2, "one full view fits"


@pytest.mark.parametrize(
    ("rollout", "max_pixels", "message"),
    [
        (
            RolloutConfig(max_prefill_tokens=5_348),
            2048**2,
            r"rollout\.max_prefill_tokens=5348 is invalid: must be at least 5349, .* \(model\.max_pixels=4194304\)",
        ),
        (
            RolloutConfig(max_prefill_tokens=128),
            224 * 224,
            r"rollout\.max_prefill_tokens=128 is invalid: must be at least 129, .* rollout\.group_size",
        ),
    ],
)
def test_a_setting_that_holds_no_full_view_or_too_few_turns_is_refused(rollout, max_pixels, message):
    with pytest.raises(ValueError, match=message):
        check_max_prefill_tokens(rollout, spec(max_pixels))


def test_settings_that_fit_are_taken():
    check_max_prefill_tokens(RolloutConfig(max_prefill_tokens=5_349), spec(2048**2))
    check_max_prefill_tokens(RolloutConfig(max_prefill_tokens=129), spec(224 * 224))
    check_max_prefill_tokens(RolloutConfig(), spec(2048**2))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{}", "hidden_size"),
        ('{"hidden_size": 8, "intermediate_size": 8}', "hidden_size"),
        ('{"hidden_size": 8}', "inter"),
    ],
)
def test_a_model_without_widths_is_refused_by_name(tmp_path, text, named):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"model\.path=.*{named}"):
        ModelWidths.from_model(str(tmp_path))


def test_widths_are_found_at_the_top_or_in_the_text_config(tmp_path):
    vision = '"vision_config": {"hidden_size": 3, "intermediate_size": 4, "spatial_merge_size": 2}'
    for text in (
        f'{{"hidden_size": 1, "intermediate_size": 2, {vision}}}',
        f'{{"text_config": {{"hidden_size": 1, "intermediate_size": 2}}, {vision}}}',
    ):
        (tmp_path / "config.json").write_text(text)
        assert ModelWidths.from_model(str(tmp_path)) == ModelWidths(
            hidden=1, intermediate=2, vision_hidden=3, vision_intermediate=4, merge_size=2
        )


def test_deep_features_take_as_much_room_in_the_cache_again():
    text, vision = {"hidden_size": 8, "intermediate_size": 2}, {"hidden_size": 3, "intermediate_size": 4}
    vision |= {"spatial_merge_size": 2, "deepstack_visual_indexes": [5, 11, 17]}
    assert ModelWidths.from_config({"text_config": text, "vision_config": vision}).features == 4 * 8
    assert QWEN_3B.features == QWEN_3B.hidden
