"""How the models of each family compute, by our layers: the tower, and how its features enter the language model.

Legend: P patches, D values of a patch, S visual tokens, M image placeholders, W width of the language model, F values
of a visual token's features: W, once more for each deep-stack feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from learner.families.qwen2_5_vl_model import Qwen25VL
from learner.families.qwen3_vl_model import Qwen3VL
from learner.vision import Grid


class Architecture(Protocol):
    """What differs between families in the code of a model. `visual` is the library's tower."""

    def install(self) -> None:
        """Change the library's classes for all models of this process. Weights, values and gradients stay the same, and
        repeating it changes nothing."""

    def use_fast_layers(self, model: Any) -> None:
        """Swap the classes of a model's layers for ours. Weights are unchanged."""

    def encode_views(
        self, visual: Any, patches_PD: Tensor, grids: Sequence[Grid], *, recomputes_blocks: bool
    ) -> Tensor:
        """Features [S, F] of pictures, one after the other; the first W values are those that the prompt holds.

        `recomputes_blocks` keeps only the inputs of blocks for the backward pass.
        """

    def language_inputs(self, placeholder_at_M: Tensor, deep_features: Sequence[Tensor]) -> dict[str, Any]:
        """Further arguments of the language model.

        Args:
            placeholder_at_M: index among all tokens.
            deep_features: [M, W] for the first layer, the second and so on.
        """


ARCHITECTURES: Mapping[str, Architecture] = {"qwen2_5_vl": Qwen25VL(), "qwen3_vl": Qwen3VL()}


def architecture_of(model: Any) -> Architecture:
    """That of a model which was loaded, so that its family is supported."""
    return ARCHITECTURES[model.config.model_type]


def encode_views(model: Any, patches_PD: Tensor, grids: Sequence[Grid], *, recomputes_blocks: bool = False) -> Tensor:
    """Features [S, F] of pictures by the tower of a model (`Architecture.encode_views`)."""
    encode = architecture_of(model).encode_views
    return encode(model.model.visual, patches_PD, grids, recomputes_blocks=recomputes_blocks)
