import functools
import json
import math
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

from actors.errors import CheckpointError, LearnerError
from actors.prompts import load_tokenizer, vision_token_ids
from actors.weights.buckets import slot_tensor
from actors.weights.digest import bucket_digest
from configs.learner import LearnerConfig, WeightsConfig
from configs.objectives import GRPO, OBJECTIVES
from configs.schema import ModelConfig
from learner.batches.collate import Collator
from learner.loss import LossInputs, policy_loss
from learner.memory import language_bytes, read_shape
from learner.model import load_policy, token_logprobs
from learner.state.checkpoint import CheckpointFolder
from learner.sync.resident import find_resident
from learner.update import summarize_steps
from learner.worker import LearnerRank
from tests.learner.builders import (
    collated,
    features_of,
    images_of,
    make_group,
    pieces_of,
    plan_of,
    save_model,
    small_model,
)
from tests.learner.saved import save, seal
from tests.learner.whole_state import whole_state

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
GROUPS = [make_group(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save_model(path, small_model())
    return path


def started(folder, *, is_off_policy=False, **settings):
    config = LearnerConfig(
        **{
            "num_threads": 1,
            "prompts_per_mini_batch": 4,
            "max_tokens_per_micro_batch": 400,
            "kl_coefficient": 0.05,
            "learning_rate": 1e-3,
            **settings,
        }
    )
    rank = LearnerRank(
        config,
        ModelConfig(path=str(folder)),
        rank=0,
        world_size=1,
        seed=0,
        temperature=1.0,
        weights=WeightsConfig(),
        transport="shared_memory",
        is_off_policy=is_off_policy,
    )
    rank.start(*rank.rendezvous())
    return rank


def update(rank, groups=GROUPS, *, prompts=4):
    (plan,) = plan_of(groups, prompts=prompts, budget=400)
    return rank.update(plan, images_of(plan, groups))


def exported(rank):
    """The weights as receivers get them: bytes by name."""
    link = rank.open_weights(1)
    sent = rank.send_weights()
    buckets = [rank.read_weights(index).copy() for index in range(sent.offer.num_buckets)]
    rank.close_weights()
    assert [int(bucket_digest(torch.from_numpy(bucket))) for bucket in buckets] == list(sent.digests)
    return {
        slot.tensor.name: buckets[slot.bucket][slot.offset : slot.offset + slot.tensor.num_bytes].tobytes()
        for slot in link.layout.slots
    }


def with_logprobs(group, value):
    """The group with this log-probability for the first token that its first episode said."""
    first, *others = group.played.episodes
    turn = first.turns[0]
    broken = replace(first, turns=(replace(turn, logprobs=(value, *turn.logprobs[1:])), *first.turns[1:]))
    return replace(group, played=replace(group.played, episodes=(broken, *others)))


def test_an_update_learns_and_reports(folder):
    rank = started(folder)
    before = exported(rank)
    report = update(rank)
    assert (report.start_version, report.optimizer_step) == (0, 1)
    assert report.num_tokens == sum(e.num_generated_tokens for group in GROUPS for e in group.played.episodes)
    assert all(math.isfinite(value) for value in report.metrics.values())
    assert report.metrics["learner/reference_kl"] == pytest.approx(0, abs=1e-9)
    assert report.metrics["learner/num_steps"] == 1.0
    assert exported(rank) != before
    assert update(rank).metrics["learner/reference_kl"] > 0


@pytest.mark.parametrize("num_copies", [1, 4])
def test_micro_batches_in_memory_do_not_grow_with_the_update(folder, monkeypatch, num_copies):
    alive, most, made = weakref.WeakSet(), 0, 0
    collate = Collator.micro_batch

    def watched(*given):
        nonlocal most, made
        batch = collate(*given)
        alive.add(batch.token_ids_T)
        made, most = made + 1, max(most, len(alive))
        return batch

    monkeypatch.setattr(Collator, "micro_batch", watched)
    rank = started(folder)
    (plan,) = plan_of(GROUPS * num_copies, prompts=2, budget=80)
    rank.update(plan, images_of(plan, GROUPS * num_copies))
    assert made == sum(len(piece.micro_batches) for piece in plan.mini_batches) >= 6 * num_copies
    assert most <= 3


def test_pictures_are_shipped_as_bytes_and_not_as_patches():
    (((shown,), _),) = pieces_of(plan_of(GROUPS), GROUPS)
    assert {pixels.dtype for pixels in shown.pixels} == {torch.uint8}
    # Two frames of four bytes for each byte.
    assert shown.patches_PD.nbytes == 8 * sum(pixels.nbytes for pixels in shown.pixels)


def test_an_update_gives_the_figures_of_one_forward_and_backward_pass_written_out(folder):
    """Whatever order micro-batches, references and pictures are prepared in."""
    report = update(started(folder, kl_coefficient=0.05))
    policy, reference = (load_policy(folder) for _ in range(2))
    ((passes, (batch,)),) = pieces_of(plan_of(GROUPS), GROUPS)
    forbidden_ids = vision_token_ids(load_tokenizer(str(folder)))
    logprobs, entropy = token_logprobs(
        policy, batch, features_of(policy, passes), temperature=1.0, forbidden_ids=forbidden_ids
    )
    with torch.no_grad():
        frozen, _ = token_logprobs(
            reference, batch, features_of(reference, passes), temperature=1.0, forbidden_ids=forbidden_ids
        )
    output = policy_loss(
        LossInputs(
            logprobs_N=logprobs,
            entropy_N=entropy,
            sampler_logprobs_N=batch.sampler_logprobs_N,
            proximal_logprobs_N=batch.sampler_logprobs_N,
            reference_logprobs_N=frozen,
            episode_of_N=batch.episode_of_N,
            advantages_N=batch.advantages_N,
            weights_N=batch.weights_N,
        ),
        replace(GRPO, kl_coefficient=0.05),
    )
    output.loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in policy.parameters()])
    assert report.metrics["learner/loss"] == pytest.approx(output.loss.item(), abs=1e-6)
    assert report.metrics["learner/grad_norm"] == pytest.approx(norm.item(), rel=1e-5)


