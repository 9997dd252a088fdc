"""Micro-batches as tensors. Pictures travel as uint8 and become patches on the device.

Legend: B rows, T tokens of a padded row, N generated tokens of all rows, M image placeholders of all rows, S visual
tokens of the distinct views, P their patches, D values of a patch, V views of one size, H and W sides in pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.episode import View
from actors.errors import LearnerError
from actors.images import View_HW3, ViewSpec, quarter_view
from learner.batch import MicroBatchPlan, PlannedEpisode
from learner.vision import Grid, grid_of, patchify


class FullViews(Protocol):
    """The full views uint8 [H, W, 3] of a rank's plan, by number: a list of arrays, or what fetches them on demand."""

    def __getitem__(self, number: int, /) -> View_HW3: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Tensors of one forward and backward pass. Rows are padded on the right; no index points at padding.

    Every micro-batch has a picture: where no row does, a blank one that no placeholder points to. The ranks then run
    the vision tower equally often, and under ZeRO-3 each run gathers its weights from all of them.
    """

    token_ids_BT: Tensor
    positions_3BT: Tensor
    """Temporal, row and column position of each token (the model's multimodal rotary positions)."""
    pixels: tuple[Tensor, ...]
    """uint8 [V, H, W, 3] per size, of the distinct views: the episodes of a group share them."""
    grids: tuple[Grid, ...]
    """Of each view, in the order of `pixels`."""
    spec: ViewSpec
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

    @property
    def patches_PD(self) -> Tensor:
        """Normalised patches of the distinct views, made on the device that holds the pixels."""
        return torch.cat([patchify(views, self.spec) for views in self.pixels])

    def to(self, device: torch.device) -> MicroBatch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: t.to(device) for name, t in values.items() if isinstance(t, Tensor)}
        return replace(self, **moved, pixels=tuple(views.to(device) for views in self.pixels))


def collate(rows: MicroBatchPlan, full_views: FullViews, spec: ViewSpec, *, image_token_id: int) -> MicroBatch:
    """Tensors of a planned micro-batch, on the host.

    Raises:
        LearnerError: the placeholders of an episode do not agree in number with its pictures' visual tokens.
    """
    shown = cut_views(rows, full_views)
    grids = {key: grid_of(view, spec) for key, view in shown.items()}
    # Pictures of one size side by side: the tower then attends to them without gathering.
    order = sorted(shown, key=lambda key: grids[key])
    sizes = [rows * columns // spec.merge_size**2 for _, rows, columns in (grids[key] for key in order)]
    first_feature = dict(zip(order, np.cumsum([0, *sizes]).tolist(), strict=False))

    width = max(row.num_tokens for row in rows)
    token_ids_BT = np.zeros((len(rows), width), np.int64)
    positions_3BT = np.zeros((3, len(rows), width), np.int64)
    placeholders, features = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for index, row in enumerate(rows):
        row_grids = [grids[row.image, view] for view in row.views]
        spans = placeholder_spans(row, row_grids, spec.merge_size, image_token_id)
        token_ids_BT[index, : row.num_tokens] = row.token_ids
        positions_3BT[:, index, : row.num_tokens] = mrope_positions(row.num_tokens, spans, row_grids, spec.merge_size)
        for view, (start, stop) in zip(row.views, spans, strict=True):
            placeholders.append(np.arange(start, stop) + index * width)
            features.append(np.arange(stop - start) + first_feature[row.image, view])

    pixels = [np.stack([shown[key] for key in keys]) for _, keys in itertools.groupby(order, key=grids.__getitem__)]
    blank = np.zeros((1, spec.token_side, spec.token_side, 3), np.uint8)
    counts = [len(row.generated_at) for row in rows]
    return MicroBatch(
        token_ids_BT=torch.from_numpy(token_ids_BT),
        positions_3BT=torch.from_numpy(positions_3BT),
        pixels=tuple(torch.from_numpy(views) for views in pixels or [blank]),
        grids=tuple(grids[key] for key in order) or (grid_of(blank[0], spec),),
        spec=spec,
        placeholder_at_M=torch.from_numpy(np.concatenate(placeholders)),
        feature_of_M=torch.from_numpy(np.concatenate(features)),
        predicted_from_N=torch.from_numpy(np.concatenate([r.generated_at - 1 + i * width for i, r in enumerate(rows)])),
        target_ids_N=torch.from_numpy(np.concatenate([row.token_ids[row.generated_at] for row in rows])),
        sampler_logprobs_N=torch.from_numpy(np.concatenate([row.sampler_logprobs for row in rows])),
        advantages_N=torch.from_numpy(np.repeat([row.advantage for row in rows], counts).astype(np.float32)),
        weights_N=torch.from_numpy(np.repeat([row.token_weight for row in rows], counts).astype(np.float32)),
        num_tokens=sum(row.num_tokens for row in rows),
    )


def cut_views(rows: MicroBatchPlan, full_views: FullViews) -> dict[tuple[int, View], View_HW3]:
    """The distinct views of the rows, cut as the engines cut them; each picture is asked for once."""
    wanted = sorted({(row.image, view) for row in rows for view in row.views})
    full = {number: full_views[number] for number in {number for number, _ in wanted}}
    return {(number, view): full[number] if view == "full" else quarter_view(full[number]) for number, view in wanted}


def placeholder_spans(
    row: PlannedEpisode, grids: Sequence[Grid], merge_size: int, image_token_id: int
) -> list[tuple[int, int]]:
    """[start, stop) of each picture's placeholders in an episode, checked against the pictures."""
    at = np.flatnonzero(row.token_ids == image_token_id)
    runs = np.split(at, np.flatnonzero(np.diff(at) > 1) + 1) if len(at) else []
    found = [len(run) for run in runs]
    expected = [frames * rows * columns // merge_size**2 for frames, rows, columns in grids]
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
