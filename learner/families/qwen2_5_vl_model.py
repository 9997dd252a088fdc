"""Qwen2.5-VL by our layers: a tower of windows, whose features stand for the placeholders of the prompt.

Legend: P patches, D values of a patch, E width of the tower, S visual tokens, M image placeholders, W width of the
language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as library

from learner.layers import Rotary, run_decoder_layer, use_fused_layers
from learner.vision import (
    Grid,
    PatchProjection,
    cut_windows,
    fast_attention,
    grid_layout,
    rotary_embeddings,
    run_block,
    whole_pictures,
)


class Qwen25VL:
    """Implements `learner.families.architectures.Architecture`."""

    def install(self) -> None:
        library.Qwen2_5_VLVisionAttention.forward = fast_attention
        library.Qwen2_5_VLDecoderLayer.forward = run_decoder_layer

    def use_fast_layers(self, model: Any) -> None:
        library.apply_rotary_pos_emb = Rotary.apply
        model.model.visual.patch_embed.proj.__class__ = PatchProjection
        use_fused_layers(
            model, norms=(library.Qwen2_5_VLRMSNorm,), gated_mlps=(library.Qwen2_5_VLMLP, library.Qwen2MLP)
        )

    def encode_views(
        self, visual: Any, patches_PD: Tensor, grids: Sequence[Grid], *, recomputes_blocks: bool
    ) -> Tensor:
        """Features [S, W]."""
        config, device = visual.config, patches_PD.device
        merge_size = config.spatial_merge_size
        window_tokens = config.window_size // merge_size // config.patch_size
        layouts = [grid_layout(grid, merge_size=merge_size, window_tokens=window_tokens) for grid in grids]
        firsts = np.cumsum([0, *(len(layout.window_order_S) for layout in layouts)])
        order = np.concatenate([layout.window_order_S + first for layout, first in zip(layouts, firsts, strict=False)])
        order_S, inverse_S, coordinates = (
            torch.from_numpy(each).to(device)
            for each in (order, np.argsort(order), np.concatenate([layout.coordinates_P2 for layout in layouts]))
        )
        embeddings = rotary_embeddings(coordinates, config.hidden_size // config.num_heads)
        hidden_PE = visual.patch_embed(patches_PD)
        lengths = [length for layout in layouts for length in layout.window_lengths]
        windowed, whole = cut_windows(lengths, device, hidden_PE.dtype), whole_pictures(grids, device)

        unit = merge_size**2
        hidden_PE = hidden_PE.reshape(len(order), unit, -1)[order_S].reshape(len(hidden_PE), -1)
        for index, block in enumerate(visual.blocks):
            windows = whole if index in config.fullatt_block_indexes else windowed
            hidden_PE = run_block(block, hidden_PE, embeddings, windows, recomputes=recomputes_blocks)
        merged: Tensor = visual.merger(hidden_PE)[inverse_S]
        return merged

    def language_inputs(self, placeholder_at_M: Tensor, deep_features: Sequence[Tensor]) -> dict[str, Any]:
        # The masks, complete: the library makes none, and does not look for packed rows in the positions.
        return {"attention_mask": {"full_attention": None}}
