"""Adapters in place of weights: what is trained, what leaves the learner, and what is compared with."""

import math

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import Qwen2_5_VLForConditionalGeneration

from actors.errors import CheckpointError
from configs.learner import LearnerConfig, LoraConfig
from learner.export import export_checkpoint
from learner.families.lookup import read_shape
from learner.layers import WideLinear
from learner.lora.adapters import adapted_layers, add_adapters
from learner.lora.merging import DOWN, UP, is_adapter, merged
from learner.memory import adapted, rank_bytes
from learner.model import load_policy
from learner.state.checkpoint import CheckpointFolder
from tests.learner.builders import library_logprobs, make_group, save_model, small_model
from tests.learner.one_rank import GROUPS, exported, started, update
from tests.learner.ranks import perform, play, run_script
from tests.learner.saved import save

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
LORA = LoraConfig(rank=4, alpha=8.0)
SETTINGS = {"lora": LORA, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save_model(path, small_model(vision_width=48))  # the MLPs of its tower are padded
    return path


@pytest.fixture(scope="module")
def learned(folder):
    """A learner after two updates of the adapters of all layers."""
    rank = started(folder, **SETTINGS)
    for _ in range(2):
        update(rank)
    return rank


def library_model(path):
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()


@torch.no_grad()
def logprobs_of(model):
    return torch.stack(
        [
            logprob
            for group in GROUPS[:2]
            for _, logprob, _ in library_logprobs(model, group.played.episodes[0], group.image)
        ]
    )


@pytest.mark.parametrize(("stage", "train_vision"), [(0, False), (1, True), (2, False), (3, True)])
def test_adapters_alone_are_trained_and_add_nothing_at_first(folder, stage, train_vision):
    frozen = {name: tensor.detach().numpy().tobytes() for name, tensor in load_policy(folder).named_parameters()}
    rank = started(folder, zero_stage=stage, train_vision=train_vision, **SETTINGS)
    before = exported(rank)
    assert sorted(before.values()) == sorted(frozen.values())
    update(rank)
    after = exported(rank)
    weights = dict(rank._engine._whole(lambda name: not is_adapter(name)))
    changed = {name for name in before if before[name] != after[name]}
    shapes = rank._engine.trained_shapes()

    assert {name for name in shapes if not name.endswith((DOWN, UP))} == set()
    assert len(shapes) == 2 * len(changed) == 2 * (2 * 7 + (2 * 5 if train_vision else 0))
    assert any("visual" in name for name in changed) == train_vision
    for name, weight in weights.items():
        assert weight.numpy().tobytes() == frozen[name.removeprefix("model.").replace(".base_layer", "")], name


def test_the_policy_at_step_0_scores_exactly_as_the_model_does(folder):
    with_adapters, without = started(folder, **SETTINGS), started(folder, lora=LoraConfig())
    ours, theirs = update(with_adapters).metrics, update(without).metrics
    for name in ("loss", "entropy", "mismatch", "mismatch_max", "reference_kl"):
        assert ours[f"learner/{name}"] == theirs[f"learner/{name}"], name


def test_weights_are_sent_with_the_adapters_added(learned):
    sent = exported(learned)
    named = {name: tensor.double().numpy() for name, tensor in learned._engine._whole(lambda _: True)}
    layers = [name.removesuffix(DOWN) for name in named if name.endswith(DOWN)]
    assert len(layers) == 24
    for layer in layers:
        expected = named[f"{layer}.base_layer.weight"] + LORA.alpha / LORA.rank * (
            named[f"{layer}{UP}"] @ named[f"{layer}{DOWN}"]
        )
        found = np.frombuffer(sent[f"{layer.removeprefix('model.')}.weight"], np.float32).reshape(expected.shape)
        np.testing.assert_allclose(found, expected, atol=1e-7, rtol=0)
        assert not np.array_equal(found, named[f"{layer}.base_layer.weight"].astype(np.float32))


def test_merging_in_half_precision_rounds_once_however_often_weights_are_sent(folder):
    model = load_policy(folder, dtype=torch.bfloat16)
    add_adapters(model, LORA, with_vision=True)
    for layer in adapted_layers(model):
        layer.lora_B["default"].weight.data.normal_(std=1e-3)

    def read(wanted):
        return ((name, parameter.detach()) for name, parameter in model.named_parameters() if wanted(name))

    first, second = (dict(merged(read, LORA.scale)) for _ in range(2))
    name = "model.language_model.layers.0.mlp.up_proj"
    layer = model.get_submodule(name)
    assert torch.equal(first[f"{name}.weight"], second[f"{name}.weight"])
    up, down = (getattr(layer, half)["default"].weight.double() for half in ("lora_B", "lora_A"))
    exact = layer.base_layer.weight.double() + LORA.scale * up @ down
    assert torch.equal(first[f"{name}.weight"], exact.to(torch.bfloat16))


def test_an_export_and_its_adapter_compute_in_plain_transformers_what_the_learner_does(learned, folder, tmp_path):
    assert any(isinstance(layer.base_layer, WideLinear) for layer in adapted_layers(learned._engine.module))
    learned.export_hf(tmp_path / "export")
    whole, plain = library_model(tmp_path / "export"), library_model(folder)
    expected, initial = logprobs_of(whole), logprobs_of(plain)
    assert (expected - initial).abs().max() > 1e-2
    beside = logprobs_of(PeftModel.from_pretrained(plain, tmp_path / "export" / "adapter"))
    torch.testing.assert_close(beside, expected, atol=1e-5, rtol=0)
    unmerged = torch.stack(
        [
            logprob
            for group in GROUPS[:2]
            for _, logprob, _ in library_logprobs(learned._engine.module.model, group.played.episodes[0], group.image)
        ]
    )
    torch.testing.assert_close(unmerged, expected, atol=1e-5, rtol=0)


def test_a_checkpoint_is_exported_as_the_learner_exports(folder, tmp_path):
    rank = started(folder, **SETTINGS)
    update(rank)
    rank.export_hf(tmp_path / "live")
    checkpoints = CheckpointFolder(tmp_path / "checkpoints")
    name = save(checkpoints, [rank])
    held = sum(file.stat().st_size for file in (tmp_path / "checkpoints" / name).glob("learner-*.safetensors"))
    assert held < 1.2 * 12 * sum(math.prod(shape) for shape in rank._engine.trained_shapes().values())
    assert export_checkpoint(checkpoints, name, tmp_path / "out", model=folder, dtype="float32", lora=LORA) == 1
    ours, theirs = library_model(tmp_path / "out").state_dict(), library_model(tmp_path / "live").state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    adapters = [(tmp_path / each / "adapter" / "adapter_model.safetensors").read_bytes() for each in ("out", "live")]
    assert adapters[0] == adapters[1]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match=r"learner\.lora\.rank=4 alone, and model\.path=.* has no weights"):
        export_checkpoint(checkpoints, name, tmp_path / "none", model=empty, dtype="float32", lora=LORA)


