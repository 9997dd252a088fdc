import math

import pytest
import torch

from configs.schema import LearnerConfig, ModelConfig, WeightsConfig
from learner.batch import plan_mini_batches
from learner.model import load_policy, token_logprobs
from learner.worker import LearnerRank
from tests.learner.builders import FORBIDDEN_IDS, collated, images_of, make_group, save_model, small_model

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


def whole_plan(budget=10**6):
    return plan_mini_batches(GROUPS, prompts_per_mini_batch=4, num_ranks=1, max_tokens_per_micro_batch=budget)[0]


def sent_digests(rank):
    rank.open_weights(1)
    sent = rank.send_weights()
    rank.close_weights()
    return sent.digests


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 5e-2)])
def test_the_gpu_gives_the_logprobs_of_the_cpu(folder, dtype, tolerance):
    plan = whole_plan()
    batch = collated(plan.mini_batches[0][0], images_of(plan, GROUPS))
    expected = token_logprobs(load_policy(folder), batch, temperature=1.0, forbidden_ids=FORBIDDEN_IDS)
    model = load_policy(folder, dtype=dtype, device="cuda")
    found = token_logprobs(model, batch.to(torch.device("cuda")), temperature=1.0, forbidden_ids=FORBIDDEN_IDS)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.cpu() - theirs).abs().mean().item() < tolerance


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
        gradient_checkpointing=True,
        learning_rate=1e-4,
    )
    plan = whole_plan(800)

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
    rank.save(tmp_path)
    resumed = started()
    assert resumed.load(tmp_path) == 3
    assert sent_digests(resumed) == sent_digests(rank)
