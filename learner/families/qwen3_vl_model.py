"""Qwen3-VL by our layers: a tower of whole pictures with learned positions, and deep-stack features.

The tower gives a visual token one feature that stands for its placeholder in the prompt, and some more, from blocks
further down, that are added to what the first layers of the language model make of that place. All of them lie side by
side in one tensor, so that whatever carries features and their gradients carries these, too.

Legend: P patches, D values of a patch, E width of the tower, S visual tokens, M image placeholders, W width of the
language model, F values of all features of a visual token; G places on a side of the grid of learned positions, N on
all of it; R and C patch rows and columns of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.models.qwen3_vl import modeling_qwen3_vl as library

from learner.layers import Rotary, run_decoder_layer, use_fused_layers
from learner.vision import (
    Grid,
    PatchProjection,
    fast_attention,
    grid_layout,
    rotary_embeddings,
    run_block,
    whole_pictures,
)


class Qwen3VL:
    """Implements `learner.families.architectures.Architecture`."""

    def install(self) -> None:
        library.Qwen3VLVisionAttention.forward = fast_attention
        library.Qwen3VLTextDecoderLayer.forward = run_decoder_layer
        library.Qwen3VLTextModel._deepstack_process = add_features

    def use_fast_layers(self, model: Any) -> None:
        library.apply_rotary_pos_emb = Rotary.apply
        model.model.visual.patch_embed.proj.__class__ = PatchProjection
        use_fused_layers(model, norms=(library.Qwen3VLTextRMSNorm,), gated_mlps=(library.Qwen3VLTextMLP,))

    def encode_views(
        self, visual: Any, patches_PD: Tensor, grids: Sequence[Grid], *, recomputes_blocks: bool
    ) -> Tensor:
        """Features [S, F]."""
        config, device = visual.config, patches_PD.device
        merge_size = config.spatial_merge_size
        layouts = [grid_layout(grid, merge_size=merge_size, window_tokens=max(grid)) for grid in grids]
        coordinates = torch.from_numpy(np.concatenate([layout.coordinates_P2 for layout in layouts])).to(device)
        embeddings = rotary_embeddings(coordinates, config.hidden_size // config.num_heads)
        whole = whole_pictures(grids, device)

        hidden_PE = visual.patch_embed(patches_PD)
        positions_NE = visual.pos_embed(torch.arange(config.num_position_embeddings, device=device))
        hidden_PE = hidden_PE + picture_positions(positions_NE, grids, merge_size).to(hidden_PE.dtype)
        deep = []
        for index, block in enumerate(visual.blocks):
            hidden_PE = run_block(block, hidden_PE, embeddings, whole, recomputes=recomputes_blocks)
            if index in config.deepstack_visual_indexes:
                merger = visual.deepstack_merger_list[config.deepstack_visual_indexes.index(index)]
                deep.append(merger(hidden_PE))
        return torch.cat([visual.merger(hidden_PE), *deep], dim=1)

    def language_inputs(self, placeholder_at_M: Tensor, deep_features: Sequence[Tensor]) -> dict[str, Any]:
        return {"visual_pos_masks": placeholder_at_M, "deepstack_visual_embeds": list(deep_features)}


def add_features(self: Any, hidden_states: Tensor, visual_pos_masks: Tensor, visual_embeds: Tensor) -> Tensor:
    """Hidden states [..., W] with features [M, W] added at M places: indices among all, or as the library gives them, a
    mask, for which a GPU would have to tell the host how many there are."""
    at_M = visual_pos_masks
    if at_M.dtype == torch.bool:
        at_M = at_M.flatten().nonzero().squeeze(1)
    flat = hidden_states.reshape(-1, hidden_states.shape[-1])
    return flat.index_add(0, at_M, visual_embeds.to(flat.dtype)).reshape(hidden_states.shape)


def picture_positions(positions_NE: Tensor, grids: Sequence[Grid], merge_size: int) -> Tensor:
    """Learned positions [P, E] in float32 of pictures, stretched bilinearly to their grids, corners onto corners.

    Rows are ordered by visual token. Pictures of one size share theirs.
    """
    side = round(len(positions_NE) ** 0.5)
    table_GGE = positions_NE.float().reshape(side, side, -1)
    made: dict[Grid, Tensor] = {}
    for grid in grids:
        if grid not in made:
            frames, rows, columns = grid
            down_RG, across_CG = (
                torch.from_numpy(interpolation(length, side)).to(positions_NE.device) for length in (rows, columns)
            )
            stretched_RGE = (down_RG @ table_GGE.flatten(1)).reshape(rows, side, -1)
            stretched_RCE = across_CG @ stretched_RGE
            blocks = stretched_RCE.reshape(rows // merge_size, merge_size, columns // merge_size, merge_size, -1)
            made[grid] = blocks.transpose(1, 2).reshape(rows * columns, -1).repeat(frames, 1)
    return torch.cat([made[grid] for grid in grids])


@lru_cache(maxsize=256)
def interpolation(length: int, side: int) -> NDArray[np.float32]:
    """Weights [length, side] of the places of an axis for each of `length` patches on it."""
    at = np.arange(length, dtype=np.float32) * np.float32(side - 1) / np.float32(max(length - 1, 1))
    below = np.minimum(np.floor(at).astype(np.int64), side - 1)
    weights = np.zeros((length, side), np.float32)
    weights[np.arange(length), below] = 1 - (at - below)
    weights[np.arange(length), np.minimum(below + 1, side - 1)] += at - below
    return weights
