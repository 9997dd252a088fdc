"""The optimizer: its settings, its learning rate, and AdamW with clipping for runs without shards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn, optim

from configs.learner import LearnerConfig


class ClippedAdamW(optim.AdamW):
    """AdamW for ZeRO stage 0 that clips, and skips a step without a finite norm, as the ZeRO optimizers do."""

    def __init__(self, parameters: Sequence[nn.Parameter], *, max_norm: float, **settings: Any) -> None:
        super().__init__(parameters, **settings)
        self.max_norm = max_norm
        self.overflow = False
        self._global_grad_norm = 0.0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = float(nn.utils.clip_grad_norm_(parameters, self.max_norm))
        self.overflow = not math.isfinite(norm)
        self._global_grad_norm = math.inf if self.overflow else norm
        if not self.overflow:
            super().step(closure)


def adamw_settings(config: LearnerConfig) -> dict[str, Any]:
    """Arguments of AdamW."""
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": tuple(config.adam_betas),
        "weight_decay": config.weight_decay,
    }
    if config.num_gpus:
        # Without temporaries: a shard is one flat tensor, and each of its temporaries as large as all its weights.
        settings["fused"] = True
    return settings


def learning_rate(config: LearnerConfig, optimizer_step: int) -> float:
    """Rate of the step after `optimizer_step` applied ones: a linear rise over the warm-up, then constant."""
    if not config.warmup_steps:
        return config.learning_rate
    return config.learning_rate * min(1.0, (optimizer_step + 1) / config.warmup_steps)