def proximal_probes(monkeypatch):
    """What the loss is given, per micro-batch: (behaviour, proximal, current) log-probabilities."""
    given = []

    def noted(inputs, objective):
        columns = (inputs.sampler_logprobs_N, inputs.proximal_logprobs_N, inputs.logprobs_N)
        given.append([column.detach().clone() for column in columns])
        return policy_loss(inputs, objective)

    monkeypatch.setattr("learner.trainer.policy_loss", noted)
    return given


@pytest.mark.parametrize("prompts", [4, 2])
def test_off_policy_the_proximal_policy_is_the_one_before_the_update(folder, monkeypatch, prompts):
    """One mini-batch needs no further pass; of two, the second's is scored before the first step."""
    given = proximal_probes(monkeypatch)
    rank = started(folder, is_off_policy=True, learning_rate=1e-2)
    report = update(rank, prompts=prompts)
    assert report.metrics["learner/num_steps"] == 4 / prompts
    assert 0 < report.metrics["learner/importance_weight"] <= 2.0
    assert 0 <= report.metrics["learner/importance_capped"] <= 1
    assert ("time/learner_proximal_s" in report.metrics) == (prompts == 2)
    policy, forbidden_ids = load_policy(folder), vision_token_ids(load_tokenizer(str(folder)))
    (plan,) = plan_of(GROUPS, prompts=prompts, budget=400)
    pieces = [collated(piece, images_of(plan, GROUPS)) for piece in plan.mini_batches]
    every = [(number, passes, batch) for number, (passes, batches) in enumerate(pieces) for batch in batches]
    for (number, passes, batch), (behaviour, proximal, current) in zip(every, given, strict=True):
        with torch.no_grad():
            features = features_of(policy, passes)
            before, _ = token_logprobs(policy, batch, features, temperature=1.0, forbidden_ids=forbidden_ids)
        torch.testing.assert_close(proximal, before, atol=1e-5, rtol=1e-5)
        assert torch.equal(behaviour, batch.sampler_logprobs_N)
        assert torch.equal(proximal, current) == (number == 0)


