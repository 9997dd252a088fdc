"""One rank learns: an update, its figures, and what may go wrong in it."""

import math
import weakref
from dataclasses import replace

import pytest
import torch

from actors.errors import LearnerError
from actors.prompts import load_tokenizer, vision_token_ids
from configs.objectives import GRPO, OBJECTIVES
from learner.batches.collate import Collator
from learner.loss import LossInputs, policy_loss
from learner.model import load_policy, token_logprobs
from learner.update import summarize_steps
from tests.learner.builders import (
    collated,
    features_of,
    images_of,
    pieces_of,
    plan_of,
)
from tests.learner.one_rank import GROUPS, exported, started, update, with_logprobs

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


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
        num_micro_batches = sum(len(piece.micro_batches) for piece in plan.mini_batches)
        return rank.update(plan, images_of(plan, GROUPS)).metrics, exported(rank), num_micro_batches

    (whole, weights, few), *others = (metrics(budget, stage) for budget, stage in ((400, 1), (80, 1), (400, 3)))
    assert [num > few for *_, num in others] == [True, False], "one of them is packed otherwise"
    for found, same, _ in others:
        for figure in ("loss", "grad_norm", "clipped", "importance_weight"):
            assert found[f"learner/{figure}"] == pytest.approx(whole[f"learner/{figure}"], rel=1e-4, abs=1e-7)
        for tensor, content in weights.items():
            a, b = (torch.frombuffer(bytearray(raw), dtype=torch.float32) for raw in (content, same[tensor]))
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0, msg=tensor)


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
