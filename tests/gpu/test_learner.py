import math

import pytest
import torch

from configs.learner import LearnerConfig, WeightsConfig
from configs.schema import ModelConfig
from learner.batches.collate import Collator
from learner.batches.segments import choose_kernel
from learner.model import load_policy, token_logprobs
from learner.worker import LearnerRank
from tests.learner.builders import (
    FORBIDDEN_IDS,
    IMAGE_ID,
    SPEC,
    features_of,
    images_of,
    make_group,
    plan_of,
    save_model,
    small_model,
)
from tests.learner.saved import save

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore"),
]
GROUPS = [make_group(seed, size=(224, 224)) for seed in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save_model(path, small_model(width=128, vision_width=96, layers=4))
    return path


def collated_for(device_type, dtype):
    """The vision pass and the micro-batch of all groups, for the attention kernel of this device."""
    (plan,) = plan_of(GROUPS)
    kernel = choose_kernel(device_type, dtype)
    collator = Collator(images_of(plan, GROUPS), SPEC, image_token_id=IMAGE_ID, kernel=kernel)
    (views,), (families,) = plan.mini_batches[0].vision_passes, plan.mini_batches[0].micro_batches
    device = torch.device(device_type)
    return collator.vision_pass(views).to(device), collator.micro_batch(families).to(device)


def sent_digests(rank):
    rank.open_weights(1)
    sent = rank.send_weights()
    rank.close_weights()
    return sent.digests


def scores_and_gradients(model, device_type, dtype):
    """Log-probabilities [N], entropies [N], and the gradient of their sum, float32 on the CPU."""
    shown, batch = collated_for(device_type, dtype)
    features = features_of(model, [shown])
    logprobs, entropies = token_logprobs(model, batch, features, temperature=1.0, forbidden_ids=FORBIDDEN_IDS)
    (logprobs.mean() + 0.1 * entropies.mean()).backward()
    gradients = {name: p.grad.float().cpu() for name, p in model.named_parameters()}
    return logprobs.detach().cpu(), entropies.detach().cpu(), gradients


@pytest.mark.parametrize(
    ("dtype", "tolerance", "gradient_tolerance"), [(torch.float32, 1e-3, 1e-2), (torch.bfloat16, 5e-2, 0.1)]
)
def test_the_gpu_gives_the_logprobs_and_gradients_of_the_cpu(folder, dtype, tolerance, gradient_tolerance):
    """In bfloat16 by flash attention with queries and keys of different lengths and shared heads."""
    *expected, expected_gradients = scores_and_gradients(load_policy(folder), "cpu", torch.float32)
    model = load_policy(folder, dtype=dtype, device="cuda")
    *found, gradients = scores_and_gradients(model, "cuda", dtype)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().mean().item() < tolerance
    for name, theirs in expected_gradients.items():
        if theirs.norm() > 1e-4:
            assert (gradients[name] - theirs).norm() / theirs.norm() < gradient_tolerance, name


@pytest.mark.parametrize(
    ("stage", "offload", "dtype"),
    [
        (0, False, "float32"),
        (1, False, "bfloat16"),
        (2, False, "bfloat16"),
        (3, False, "bfloat16"),
        (2, True, "bfloat16"),
    ],
)
def test_updates_are_applied_saved_and_resumed(folder, tmp_path, stage, offload, dtype):
    config = LearnerConfig(
        num_gpus=1,
        zero_stage=stage,
        offload_optimizer=offload,
        prompts_per_mini_batch=4,
        max_tokens_per_micro_batch=800,
        max_tokens_per_vision_pass=80,
        gradient_checkpointing=True,
        learning_rate=1e-4,
    )
    (plan,) = plan_of(GROUPS, budget=800, vision=80)

    def started():
        rank = LearnerRank(
            config,
            ModelConfig(path=str(folder), dtype=dtype),
            rank=0,
            world_size=1,
            seed=0,
            temperature=1.0,
            weights=WeightsConfig(),
            transport="shared_memory",
        )
        rank.start(*rank.rendezvous())
        return rank

    rank = started()
    reports = [rank.update(plan, images_of(plan, GROUPS)) for _ in range(3)]
    assert [report.optimizer_step for report in reports] == [1, 2, 3]
    assert all(math.isfinite(value) for report in reports for value in report.metrics.values())
    assert reports[2].metrics["learner/reference_kl"] > 0
    disturbed = started()
    (part,) = plan_of(GROUPS[:1], prompts=4, budget=800, vision=80)
    for expected in reports:
        disturbed.begin()
        disturbed.learn(part, images_of(part, GROUPS[:1]))
        found = disturbed.update(plan, images_of(plan, GROUPS))
        assert (found.optimizer_step, found.metrics["learner/skipped_updates"]) == (expected.optimizer_step, 0)
        norms = [report.metrics["learner/grad_norm"] for report in (found, expected)]
        assert norms[0] == pytest.approx(norms[1], rel=0.02), "what was not finished is not in it"
    name = save(tmp_path, [rank])
    resumed = started()
    assert resumed.load(str(tmp_path), name) == 3
    assert sent_digests(resumed) == sent_digests(rank)