def test_on_policy_the_proximal_policy_is_the_one_that_sampled_in_every_mini_batch(folder, monkeypatch):
    given = proximal_probes(monkeypatch)
    report = update(started(folder), prompts=2)
    assert all(torch.equal(behaviour, proximal) for behaviour, proximal, _ in given)
    assert report.metrics["learner/importance_weight"] == 1.0
    assert report.metrics["learner/importance_capped"] == 0.0


def test_a_picture_that_cannot_be_had_ends_the_update_with_its_reason(folder):
    class Gone:
        def __getitem__(self, number):
            raise LearnerError(f"picture {number} is gone")

    rank = started(folder)
    (plan,) = plan_of(GROUPS, budget=400)
    with pytest.raises(LearnerError, match="picture 0 is gone"):
        rank.update(plan, Gone())


def gradients_of(rank, plans):
    """What has been accumulated by these plans of one mini-batch, and the metrics of the step."""
    for plan, groups in plans:
        rank.accumulate(plan.mini_batches[0], images_of(plan, groups))
    found = {name: p.grad.clone() for name, p in rank._engine.module.named_parameters() if p.grad is not None}
    return found, rank.step()


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


def test_weights_are_sent_under_the_optimizer_step_in_the_models_dtype(folder):
    rank = started(folder)
    link = rank.open_weights(1)
    assert {slot.tensor.dtype for slot in link.layout.slots} == {"float32"}
    assert rank.send_weights().offer.version == 0
    update(rank)
    assert rank.send_weights().offer.version == 1
    rank.close_weights()
    assert not Path(link.settings["file"]).exists()


@pytest.mark.parametrize(("stage", "num_buckets"), [(0, None), (1, 1), (2, 1), (3, None)])
def test_deepspeeds_flat_buffer_can_be_read_in_place_after_every_step(folder, stage, num_buckets):
    rank = started(folder, zero_stage=stage)
    parameters = rank._engine.resident_parameters()
    if stage == 3:
        assert parameters is None
        return
    resident = find_resident(rank._sender._tensors, parameters, bucket_bytes=1 << 30)
    assert len(resident.buckets) == (num_buckets or len(parameters))
    for _ in range(2):
        update(rank)
        resident.check()
        assert exported(rank) == {
            slot.tensor.name: slot_tensor(resident.buckets[slot.bucket], slot).numpy().tobytes()
            for slot in resident.layout.slots
        }


def test_each_mini_batch_is_one_optimizer_step(folder):
    report = update(started(folder), prompts=2)
    assert (report.start_version, report.optimizer_step) == (0, 2)
    assert report.metrics["learner/num_steps"] == 2.0


