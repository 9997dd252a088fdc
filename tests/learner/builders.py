"""Small models and groups of episodes with pictures, made from a seed: what the learner's tests work on."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2VLImageProcessor
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen3_vl import modeling_qwen3_vl

from actors.episode import Episode, EpisodeId, PlayedGroup, SampleRef, Status, Turn, VersionSpan
from actors.images import ViewSpec
from actors.views import Crop, cut_view, tokens_of
from configs.objectives import GRPO
from learner.advantage import group_advantages
from learner.batches.batch import TrainingGroup
from learner.batches.collate import Collator
from learner.batches.family import share
from learner.batches.plan import plan_mini_batches
from learner.families.architectures import encode_views

TINY = Path(__file__).parents[2] / "configs" / "tiny"
IMAGE_ID, VIDEO_ID, START_ID, END_ID, FIRST_WORD = 5, 6, 3, 4, 10
FORBIDDEN_IDS = (START_ID, END_ID, IMAGE_ID, VIDEO_ID)
SPEC = ViewSpec(patch_size=14, merge_size=2, min_pixels=56 * 56, max_pixels=448 * 448)
HALF = (0.5, 0.5, 0.5)
SPECS = {
    "qwen2_5_vl": SPEC,
    "qwen3_vl": replace(SPEC, patch_size=16, min_pixels=64 * 64, max_pixels=512 * 512, mean=HALF, std=HALF),
}
"""By family."""
TEXT = {
    "qwen2_5_vl": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}},
    "qwen3_vl": {
        # Heads of another width than that of the model by their number.
        "head_dim": 32,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]},
    },
}
VISION = {
    "qwen2_5_vl": {"fullatt_block_indexes": [1, 3], "window_size": 112},
    # Fewer places on the grid of positions than some pictures have patches, and more than others.
    "qwen3_vl": {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 10**2},
}
LIBRARY = [
    (owner, name, getattr(owner, name))
    for owner, name in (
        (modeling_qwen2_5_vl.Qwen2_5_VLVisionAttention, "forward"),
        (modeling_qwen2_5_vl, "apply_rotary_pos_emb"),
        (modeling_qwen3_vl.Qwen3VLVisionAttention, "forward"),
        (modeling_qwen3_vl.Qwen3VLTextModel, "_deepstack_process"),
        (modeling_qwen3_vl, "apply_rotary_pos_emb"),
    )
]
"""What our layers replace for all models of a process, as the library has it."""


def restore_library():
    """Undo what our layers have replaced."""
    for owner, name, original in LIBRARY:
        setattr(owner, name, original)


def small_model(*, family="qwen2_5_vl", width=32, vision_width=32, layers=2, vocab_size=96, seed=0, tied=True):
    text = {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        # What is added behind the last layer at a picture's places would reach no other.
        "num_hidden_layers": max(layers, 1 + len(VISION[family].get("deepstack_visual_indexes", ()))),
        "num_attention_heads": width // 16,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": tied,
        "initializer_range": 0.08,
        "bos_token_id": None,
        "eos_token_id": 2,
        **TEXT[family],
    }
    vision = {
        "depth": layers,
        "hidden_size": vision_width,
        "intermediate_size": 2 * vision_width,
        "num_heads": vision_width // 16,
        "out_hidden_size": width,
        "patch_size": SPECS[family].patch_size,
        "spatial_merge_size": 2,
        "initializer_range": 0.08,
        **VISION[family],
    }
    torch.manual_seed(seed)
    return AutoModelForImageTextToText.from_config(
        AutoConfig.for_model(
            family,
            text_config=text,
            vision_config=vision,
            tie_word_embeddings=tied,
            image_token_id=IMAGE_ID,
            video_token_id=VIDEO_ID,
            vision_start_token_id=START_ID,
            vision_end_token_id=END_ID,
        ),
        dtype=torch.float32,
    )


def draw_words(rng, count, vocab_size):
    return tuple(rng.randrange(FIRST_WORD, vocab_size) for _ in range(count))


def draw_crops(rng, size, count, token_side):
    """Boxes of whole visual tokens."""
    rows, columns = size[0] // token_side, size[1] // token_side
    for _ in range(count):
        top, left = rng.randrange(rows), rng.randrange(columns)
        bottom, right = rng.randint(top + 1, rows), rng.randint(left + 1, columns)
        left, top, right, bottom = (at * token_side for at in (left, top, right, bottom))
        yield Crop(left=left, top=top, right=right, bottom=bottom)


def make_episode(rng, *, prompts, views, index, num_words, vocab_size) -> Episode:
    """An episode about a picture that is shown these views; None is a turn without one.

    `prompts` is what a turn with a view adds, with the visual tokens in it: the same in all episodes of a group.
    """
    prompt, turns = (), []
    for view in views:
        added, num_visual_tokens = prompts[view]
        prompt += added
        spoken = draw_words(rng, rng.randint(num_words // 2, num_words), vocab_size)
        turns.append(
            Turn(
                prompt_ids=prompt,
                completion_ids=spoken,
                logprobs=tuple(-rng.uniform(3.0, 6.0) for _ in spoken),
                version_spans=(VersionSpan(version=0, num_tokens=len(spoken)),),
                finish_reason="stop",
                text="",
                view=view,
                num_visual_tokens=num_visual_tokens,
            )
        )
        prompt += spoken
    return Episode(
        id=EpisodeId(run="test", step=0, sample="0:0", index=index, attempt=0),
        turns=tuple(turns),
        status=Status.ANSWERED,
        answer="red",
        is_well_formed=True,
    )


def make_group(
    seed,
    *,
    group_size=4,
    size=(112, 112),
    ask_share=0.5,
    lost=(),
    num_words=12,
    vocab_size=96,
    num_calls=0,
    spec=SPEC,
) -> TrainingGroup:
    """G episodes about one picture; rewards at the places in `lost` are missing.

    `size` is that of the picture where visual tokens are 28 pixels wide; with others it has as many of them.

    The smaller the vocabulary, the more their replies have in common. An episode makes up to `num_calls` calls between
    the quarter view and the full one: some show a crop, others are refused.
    """
    rng = random.Random(seed)
    size = tuple(side // SPEC.token_side * spec.token_side for side in size)
    crops = [*draw_crops(rng, size, 2, spec.token_side), None] if num_calls else []
    prompts = {}
    for view in ("quarter", "full", *crops):
        count = tokens_of(view, size, spec.token_side) if view is not None else 0
        before, after = draw_words(rng, 4, vocab_size), draw_words(rng, rng.randint(4, 10), vocab_size)
        picture = (START_ID, *[IMAGE_ID] * count, END_ID) if count else ()
        prompts[view] = ((*before, *picture, *after), count)

    def views():
        between = [rng.choice(crops) for _ in range(rng.randint(0, num_calls))] if num_calls else []
        return ("quarter", *between, *(["full"] if rng.random() < ask_share else []))

    episodes = tuple(
        make_episode(
            rng,
            prompts=prompts,
            views=views(),
            index=index,
            num_words=num_words,
            vocab_size=vocab_size,
        )
        for index in range(group_size)
    )
    rewards = tuple(None if i in lost else rng.choice((0.0, 0.5, 1.4, 1.5)) for i in range(group_size))
    return TrainingGroup(
        played=PlayedGroup(
            ref=SampleRef(dataset="test", row=seed, uid=f"0:{seed}"),
            question="what colour is the shape?",
            answer="red",
            needs_full=None,
            episodes=episodes,
            full_size=size,
            num_full_tokens=tokens_of("full", size, spec.token_side),
            image_sha256="",
        ),
        rewards=rewards,
        advantages=group_advantages(rewards),
        image=np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8),
    )


def plan_of(groups, *, prompts=None, ranks=1, budget=10**6, vision=10**6, num_before=0, objective=GRPO):
    """The plans of all ranks; by default everything in one pass."""
    return plan_mini_batches(
        groups,
        prompts_per_mini_batch=prompts or len(groups),
        num_ranks=ranks,
        max_tokens_per_micro_batch=budget,
        max_tokens_per_vision_pass=vision,
        num_before=num_before,
        objective=objective,
    )


def images_of(plan, groups):
    """Full views that a plan refers to."""
    return [groups[index].image for index in plan.image_groups]


def collator_of(images, spec=SPEC):
    return Collator(images, spec, image_token_id=IMAGE_ID, kernel="padded")


def collated(piece, images, spec=SPEC):
    """The vision passes and the micro-batches of a piece, as tensors."""
    collator = collator_of(images, spec)
    passes = [collator.vision_pass(each) for each in piece.vision_passes]
    return passes, [collator.micro_batch(families) for families in piece.micro_batches]


def pieces_of(plans, groups, spec=SPEC):
    """(vision passes, micro-batches) of the first mini-batch, per rank."""
    return [collated(plan.mini_batches[0], images_of(plan, groups), spec) for plan in plans]


def features_of(model, passes):
    return torch.cat([encode_views(model, each.patches_PD, each.grids) for each in passes])


def rows_of(plans, mini_batch=0):
    """Episodes of a mini-batch over all ranks, dummies included."""
    return [
        row
        for plan in plans
        for families in plan.mini_batches[mini_batch].micro_batches
        for family in families
        for row in family.rows
    ]


def without_pictures(row):
    """A planned episode as plain text: its image placeholders are taken out."""
    kept = row.token_ids != IMAGE_ID
    return replace(
        row,
        token_ids=row.token_ids[kept],
        generated_at=(np.cumsum(kept) - 1)[row.generated_at],
        prompts=(),
    )


def piece_without_pictures(piece):
    """A piece as plain text; its vision passes are as many, and empty."""
    return replace(
        piece,
        micro_batches=tuple(
            tuple(share([without_pictures(row) for row in family.rows]) for family in families)
            for families in piece.micro_batches
        ),
        vision_passes=tuple(replace(each, views=()) for each in piece.vision_passes),
    )


def library_processor(spec):
    """The library's image processor, which resizes nothing."""
    return Qwen2VLImageProcessor(
        min_pixels=1, max_pixels=10**9, patch_size=spec.patch_size, image_mean=list(spec.mean), image_std=list(spec.std)
    )


