"""M11: the engine's log-probabilities of two-turn episodes against the learner's, in bfloat16, at the 3B shape.

    python -m pytest -n 0 -s -m gpu tests/gpu/test_agreement.py

About two minutes on one H200. Pictures of several sizes, so that a resize or a position that only one side gets right
shows; no Ray. KL is the k3 estimate over the engine's own samples. As a control, the learner sees mirrored pictures.
"""

import asyncio

import numpy as np
import pytest
import torch

from actors.episode import PlayedGroup, SampleRef
from actors.images import num_visual_tokens
from actors.prompts import load_tokenizer, vision_token_ids
from learner.advantage import group_advantages
from learner.batch import TrainingGroup
from learner.collate import Collator
from learner.hf_folder import save_hf
from learner.model import load_policy, token_logprobs
from learner.plan import plan_mini_batches
from learner.segments import choose_kernel
from tests.bench.model_shape import write_shape
from tests.bench.playing import bench_config, noise_views, start_player
from tests.learner.builders import features_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(600),
]
SIZES = ((224, 224), (1008, 1008), (448, 1344), (1512, 560))
NUM_EPISODES = 8
NUM_TOKENS = 64


def random_model(folder, shape="3b", *, num_layers=None, dtype=torch.bfloat16, device="cuda"):
    """A policy with random weights, and its folder as vLLM loads it."""
    source = folder / "shape"
    write_shape(shape, source, num_layers=num_layers)
    policy = load_policy(source, load="random", dtype=dtype, device=device, seed=3)
    with torch.no_grad():
        policy.model.language_model.norm.weight.mul_(4)  # random logits are flat: no mistake would show in them
    save_hf(policy.named_parameters(), folder / "model", source=source)
    return policy, folder / "model"


async def played(config):
    """(episodes, pixels of the full view) of each picture; about half of the episodes ask."""
    player = await start_player(config)
    try:
        views = noise_views(player.spec, SIZES)
        groups = await player.asking(0.5).play(views, num_episodes=NUM_EPISODES, max_tokens=NUM_TOKENS)
    finally:
        player.engine.shutdown()
    return player.spec, [(group, np.asarray(view.full.picture)) for group, view in zip(groups, views, strict=True)]


def training_group(index, episodes, pixels, spec):
    height, width = pixels.shape[:2]
    rewards = (1.0, 0.0) * (len(episodes) // 2)
    group = PlayedGroup(
        ref=SampleRef(dataset="noise", row=index, uid=f"0-{index}"),
        question="",
        answer="",
        needs_full=None,
        episodes=episodes,
        full_size=(height, width),
        num_full_tokens=num_visual_tokens(height, width, spec),
        image_sha256=str(index),
    )
    return TrainingGroup(played=group, rewards=rewards, advantages=group_advantages(rewards), image=pixels)


def log_ratios(policy, group, spec, forbidden_ids):
    """Learner minus engine, of every token that the group sampled."""
    (plan,) = plan_mini_batches(
        [group],
        prompts_per_mini_batch=1,
        num_ranks=1,
        max_tokens_per_micro_batch=16384,
        max_tokens_per_vision_pass=16384,
    )
    collator = Collator(
        [group.image],
        spec,
        image_token_id=policy.config.image_token_id,
        kernel=choose_kernel(policy.device.type, policy.dtype),
    )
    (piece,), found = plan.mini_batches, []
    with torch.no_grad():
        features = features_of(policy, [collator.vision_pass(v).to(policy.device) for v in piece.vision_passes])
        for families in piece.micro_batches:
            batch = collator.micro_batch(families).to(policy.device)
            logprobs_N, _ = token_logprobs(policy, batch, features, temperature=1.0, forbidden_ids=forbidden_ids)
            found.append((logprobs_N.float() - batch.sampler_logprobs_N).cpu())
    return torch.cat(found)


def mean_kl(ratios_N):
    """k3: E[exp(r) - 1 - r] over the engine's samples is KL(engine || learner)."""
    return (ratios_N.exp() - 1 - ratios_N).mean().item()


def compare(config, policy):
    """(log ratios [N], those with mirrored pictures [N]) over all groups."""
    forbidden_ids = vision_token_ids(load_tokenizer(config.model.path))
    spec, groups = asyncio.run(played(config))
    found, mirrored = [], []
    for index, (episodes, pixels) in enumerate(groups):
        ratios = log_ratios(policy, training_group(index, episodes, pixels, spec), spec, forbidden_ids)
        control = np.ascontiguousarray(pixels[:, ::-1])
        mirrored.append(log_ratios(policy, training_group(index, episodes, control, spec), spec, forbidden_ids))
        found.append(ratios)
        asked = sum(episode.asked for episode in episodes)
        print(
            f"\n{pixels.shape[0]}x{pixels.shape[1]}: {asked}/{len(episodes)} asked, {len(ratios)} tokens, "
            f"mean gap {ratios.abs().mean():.2g}, largest {ratios.abs().max():.2g}, KL {mean_kl(ratios):.2g}, "
            f"mirrored {mean_kl(mirrored[-1]):.2g}"
        )
    return torch.cat(found), torch.cat(mirrored)


def test_engine_and_learner_agree_in_bfloat16_over_two_turns(tmp_path):
    policy, folder = random_model(tmp_path)
    config = bench_config(
        "tiny", side=1008, on_gpu=True, overrides=[f"model.path={folder}", "rollout.gpu_memory_fraction=0.4"]
    )
    ratios, mirrored = compare(config, policy)
    clipped = ((ratios.exp() - 1).abs() > 0.2).float().mean().item()
    print(f"all: mean gap {ratios.abs().mean():.2g}, KL {mean_kl(ratios):.2g}, ratio outside 0.8 to 1.2: {clipped:.2%}")
    assert len(ratios) >= len(SIZES) * NUM_EPISODES * NUM_TOKENS / 2
    assert mean_kl(ratios) <= 1e-3
    assert mean_kl(mirrored) > 10 * mean_kl(ratios)
