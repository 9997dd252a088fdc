"""M11: the engine's log-probabilities of two-turn episodes against the learner's, in bfloat16, at published shapes.

    python -m pytest -n 0 -s -m gpu tests/gpu/test_agreement.py             # Qwen2.5-VL 3B, Qwen3-VL 4B
    python -m pytest -n 0 -s -m gpu tests/gpu/test_agreement.py -k qwen3    # the latter alone

About three minutes on one H200 for the 3B shape.

Pictures of several sizes, so that a resize or a position that only one side gets right shows; no Ray. KL is the k3
estimate over the engine's own samples. As a control, the learner sees mirrored pictures.

Random weights give flat distributions, in which a small mistake hardly shows. So the same is done with logits four
times as large, where rounding counts sixteen times as much: there the measure is what rounding to bfloat16 alone costs,
by the learner's own log-probabilities in bfloat16 and in float32.
"""

import asyncio

import numpy as np
import pytest
import torch

from actors.episode import PlayedGroup, SampleRef
from actors.images import num_visual_tokens
from actors.prompts import load_tokenizer, vision_token_ids
from learner.advantage import group_advantages
from learner.batches.batch import TrainingGroup
from learner.batches.collate import Collator
from learner.batches.plan import plan_mini_batches
from learner.batches.segments import choose_kernel
from learner.hf_folder import save_hf
from learner.model import load_policy, token_logprobs
from tests.bench.model_shape import write_shape
from tests.bench.playing import bench_config, noise_views, start_player
from tests.learner.builders import features_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(600),
]
SIZES = ((8, 8), (36, 36), (16, 48), (54, 20))
"""Rows and columns of visual tokens."""
NUM_EPISODES = 8
NUM_TOKENS = 64


def random_model(folder, shape="3b", *, sharpness=1, num_layers=None, dtype=torch.bfloat16, device="cuda", seed=3):
    """A policy with random weights and logits multiplied by `sharpness`, and its folder as vLLM loads it."""
    source = folder / "shape"
    write_shape(shape, source, num_layers=num_layers)
    policy = load_policy(source, load="random", dtype=dtype, device=device, seed=seed)
    with torch.no_grad():
        policy.model.language_model.norm.weight.mul_(sharpness)
    save_hf(policy.named_parameters(), folder / "model", source=source)
    return policy, folder / "model"


async def played(config, prepare=None):
    """(episodes, pixels of the full view) of each picture; about half of the episodes ask."""
    player = await start_player(config)
    try:
        if prepare is not None:
            await prepare(player.engine)
        side = player.spec.token_side
        views = noise_views(player.spec, [(rows * side, columns * side) for rows, columns in SIZES])
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


def compare(config, policy, prepare=None):
    """Log ratios [N] over all groups: of the policy, with mirrored pictures, and of the policy in float32.

    `prepare` is given the engine before it plays.
    """
    forbidden_ids = vision_token_ids(load_tokenizer(config.model.path))
    spec, groups = asyncio.run(played(config, prepare))

    def ratios_of(model, *, mirrors):
        found = []
        for index, (episodes, pixels) in enumerate(groups):
            shown = np.ascontiguousarray(pixels[:, ::-1]) if mirrors else pixels
            found.append(log_ratios(model, training_group(index, episodes, shown, spec), spec, forbidden_ids))
        return found

    found, mirrored = ratios_of(policy, mirrors=False), ratios_of(policy, mirrors=True)
    exact = ratios_of(policy.float(), mirrors=False)
    for (episodes, pixels), ratios, control in zip(groups, found, mirrored, strict=True):
        asked = sum(episode.asked for episode in episodes)
        print(
            f"\n{pixels.shape[0]}x{pixels.shape[1]}: {asked}/{len(episodes)} asked, {len(ratios)} tokens, "
            f"mean gap {ratios.abs().mean():.2g}, largest {ratios.abs().max():.2g}, KL {mean_kl(ratios):.2g}, "
            f"mirrored {mean_kl(control):.2g}"
        )
    return torch.cat(found), torch.cat(mirrored), torch.cat(exact)


@pytest.mark.parametrize(("shape", "sharpness"), [("3b", 1), ("3b", 4), ("qwen3-vl-4b", 1)])
def test_engine_and_learner_agree_in_bfloat16_over_two_turns(tmp_path, shape, sharpness):
    policy, folder = random_model(tmp_path, shape, sharpness=sharpness)
    config = bench_config(
        "tiny", side=1152, on_gpu=True, overrides=[f"model.path={folder}", "rollout.gpu_memory_fraction=0.4"]
    )
    ratios, mirrored, exact = compare(config, policy)
    kl, rounding = mean_kl(ratios), mean_kl(ratios - exact)
    print(f"{shape}, logits x {sharpness}: mean gap {ratios.abs().mean():.2g}, KL {kl:.2g}, of rounding {rounding:.2g}")
    assert len(ratios) >= len(SIZES) * NUM_EPISODES * NUM_TOKENS / 2
    assert mean_kl(mirrored) > 10 * kl
    if sharpness == 1:
        assert kl <= 1e-3
    else:  # each side rounds by itself
        assert kl <= 3 * rounding