def reference_scores(rank):
    return perform(rank, rank._config, 0, "reference", GROUPS)


def test_the_reference_is_the_frozen_model_without_a_copy_of_it(folder, learned):
    frozen = started(folder, lora=LoraConfig())
    update(frozen)
    for ours, theirs in zip(reference_scores(learned), reference_scores(frozen), strict=True):
        assert np.array_equal(ours, theirs)
    assert all(layer.is_adapted for layer in adapted_layers(learned._engine.module))
    assert update(learned).metrics["learner/reference_kl"] > 0


def test_a_resumed_learner_goes_on_bit_for_bit_even_in_a_new_group(folder, tmp_path):
    straight = started(folder, **SETTINGS)
    for _ in range(2):
        update(straight)
    name = save(tmp_path, [straight])
    expected = update(straight)
    resumed = started(folder, **SETTINGS)
    update(resumed)
    resumed.form(0, 1, *resumed.rendezvous())
    assert resumed.load(str(tmp_path), name) == 2
    assert update(resumed).metrics["learner/loss"] == expected.metrics["learner/loss"]
    assert exported(resumed) == exported(straight)


def test_the_state_of_adapters_of_another_rank_is_refused(folder, tmp_path):
    name = save(tmp_path, [started(folder, **SETTINGS)])
    with pytest.raises(CheckpointError, match=r"another model: .*lora_A.* is \(4, \d+\) there and \(2, \d+\) here"):
        started(folder, lora=LoraConfig(rank=2)).load(str(tmp_path), name)
    with pytest.raises(CheckpointError, match="another model"):
        started(folder).load(str(tmp_path), name)


@pytest.mark.parametrize("target", ["all", "attention"])
@pytest.mark.parametrize("train_vision", [True, False])
def test_adapters_are_counted_as_peft_makes_them(target, train_vision):
    model = small_model(width=64, layers=3)
    config = LearnerConfig(lora=LoraConfig(rank=3, target=target), train_vision=train_vision, zero_stage=2)
    shape = read_shape(model.config.to_dict())
    add_adapters(model, config.lora, with_vision=train_vision)
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert adapted(shape, config).num_trained == adapted(adapted(shape, config), config).num_adapted == count
    parts = rank_bytes(shape, config, in_bfloat16=True)
    assert (parts["weights"], parts["optimizer"], parts["reference"]) == (
        2 * (shape.num_parameters + count),
        12 * count,
        0,
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": -1}, r"learner\.lora\.rank=-1.*at least 0"),
        ({"rank": 4, "alpha": 0.0}, r"learner\.lora\.alpha=0.*above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        LoraConfig(**settings)


def test_a_reference_in_host_memory_is_refused_as_there_is_none():
    with pytest.raises(ValueError, match=r"learner\.offload_reference=True.*must be false with learner\.lora\.rank"):
        LearnerConfig(lora=LORA, offload_reference=True)


@pytest.mark.slow
def test_two_ranks_learn_what_one_does_and_read_each_others_state(folder):
    groups = [make_group(1), make_group(2, size=(56, 168))]
    common = {"num_threads": 1, "prompts_per_mini_batch": 2, "kl_coefficient": 0.05, "param_persistence_threshold": 0}

    def script(shares=None):
        calls = [("restore", shares)] if shares else [("update", groups), ("update", groups)]
        for stage in (0, 1, 2, 3):
            learner = {**common, **SETTINGS, "learning_rate": 2e-5, "zero_stage": stage, "gradient_checkpointing": True}
            yield {"learner": learner, "model": {"path": str(folder)}}, [*calls, ("exported", None), ("snapshot", None)]

    single, pair = run_script(list(script())), play(2, list(script()))
    for stage in range(4):
        alone, both = single[4 * stage + 2], [results[4 * stage + 2] for results in pair]
        for name, weight in alone.items():
            np.testing.assert_allclose(both[0][name], weight, atol=1e-6, rtol=0, err_msg=name)
            assert np.array_equal(both[0][name], both[1][name]), name
        assert all(results[4 * stage + 1].optimizer_step == 2 for results in (single, *pair))
    written = [results[4 * 3 + 3] for results in pair]
    for step, weights, _ in zip(*[iter(run_script(list(script(written))))] * 3, strict=True):
        assert step == 2
        for name, weight in weights.items():
            assert np.array_equal(weight, pair[0][4 * 3 + 2][name]), name
