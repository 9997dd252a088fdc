"""The policy: loading, and log-probabilities of its completions.

Legend: B rows, T tokens of a padded row, N predicted (completion) tokens, M image placeholders, S visual tokens of the
distinct views, P patches, D values of a patch, W width of the language model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2_5_VLForConditionalGeneration
from transformers.initialization import no_init_weights

from learner.collate import MicroBatch
from learner.loading import CheckpointWeights, RandomWeights, fill
from learner.scoring import ScoringHead
from learner.vision import PatchProjection, encode_views, install_fast_vision_attention


def load_policy(
    path: str | Path,
    *,
    load: Literal["weights", "random"] = "weights",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
    construction: AbstractContextManager[object] | None = None,
) -> Qwen2_5_VLForConditionalGeneration:
    """The model of a local Hugging Face folder, in training mode, with the layers that `use_fast_layers` puts in.

    Args:
        load: `random` draws the weights on the device, from config.json and the seed alone.
        construction: in which the parameters are made, to shard them at once (`learner.engine.construction`).

    Raises:
        ValueError: no local folder, code in the folder (`auto_map`), another family of models, or weights that do not
            fit the model.
    """
    folder, device = Path(path), torch.device(device)
    _check_family(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    # The library's own initialization would draw whole parameters, only to be overwritten.
    with no_init_weights(), torch.device(device), construction or nullcontext():
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")
    assert isinstance(model, Qwen2_5_VLForConditionalGeneration), type(model)
    model.tie_weights()
    if load == "random":
        fill(model, RandomWeights(config, seed=seed, dtype=dtype, device=device))
    else:
        stored = CheckpointWeights(folder)
        stored.check_names(model)
        fill(model, stored)
    use_fast_layers(model)
    model.train()
    return model


def _check_family(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ValueError(f"model.path={str(folder)!r} is invalid: no config.json there; give a local model folder")
    settings = json.loads((folder / "config.json").read_text())
    if "auto_map" in settings:
        raise ValueError(
            f"model.path={str(folder)!r} is invalid: its config.json has auto_map, which would run third-party code"
        )
    if settings.get("model_type") != "qwen2_5_vl":
        found = settings.get("model_type")
        raise ValueError(f"model.path={str(folder)!r} is invalid: model_type must be qwen2_5_vl, not {found!r}")


def use_fast_layers(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Replace vision attention, patch projection and output layer by our own; weights are unchanged."""
    install_fast_vision_attention()
    model.model.visual.patch_embed.proj.__class__ = PatchProjection
    model.lm_head.__class__ = ScoringHead


def hidden_states(
    model: Any, token_ids_BT: Tensor, positions_3BT: Tensor, placeholder_at_M: Tensor, features_MW: Tensor
) -> Tensor:
    """Last hidden states [B * T, W] of rows whose image placeholders are replaced by these features.

    Rows are padded on the right and attention is causal, so that no token sees padding and no mask is needed.
    """
    language = model.model.language_model
    embeddings_BTW = language.embed_tokens(token_ids_BT)
    width = embeddings_BTW.shape[-1]
    merged = embeddings_BTW.reshape(-1, width).index_copy(0, placeholder_at_M, features_MW.to(embeddings_BTW.dtype))
    hidden_BTW: Tensor = language(
        inputs_embeds=merged.reshape(embeddings_BTW.shape), position_ids=positions_3BT, use_cache=False
    ).last_hidden_state
    return hidden_BTW.reshape(-1, width)


def token_logprobs(
    model: Any, batch: MicroBatch, *, temperature: float, forbidden_ids: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Log-probability of each completion token and entropy of the distribution it came from, [N] float32 each.

    The distribution is the sampler's: logits over temperature, forbidden ids left out. `model` is one that
    `load_policy` gave. Each of its modules is called once, whatever the batch holds.
    """
    features_SW = encode_views(model.model.visual, batch.patches_PD, batch.grids)
    hidden_NW = hidden_states(
        model, batch.token_ids_BT, batch.positions_3BT, batch.placeholder_at_M, features_SW[batch.feature_of_M]
    )[batch.predicted_from_N]
    forbidden = torch.tensor(list(forbidden_ids), dtype=torch.long, device=hidden_NW.device)
    scores: tuple[Tensor, Tensor] = model.lm_head(hidden_NW, batch.target_ids_N, forbidden, temperature)
    return scores


class Policy(nn.Module):
    """The model as one module, so that a wrapper sees a single forward pass per micro-batch."""

    def __init__(self, model: Any, *, temperature: float, forbidden_ids: Sequence[int]) -> None:
        super().__init__()
        self.model: Any = model
        self.temperature = temperature
        self.forbidden_ids = tuple(forbidden_ids)

    def forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        return token_logprobs(self.model, batch, temperature=self.temperature, forbidden_ids=self.forbidden_ids)