@pytest.mark.parametrize(("is_off_policy", "prompts"), [(False, 4), (True, 2)])
def test_the_weights_do_not_depend_on_the_zero_stage(folder, is_off_policy, prompts):
    found = []
    for stage in (0, 1, 2, 3):
        rank = started(folder, zero_stage=stage, is_off_policy=is_off_policy)
        for _ in range(2):
            update(rank, prompts=prompts)
        found.append(exported(rank))
    for other in found[1:]:
        for name, content in found[0].items():
            a, b = (torch.frombuffer(bytearray(raw), dtype=torch.float32) for raw in (content, other[name]))
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("name", ["gspo", "dtpo"])
def test_an_update_by_another_objective_depends_neither_on_packing_nor_on_the_zero_stage(folder, name):
    """Off-policy, with two mini-batches: ratios of episodes, weights of turns."""

    def metrics(budget, stage):
        rank = started(folder, objective=name, zero_stage=stage, is_off_policy=True)
        (plan,) = plan_of(GROUPS, prompts=2, budget=budget, objective=OBJECTIVES[name])
        return rank.update(plan, images_of(plan, GROUPS)).metrics, exported(rank)

    (whole, weights), (split, _), (sharded, same) = metrics(400, 1), metrics(80, 1), metrics(400, 3)
    for figure in ("loss", "grad_norm", "clipped", "importance_weight"):
        assert split[f"learner/{figure}"] == pytest.approx(whole[f"learner/{figure}"], rel=1e-4, abs=1e-7)
        assert sharded[f"learner/{figure}"] == pytest.approx(whole[f"learner/{figure}"], rel=1e-4, abs=1e-7)
    for tensor, content in weights.items():
        a, b = (torch.frombuffer(bytearray(raw), dtype=torch.float32) for raw in (content, same[tensor]))
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0, msg=tensor)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_resumed_learner_goes_on_bit_for_bit(folder, tmp_path, stage):
    straight = started(folder, zero_stage=stage)
    reports = [update(straight) for _ in range(4)]

    first = started(folder, zero_stage=stage)
    for _ in range(2):
        update(first)
    name = save(tmp_path, [first])
    second = started(folder, zero_stage=stage)
    assert second.load(str(tmp_path), name) == 2
    resumed = [update(second) for _ in range(2)]

    assert exported(second) == exported(straight)
    for ours, theirs in zip(resumed, reports[2:], strict=True):
        assert ours.optimizer_step == theirs.optimizer_step
        learned = {name: value for name, value in theirs.metrics.items() if name.startswith("learner/")}
        del learned["learner/peak_memory_gib"]
        assert {name: ours.metrics[name] for name in learned} == learned


def test_a_saved_state_is_json_and_safetensors_only(folder, tmp_path):
    name = save(tmp_path, [started(folder)])
    assert {path.suffix for path in (tmp_path / name).iterdir()} == {".json", ".safetensors"}


WRITERS = {"export_hf": "save_hf", "send_weights": "WeightSender.send"}


@pytest.mark.parametrize("method", WRITERS)
def test_a_rank_that_cannot_write_or_send_still_takes_part_in_what_the_others_gather(
    folder, tmp_path, monkeypatch, method
):
    rank = started(folder)
    rank.open_weights(1)
    gathered = []

    def items(of):
        for item in of():
            gathered.append(item[0])
            yield item

    def refuse(*_, **__):
        raise CheckpointError("no space left")

    everything = [name for name, _ in rank._engine.parameters()]
    monkeypatch.setattr(rank._engine, "parameters", functools.partial(items, rank._engine.parameters))
    monkeypatch.setattr(f"learner.worker.{WRITERS[method]}", refuse)
    with pytest.raises(CheckpointError, match="no space left"):
        getattr(rank, method)(*([] if method == "send_weights" else [tmp_path]))
    rank.close_weights()
    assert gathered == everything


def test_another_models_state_is_refused_by_name_and_shape(folder, tmp_path):
    name = save(tmp_path, [started(folder)])
    other = tmp_path / "other"
    save_model(other, small_model(width=48))
    with pytest.raises(CheckpointError, match=r"another model: .* \(.*\) there and \(.*\) here"):
        started(other).load(str(tmp_path), name)


def test_a_damaged_state_is_refused_before_anything_changes(folder, tmp_path):
    rank = started(folder)
    name = save(tmp_path, [rank])
    update(rank)
    before = exported(rank)
    (file,) = (tmp_path / name).glob("learner-00000-00000*")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"learner-00000-00000\.safetensors has hash"):
        rank.load(str(tmp_path), name)
    assert exported(rank) == before
    (tmp_path / name / "learner.json").unlink()
    with pytest.raises(CheckpointError, match=r"learner\.json cannot be read"):
        rank.load(str(tmp_path), name)