def library_logprobs(model, episode, image, *, temperature=1.0):
    """[(position, log-probability, entropy)] of an episode's generated tokens, through the library alone.

    Its image processor, its positions, its whole forward pass with all logits: slow, and nothing in it is ours.
    """
    processor = library_processor(SPECS[model.config.model_type])
    views = [cut_view(image, turn.view) for turn in episode.turns if turn.view is not None]
    pictures = processor(images=views, return_tensors="pt")
    token_ids = torch.tensor([episode.token_ids])
    logits = model(
        input_ids=token_ids,
        attention_mask=torch.ones_like(token_ids),
        mm_token_type_ids=(token_ids == IMAGE_ID).int(),
        pixel_values=pictures["pixel_values"],
        image_grid_thw=pictures["image_grid_thw"],
    ).logits[0]
    allowed = [token for token in range(logits.shape[1]) if token not in FORBIDDEN_IDS]
    logprobs = torch.log_softmax(logits[:, allowed].float() / temperature, dim=-1)
    found = []
    for turn in episode.turns:
        for at, token in enumerate(turn.completion_ids, start=len(turn.prompt_ids)):
            row = logprobs[at - 1]
            found.append((at, row[allowed.index(token)], -(row.exp() * row).sum()))
    return found


def save_model(folder, model, spec=SPEC):
    """A model folder as a learner loads it: the model, and the tokenizer of the tiny model."""
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TINY / name, folder / name)
    processor = json.loads((TINY / "preprocessor_config.json").read_text())
    processor |= {"image_mean": spec.mean, "image_std": spec.std, "patch_size": spec.patch_size}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
