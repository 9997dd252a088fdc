"""Token budget of an engine step: a pure function of the model, the image size and the GPU memory.

On a large GPU vLLM chooses 16,384 tokens for its `LLM` class but 2,048 for the asynchronous engine, and as many visual
tokens for the encoder's cache: fewer than one view of 4 megapixels has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from actors.config_json import read_config_json, text_settings, vision_settings
from actors.images import ViewSpec
from configs.schema import RolloutConfig

MOST_TOKENS = 16_384
"""Saturates a GPU; more would delay the decoding of other turns."""
FEWEST_TOKENS = 2_048
"""Used on CPU and on GPUs with little memory."""
ACTIVATION_SHARE = 1 / 20
"""Fraction of GPU memory for the activations of one step."""
CACHE_SHARE = 1 / 50
"""Fraction of GPU memory for encoded images."""
CPU_CACHE_SHARE = 1 / 8
"""Bytes of encoded images of a CPU engine, as a fraction of its KV cache's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWidths:
    """Model widths that determine the memory per token."""

    hidden: int
    intermediate: int
    vision_hidden: int
    vision_intermediate: int
    merge_size: int
    """Patches per side of a visual token."""
    num_features: int = 1
    """Features of a visual token, each as wide as the language model: more than one with deep-stack features."""

    @classmethod
    def from_model(cls, path: str) -> Self:
        """From a model folder's `config.json`; ValueError when a width is missing."""
        try:
            return cls.from_config(read_config_json(path))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"model.path={path!r} is invalid: its config.json has no {error}; "
                "give a folder of a vision-language model"
            ) from error

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """From the content of a `config.json`; KeyError when a width is missing."""
        text, vision = text_settings(config), vision_settings(config)
        return cls(
            hidden=int(text["hidden_size"]),
            intermediate=int(text["intermediate_size"]),
            vision_hidden=int(vision["hidden_size"]),
            vision_intermediate=int(vision["intermediate_size"]),
            merge_size=int(vision["spatial_merge_size"]),
            num_features=1 + len(vision.get("deepstack_visual_indexes", ())),
        )

    @property
    def features(self) -> int:
        """Values of a visual token's features."""
        return self.num_features * self.hidden

    @property
    def values_per_token(self) -> int:
        """Activations that live at the same time for one token, in the language model or, if more, in the tower."""
        patches = self.merge_size**2
        return max(
            4 * self.hidden + 2 * self.intermediate,
            patches * (4 * self.vision_hidden + 2 * self.vision_intermediate),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBudget:
    """Limits of one engine, in tokens."""

    per_step: int
    """Prompt and generated tokens per step."""
    encoder_per_step: int
    """Visual tokens encoded per step."""
    encoder_cache: int
    """Visual tokens kept in the encoder cache for later turns."""


def token_budget(
    rollout: RolloutConfig,
    widths: ModelWidths,
    spec: ViewSpec,
    *,
    bytes_per_value: int,
    gpu_memory: int | None,
) -> TokenBudget:
    """The limits for an engine; `gpu_memory` is the memory in bytes of each of its GPUs, None on a CPU.

    Raises:
        ValueError: `rollout.max_prefill_tokens` is set and too small.
    """
    check_max_prefill_tokens(rollout, spec)
    view, turns = most_view_tokens(spec), most_turns(rollout)
    per_step = rollout.max_prefill_tokens
    if not per_step:
        per_step = FEWEST_TOKENS
        if gpu_memory is not None:
            room = int(ACTIVATION_SHARE * gpu_memory / (widths.values_per_token * bytes_per_value))
            per_step = min(max(room // 1024 * 1024, FEWEST_TOKENS), MOST_TOKENS)
        per_step = max(min(per_step, turns * rollout.max_model_len), view, turns)
    # The full view and the quarter of every group in flight: each is shown again in every turn of the group.
    wanted = rollout.max_groups_in_flight * (view + view // 4)
    memory = rollout.kv_cache_gib * 2**30 * CPU_CACHE_SHARE if gpu_memory is None else gpu_memory * CACHE_SHARE
    cache = max(per_step, min(wanted, int(memory / (widths.features * bytes_per_value))))
    return TokenBudget(per_step=per_step, encoder_per_step=per_step, encoder_cache=cache)


def most_view_tokens(spec: ViewSpec) -> int:
    """Visual tokens of the largest full view."""
    return spec.max_pixels // spec.token_side**2


def check_max_prefill_tokens(rollout: RolloutConfig, spec: ViewSpec) -> None:
    """Raise ValueError if `rollout.max_prefill_tokens` is set but fits no full view, or less than a token per turn."""
    most, view, turns = rollout.max_prefill_tokens, most_view_tokens(spec), most_turns(rollout)
    if 0 < most < max(view, turns):
        reason = f"a full view has up to {view} visual tokens (model.max_pixels={spec.max_pixels})"
        if turns > view:
            reason = f"{turns} turns may run at once (rollout.max_groups_in_flight x rollout.group_size + 1)"
        raise ValueError(
            f"rollout.max_prefill_tokens={most} is invalid: must be at least {max(view, turns)}, as {reason}; "
            "or 0 to choose it automatically"
        )


def most_turns(rollout: RolloutConfig) -> int:
    """Concurrent sequences of an engine: those of all its groups, and one for the health check."""
    return rollout.max_groups_in_flight * rollout.group_size + 1