def test_what_is_saved_is_the_state_of_the_snapshot_whatever_was_learned_since(folder, tmp_path):
    rank = started(folder)
    update(rank)
    after_one = rank.snapshot().state_3N.copy()
    update(rank)
    rank.snapshot()
    rank.begin()  # an update in flight
    checkpoints = CheckpointFolder(tmp_path)
    place = checkpoints.begin(1)
    rank.begin_save(checkpoints.url, place, 1)
    name = seal(checkpoints, 1, place, [rank.finish_save(60)])
    other = started(folder)
    assert other.load(checkpoints.url, name) == 1
    assert np.array_equal(other.snapshot().state_3N, after_one)


def test_a_snapshot_that_is_gone_cannot_be_saved(folder, tmp_path):
    rank = started(folder)
    for _ in range(3):
        rank.snapshot()
        update(rank)
    with pytest.raises(CheckpointError, match=r"version 0 is not in memory, only of \[1, 2\]"):
        rank.begin_save(str(tmp_path), "somewhere", 0)


def test_without_a_step_the_snapshot_is_not_taken_again(folder):
    rank = started(folder)
    first = rank.snapshot()
    assert rank.snapshot() is first
    update(rank)
    assert rank.snapshot() is not first


def test_the_reference_of_a_resumed_run_is_still_the_initial_policy(folder, tmp_path):
    rank = started(folder)
    for _ in range(2):
        update(rank)
    name = save(tmp_path, [rank])
    resumed = started(folder)
    resumed.load(str(tmp_path), name)
    assert update(resumed).metrics["learner/reference_kl"] == update(rank).metrics["learner/reference_kl"] > 0


@pytest.mark.parametrize("poison", [math.nan, -1000.0])
def test_an_update_that_is_not_finite_changes_nothing_and_is_counted(folder, poison):
    rank = started(folder, zero_stage=1, max_skipped_updates=3)
    before = exported(rank)
    broken = [with_logprobs(GROUPS[0], poison), *GROUPS[1:]]
    report = update(rank, broken)
    assert report.optimizer_step == 0
    assert report.metrics["learner/skipped_updates"] == 1.0
    assert "learner/loss" not in report.metrics
    assert exported(rank) == before
    assert update(rank).optimizer_step == 1
    update(rank, broken)
    update(rank, broken)
    with pytest.raises(LearnerError, match="3 optimizer steps in a row"):
        update(rank, broken)


def test_an_exported_folder_starts_a_learner_with_the_same_weights(folder, tmp_path):
    rank = started(folder)
    update(rank)
    rank.export_hf(tmp_path)
    assert exported(started(tmp_path)) == exported(rank)


def test_without_a_kl_coefficient_no_reference_is_held(folder):
    report = update(started(folder, kl_coefficient=0.0))
    assert report.metrics["learner/reference_kl"] == 0.0
    assert report.metrics["time/learner_reference_s"] < 0.01


def test_figures_are_means_over_applied_steps_and_the_mismatch_is_the_firsts():
    def step(loss, mismatch, ratio_max, is_applied):
        return {
            "num_tokens": 10.0,
            "loss": loss,
            "mismatch": mismatch,
            "mismatch_max": 2 * mismatch,
            "ratio_max": ratio_max,
            "is_applied": is_applied,
        }

    figures = summarize_steps([step(1.0, 0.1, 1.5, 1.0), step(math.nan, 9.0, 9.0, 0.0), step(3.0, 0.5, 2.5, 1.0)])
    assert figures == {
        "num_steps": 2.0,
        "num_tokens": 30.0,
        "loss": 2.0,
        "mismatch": 0.1,
        "mismatch_max": 0.2,
        "ratio_max": 2.5,
    }
