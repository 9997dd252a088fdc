"""One optimizer step as a plain training script writes it: the peer of `tests.bench.learner_step`.

Padded rows, full logits, every picture once per episode, the library's vision tower and position loop, plain AdamW.

Legend: B rows, T tokens of a padded row, N generated tokens of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

from actors.images import View_HW3
from configs.learner import LearnerConfig
from learner.batches.batch import PlannedEpisode
from learner.batches.collate import cut_views
from learner.loss import LossInputs, policy_loss
from learner.vision import grid_of, patchify
from tests.learner.builders import FORBIDDEN_IDS, IMAGE_ID, SPEC

LIBRARY_ATTENTION = qwen.Qwen2_5_VLVisionAttention.forward


class PlainLoop:
    def __init__(self, folder: Path, config: LearnerConfig) -> None:
        self.model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa")
        self.reference: Any = None
        if config.chosen_objective.kl_coefficient > 0:
            self.reference = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.learning_rate)
        self.config = config

    def update(self, episodes: Sequence[PlannedEpisode], images: Sequence[View_HW3]) -> None:
        ours, qwen.Qwen2_5_VLVisionAttention.forward = qwen.Qwen2_5_VLVisionAttention.forward, LIBRARY_ATTENTION
        for rows in padded_batches(episodes, self.config.max_tokens_per_micro_batch):
            logprobs_N, entropies_N = score(self.model, rows, images)
            reference_N = None
            if self.reference is not None:
                with torch.no_grad():
                    reference_N = score(self.reference, rows, images)[0]
            counts = torch.tensor([len(row.generated_at) for row in rows])
            sampler_logprobs_N = torch.cat([torch.from_numpy(row.sampler_logprobs) for row in rows])
            given = LossInputs(
                logprobs_N=logprobs_N,
                entropy_N=entropies_N,
                sampler_logprobs_N=sampler_logprobs_N,
                proximal_logprobs_N=sampler_logprobs_N,
                reference_logprobs_N=reference_N,
                episode_of_N=torch.arange(len(rows)).repeat_interleave(counts),
                advantages_N=torch.cat([torch.from_numpy(row.advantages) for row in rows]).float(),
                weights_N=torch.cat([torch.from_numpy(row.token_weights) for row in rows]).float(),
            )
            policy_loss(given, self.config.chosen_objective).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        qwen.Qwen2_5_VLVisionAttention.forward = ours


def padded_batches(episodes: Sequence[PlannedEpisode], max_tokens: int) -> Iterator[list[PlannedEpisode]]:
    """Episodes by length, as many at a time as fit with their padding."""
    rows: list[PlannedEpisode] = []
    for episode in sorted(episodes, key=lambda episode: episode.num_tokens):
        if rows and (len(rows) + 1) * episode.num_tokens > max_tokens:
            yield rows
            rows = []
        rows.append(episode)
    yield rows


def score(model: Any, rows: Sequence[PlannedEpisode], images: Sequence[View_HW3]) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy [N] of each generated token."""
    views = [
        cut_views([(row.image, part.view)], images)[row.image, part.view]
        for row in rows
        for part in row.prompts
        if part.view is not None
    ]
    token_ids_BT = pad_sequence([torch.from_numpy(row.token_ids) for row in rows], batch_first=True)
    lengths = torch.tensor([row.num_tokens for row in rows])
    logits_BTV = model(
        input_ids=token_ids_BT,
        attention_mask=(torch.arange(token_ids_BT.shape[1]) < lengths[:, None]).long(),
        mm_token_type_ids=(token_ids_BT == IMAGE_ID).int(),
        pixel_values=torch.cat([patchify(torch.from_numpy(view[None]), SPEC) for view in views]),
        image_grid_thw=torch.tensor([grid_of(view, SPEC) for view in views]),
    ).logits
    logits_BTV[..., list(FORBIDDEN_IDS)] = -1e30
    at = [torch.from_numpy(row.generated_at) for row in rows]
    predicted_NV = F.log_softmax(torch.cat([logits_BTV[b, each - 1] for b, each in enumerate(at)]).float(), dim=-1)
    targets_N = torch.cat([token_ids_BT[b, each] for b, each in enumerate(at)])
    return predicted_NV.gather(1, targets_N[:, None]).squeeze(1), -(predicted_NV.exp() * predicted_NV).sum(-1)
