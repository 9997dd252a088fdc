"""A learner of one rank in this process, and what its tests do with it."""

from dataclasses import replace

import torch

from actors.weights.digest import bucket_digest
from configs.learner import LearnerConfig, WeightsConfig
from configs.schema import ModelConfig
from learner.worker import LearnerRank
from tests.learner.builders import (
    images_of,
    make_group,
    plan_of,
)

GROUPS = [make_group(seed) for seed in range(4)]


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


def gradients_of(rank, plans):
    """What has been accumulated by these plans of one mini-batch, and the metrics of the step."""
    for plan, groups in plans:
        rank.accumulate(plan.mini_batches[0], images_of(plan, groups))
    found = {name: p.grad.clone() for name, p in rank._engine.module.named_parameters() if p.grad is not None}
    return found, rank.step()


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
