"""Micro-batches as tensors.

Legend: B rows, T tokens of a padded row, N generated tokens of all rows, M image placeholders of all rows, S visual
tokens of the distinct views, P their patches, D values of a patch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.episode import View
from actors.errors import LearnerError
from actors.images import quarter_view
from learner.batch import MicroBatchPlan, PlannedEpisode
from learner.vision import CLIP_MEAN, CLIP_STD, Grid, patchify


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSpec:
    """What turns a picture into visual tokens, read from the model's folder."""

    image_token_id: int
    patch_size: int
    merge_size: int
    temporal_patch_size: int = 2
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD


def read_vision_spec(folder: Path) -> VisionSpec:
    """The spec of a Hugging Face model folder; without a preprocessor file, CLIP's mean and std."""
    config = json.loads((folder / "config.json").read_text())
    vision = config["vision_config"]
    processor = {}
    if (folder / "preprocessor_config.json").is_file():
        processor = json.loads((folder / "preprocessor_config.json").read_text())
    return VisionSpec(
        image_token_id=config["image_token_id"],
        patch_size=vision["patch_size"],
        merge_size=vision["spatial_merge_size"],
        temporal_patch_size=vision["temporal_patch_size"],
        mean=tuple(processor.get("image_mean", CLIP_MEAN)),
        std=tuple(processor.get("image_std", CLIP_STD)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Tensors of one forward and backward pass. Rows are padded on the right; no index points at padding."""

    token_ids_BT: Tensor
    positions_3BT: Tensor
    """Temporal, row and column position of each token (the model's multimodal rotary positions)."""
    patches_PD: Tensor
    """Of the distinct views: the episodes of a group share them."""
    grids: tuple[Grid, ...]
    placeholder_at_M: Tensor
    """Flat index into [B * T] of each image placeholder."""
    feature_of_M: Tensor
    """Which of the S visual tokens stands there."""
    predicted_from_N: Tensor
    """Flat index into [B * T] of the position before each generated token."""
    target_ids_N: Tensor
    sampler_logprobs_N: Tensor
    advantages_N: Tensor
    weights_N: Tensor
    num_tokens: int
    """Tokens of the rows without padding."""

    def to(self, device: torch.device) -> MicroBatch:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: t.to(device) for name, t in tensors.items() if isinstance(t, Tensor)}
        return replace(self, **moved)


def collate(rows: MicroBatchPlan, images: Sequence[NDArray[np.uint8]], spec: VisionSpec) -> MicroBatch:
    """Tensors of a planned micro-batch; `images` are the full views uint8 [H, W, 3] of the rank's plan.

    Raises:
        LearnerError: the placeholders of an episode do not agree in number with its pictures' visual tokens.
    """
    wanted = sorted({(row.image, view) for row in rows for view in row.views})
    patches = {key: patchify_view(images[key[0]], key[1], spec) for key in wanted}
    # Pictures of one size side by side: the tower then attends to them without gathering.
    order = sorted(wanted, key=lambda key: patches[key][1])
    sizes = [patches[key][1][1] * patches[key][1][2] // spec.merge_size**2 for key in order]
    first_feature = dict(zip(order, np.cumsum([0, *sizes]).tolist(), strict=False))

    width = max(row.num_tokens for row in rows)
    token_ids_BT = np.zeros((len(rows), width), np.int64)
    positions_3BT = np.zeros((3, len(rows), width), np.int64)
    placeholders, features = [], []
    for index, row in enumerate(rows):
        grids = [patches[row.image, view][1] for view in row.views]
        spans = placeholder_spans(row, grids, spec)
        token_ids_BT[index, : row.num_tokens] = row.token_ids
        positions_3BT[:, index, : row.num_tokens] = mrope_positions(row.num_tokens, spans, grids, spec.merge_size)
        for view, (start, stop) in zip(row.views, spans, strict=True):
            placeholders.append(np.arange(start, stop) + index * width)
            features.append(np.arange(stop - start) + first_feature[row.image, view])

    counts = [len(row.generated_at) for row in rows]
    return MicroBatch(
        token_ids_BT=torch.from_numpy(token_ids_BT),
        positions_3BT=torch.from_numpy(positions_3BT),
        patches_PD=torch.from_numpy(np.concatenate([patches[key][0] for key in order])),
        grids=tuple(patches[key][1] for key in order),
        placeholder_at_M=torch.from_numpy(np.concatenate(placeholders)),
        feature_of_M=torch.from_numpy(np.concatenate(features)),
        predicted_from_N=torch.from_numpy(np.concatenate([r.generated_at - 1 + i * width for i, r in enumerate(rows)])),
        target_ids_N=torch.from_numpy(np.concatenate([row.token_ids[row.generated_at] for row in rows])),
        sampler_logprobs_N=torch.from_numpy(np.concatenate([row.sampler_logprobs for row in rows])),
        advantages_N=torch.from_numpy(np.repeat([row.advantage for row in rows], counts).astype(np.float32)),
        weights_N=torch.from_numpy(np.repeat([row.token_weight for row in rows], counts).astype(np.float32)),
        num_tokens=sum(row.num_tokens for row in rows),
    )


def patchify_view(full_HWC: NDArray[np.uint8], view: View, spec: VisionSpec) -> tuple[NDArray[np.float32], Grid]:
    """Patches of one view of a picture, cut as the engines cut it."""
    return patchify(
        full_HWC if view == "full" else quarter_view(full_HWC),
        patch_size=spec.patch_size,
        merge_size=spec.merge_size,
        temporal_patch_size=spec.temporal_patch_size,
        mean=spec.mean,
        std=spec.std,
    )


def placeholder_spans(row: PlannedEpisode, grids: Sequence[Grid], spec: VisionSpec) -> list[tuple[int, int]]:
    """[start, stop) of each picture's placeholders in an episode, checked against the pictures."""
    at = np.flatnonzero(row.token_ids == spec.image_token_id)
    runs = np.split(at, np.flatnonzero(np.diff(at) > 1) + 1) if len(at) else []
    found = [len(run) for run in runs]
    expected = [frames * rows * columns // spec.merge_size**2 for frames, rows, columns in grids]
    if found != expected:
        raise LearnerError(
            f"an episode has {sum(found)} image placeholders {found} for {sum(expected)} visual tokens {expected}"
        )
    return [(int(run[0]), int(run[-1]) + 1) for run in runs]


def mrope_positions(
    num_tokens: int, spans: Sequence[tuple[int, int]], grids: Sequence[Grid], merge_size: int
) -> NDArray[np.int64]:
    """Temporal, row and column position [3, T] of each token of an episode (Qwen2-VL, section 2.1).

    Text advances all three by one per token. A picture's tokens sit at their row and column after the text before
    them, and the text after it goes on behind the picture's longer side.
    """
    positions = np.empty((3, num_tokens), np.int64)
    at, position = 0, 0
    for (start, stop), (_, patch_rows, patch_columns) in zip(spans, grids, strict=True):
        positions[:, at:start] = np.arange(position, position + start - at)
        position += start - at
        rows, columns = patch_rows // merge_size, patch_columns // merge_size
        positions[0, start:stop] = position
        positions[1, start:stop] = position + np.repeat(np.arange(rows), columns)
        positions[2, start:stop] = position + np.tile(np.arange(columns), rows)
        position += max(rows, columns)
        at = stop
    positions[:, at:] = np.arange(position, position + num_tokens - at)
    return positions
