"""The policy: loading, and log-probabilities of its completions.

Legend: B rows of T tokens (a packed sequence is one row), U of them read, N predicted (completion) tokens, M image
placeholders, S visual tokens of the views of a piece, W width of the language model, F values of a visual token's
features.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.initialization import no_init_weights

from actors.config_json import read_config_json
from learner.attention import use_packed_attention
from learner.batches.collate import MicroBatch, VisionPass
from learner.batches.segments import Segments
from learner.families.architectures import architecture_of, encode_views
from learner.families.lookup import find_family
from learner.scoring import ScoringHead
from learner.zero.loading import CheckpointWeights, RandomWeights, fill


def load_policy(
    path: str | Path,
    *,
    load: Literal["weights", "random"] = "weights",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
    construction: AbstractContextManager[object] | None = None,
) -> Any:
    """The model of a local Hugging Face folder, in training mode, with the layers that `use_fast_layers` puts in.

    Args:
        load: `random` draws the weights on the device, from config.json and the seed alone.
        construction: in which the parameters are made, to shard them at once (`learner.engine.construction`).

    Raises:
        ValueError: no local folder, code in the folder (`auto_map`), another family of models, sliding windows, or
            weights that do not fit the model.
    """
    folder, device = Path(path), torch.device(device)
    _check_family(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    # The library's own initialization would draw whole parameters, only to be overwritten.
    with no_init_weights(), torch.device(device), construction or nullcontext():
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")
    if "sliding_attention" in getattr(model.config.text_config, "layer_types", ()):
        raise ValueError(f"model.path={str(path)!r} is invalid: sliding-window attention is not supported")
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
    settings = read_config_json(folder)
    if "auto_map" in settings:
        raise ValueError(
            f"model.path={str(folder)!r} is invalid: its config.json has auto_map, which would run third-party code"
        )
    find_family(settings, f"model.path={str(folder)!r}")


def use_fast_layers(model: Any) -> None:
    """Replace attention, norms, patch projection and output layer by our own; weights are unchanged."""
    architecture = architecture_of(model)
    architecture.install()
    use_packed_attention(model.model.language_model)
    model.lm_head.__class__ = ScoringHead
    architecture.use_fast_layers(model)


def hidden_states(
    model: Any,
    token_ids_BT: Tensor,
    positions_3BT: Tensor,
    placeholder_at_M: Tensor,
    features_MF: Tensor,
    segments: Segments | None = None,
    read_at_U: Tensor | None = None,
) -> Tensor:
    """Last hidden states [B * T, W] of rows with these features of the pictures at the placeholders, by flat index; of
    one row those of the tokens `read_at_U` alone [U, W], if they are given.

    Without segments, rows are padded on the right: attention is causal, so that no token sees padding.
    """
    language = model.model.language_model
    embeddings_BTW = language.embed_tokens(token_ids_BT)
    width = embeddings_BTW.shape[-1]
    shown, *deep = torch.split(features_MF.to(embeddings_BTW.dtype), width, dim=1)
    merged = embeddings_BTW.reshape(-1, width).index_copy(0, placeholder_at_M, shown)
    assert len(deep) < len(language.layers), "what is added behind a layer has the places of all tokens"
    hidden_BTW: Tensor = language(
        inputs_embeds=merged.reshape(embeddings_BTW.shape),
        position_ids=positions_3BT,
        use_cache=False,
        segments=segments,
        read_at=read_at_U,
        **architecture_of(model).language_inputs(placeholder_at_M, deep),
    ).last_hidden_state
    return hidden_BTW.reshape(-1, width)


def token_logprobs(
    model: Any, batch: MicroBatch, features_SF: Tensor, *, temperature: float, forbidden_ids: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Log-probability of each completion token and entropy of the distribution it came from, [N] float32 each.

    The distribution is the sampler's: logits over temperature, forbidden ids left out. `model` is one that
    `load_policy` gave, `features_SF` what its tower made of the piece's vision passes. Each module of the language
    model is called once, whatever the batch holds.
    """
    hidden_NW = hidden_states(
        model,
        batch.token_ids_T[None],
        batch.positions_3T[:, None],
        batch.placeholder_at_M,
        features_SF.index_select(0, batch.feature_of_M),
        batch.segments,
        batch.read_at_U,
    )[batch.predicted_from_N]
    forbidden = torch.tensor(list(forbidden_ids), dtype=torch.long, device=hidden_NW.device)
    scores: tuple[Tensor, Tensor] = model.lm_head(hidden_NW, batch.target_ids_N, forbidden, temperature)
    return scores


class Policy(nn.Module):
    """The model as one module, so that a wrapper sees one kind of call: a vision pass or a micro-batch."""

    def __init__(self, model: Any, *, temperature: float, forbidden_ids: Sequence[int]) -> None:
        super().__init__()
        self.model: Any = model
        self.temperature = temperature
        self.forbidden_ids = tuple(forbidden_ids)

    @overload
    def forward(self, batch: VisionPass) -> Tensor: ...
    @overload
    def forward(self, batch: MicroBatch, features_SF: Tensor) -> tuple[Tensor, Tensor]: ...
    def forward(self, batch: VisionPass | MicroBatch, features_SF: Tensor | None = None) -> Any:
        """Features [visual tokens of the pass, F], or the scores of `token_logprobs`."""
        if isinstance(batch, VisionPass):
            return encode_views(self.model, batch.patches_PD, batch.grids, recomputes_blocks=batch.recomputes_blocks)
        assert features_SF is not None, "a micro-batch needs the features of its pictures"
        return token_logprobs(
            self.model, batch, features_SF, temperature=self.temperature, forbidden_ids=self.forbidden_ids
        )
