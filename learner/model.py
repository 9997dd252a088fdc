"""The policy: loading it, and the log-probabilities of what it said.

Legend: B rows, T tokens of a padded row, N predicted (completion) tokens, M image placeholders, S visual tokens of the
distinct views, P patches, D values of a patch, W width of the language model, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2_5_VLForConditionalGeneration

from learner.vision import Grid, PatchProjection, encode_views, install_fast_vision_attention, patchify

__all__ = ["Policy", "PolicyInputs", "install_fast_vision_attention", "load_policy", "patchify", "token_logprobs"]

FORBIDDEN_LOGIT = -1e30
"""Logit of an id that the sampler may not draw: its probability is exactly 0, and 0 * logit stays finite."""
MAX_LOGITS = 2**27
"""Most logits in memory at a time (512 MiB in float32); more are computed in chunks, and again in the backward pass."""


class PolicyInputs(Protocol):
    """What the forward pass reads of a micro-batch (`learner.collate.MicroBatch`)."""

    @property
    def token_ids_BT(self) -> Tensor: ...
    @property
    def positions_3BT(self) -> Tensor:
        """Temporal, row and column position of each token."""

    @property
    def patches_PD(self) -> Tensor:
        """Of the distinct views."""

    @property
    def grids(self) -> tuple[Grid, ...]: ...
    @property
    def placeholder_at_M(self) -> Tensor:
        """Flat index into [B * T] of each image placeholder."""

    @property
    def feature_of_M(self) -> Tensor:
        """Which of the S visual tokens stands at each placeholder."""

    @property
    def predicted_from_N(self) -> Tensor:
        """Flat index into [B * T] of the position that predicts each completion token."""

    @property
    def target_ids_N(self) -> Tensor: ...


def load_policy(
    path: str | Path,
    *,
    load: Literal["weights", "random"] = "weights",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Qwen2_5_VLForConditionalGeneration:
    """The model of a local Hugging Face folder, in training mode, with the fast vision tower.

    `random` draws the weights on the device from config.json alone.

    Raises:
        ValueError: no local folder, code in the folder (`auto_map`), or another family of models.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise ValueError(f"model.path={str(path)!r} cannot work: no config.json there; give a local model folder")
    settings = json.loads((folder / "config.json").read_text())
    if "auto_map" in settings:
        raise ValueError(f"model.path={str(path)!r} cannot work: its config.json has auto_map, which runs foreign code")
    if settings.get("model_type") != "qwen2_5_vl":
        raise ValueError(f"model.path={str(path)!r} cannot work: a {settings.get('model_type')!r} is not a qwen2_5_vl")
    install_fast_vision_attention()
    if load == "random":
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")
    else:
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, attn_implementation="sdpa"
        )
        nn.Module.to(model, device)
    assert isinstance(model, Qwen2_5_VLForConditionalGeneration), type(model)
    model.model.visual.patch_embed.proj.__class__ = PatchProjection
    model.train()
    return model


def token_logprobs(
    model: Any, batch: PolicyInputs, *, temperature: float, forbidden_ids: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Log-probability of each completion token and entropy of the distribution it came from, [N] float32 each.

    The distribution is the sampler's: logits over temperature, forbidden ids left out. Rows are padded on the right
    and attention is causal, so that no token sees padding and no mask is needed.
    """
    core = model.model
    embeddings_BTW = core.language_model.embed_tokens(batch.token_ids_BT)
    features_SW = encode_views(core.visual, batch.patches_PD, batch.grids).to(embeddings_BTW.dtype)
    rows, length, width = embeddings_BTW.shape
    flat = embeddings_BTW.reshape(-1, width).index_copy(0, batch.placeholder_at_M, features_SW[batch.feature_of_M])
    hidden_BTW = core.language_model(
        inputs_embeds=flat.reshape(rows, length, width), position_ids=batch.positions_3BT, use_cache=False
    ).last_hidden_state
    hidden_NW = hidden_BTW.reshape(-1, width)[batch.predicted_from_N]
    forbidden = torch.tensor(list(forbidden_ids), dtype=torch.long, device=hidden_NW.device)
    chunk = max(1, MAX_LOGITS // model.config.text_config.vocab_size)
    pieces = [
        _score(model.lm_head, hidden, targets, forbidden, temperature, recompute=len(hidden_NW) > chunk)
        for hidden, targets in zip(torch.split(hidden_NW, chunk), torch.split(batch.target_ids_N, chunk), strict=True)
    ]
    logprobs, entropies = zip(*pieces, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _score(
    head: nn.Module, hidden_NW: Tensor, targets_N: Tensor, forbidden: Tensor, temperature: float, *, recompute: bool
) -> tuple[Tensor, Tensor]:
    def score(hidden: Tensor) -> tuple[Tensor, Tensor]:
        logits_NV = head(hidden).float() / temperature
        if len(forbidden):
            logits_NV = logits_NV.index_fill(1, forbidden, FORBIDDEN_LOGIT)
        logprobs_NV = F.log_softmax(logits_NV, dim=-1)
        entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
        return logprobs_NV.gather(1, targets_N[:, None]).squeeze(1), entropy_N

    if recompute and torch.is_grad_enabled():
        scored: tuple[Tensor, Tensor] = checkpoint(score, hidden_NW, use_reentrant=False)
        return scored
    return score(hidden_NW)


class Policy(nn.Module):
    """The model behind one call, so that whatever wraps it sees a single forward pass per micro-batch."""

    def __init__(self, model: Any, *, temperature: float, forbidden_ids: Sequence[int]) -> None:
        super().__init__()
        self.model: Any = model
        self.temperature = temperature
        self.forbidden_ids = tuple(forbidden_ids)

    def forward(self, batch: PolicyInputs) -> tuple[Tensor, Tensor]:
        return token_logprobs(self.model, batch, temperature=self.temperature, forbidden_ids=self.forbidden_ids)
