"""Plans as tensors. Images are transferred as uint8 and become patches on the device.

Legend: T tokens of a packed micro-batch, U of them read, N generated tokens of its rows, M image placeholders, S visual
tokens of all views of a piece, P patches of one vision pass, D values of a patch, V views of one size, H and W sides in
pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.errors import LearnerError
from actors.images import View_HW3, ViewSpec
from actors.views import cut_view
from learner.batches.batch import PlannedEpisode
from learner.batches.family import Family, ViewKey, shown_views
from learner.batches.plan import MicroBatchPlan, VisionPassPlan
from learner.batches.segments import Kernel, Segments, segments_of
from learner.vision import Grid, grid_of, patchify


class FullViews(Protocol):
    """The full views uint8 [H, W, 3] of a rank's plan, by number: a list of arrays, or what fetches them on demand."""

    def __getitem__(self, number: int, /) -> View_HW3: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionPass:
    """The pictures of one pass of the vision tower.

    Every pass has a picture: where the plan has none, a blank one that no placeholder points to. The ranks then run
    the vision tower equally often, and under ZeRO-3 each run gathers its weights from all of them.
    """

    pixels: tuple[Tensor, ...]
    """uint8 [V, H, W, 3] per size, of distinct views."""
    grids: tuple[Grid, ...]
    """Of each view, in the order of `pixels`."""
    spec: ViewSpec
    recomputes_blocks: bool

    @property
    def patches_PD(self) -> Tensor:
        """Normalised patches of the views, made on the device that holds the pixels."""
        return torch.cat([patchify(views, self.spec) for views in self.pixels])

    @property
    def num_visual_tokens(self) -> int:
        return sum(visual_tokens(grid, self.spec) for grid in self.grids)

    def to(self, device: torch.device) -> VisionPass:
        return replace(self, pixels=tuple(views.to(device) for views in self.pixels))


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Tensors of one forward and backward pass of the language model: one sequence without padding."""

    token_ids_T: Tensor
    positions_3T: Tensor
    """Temporal, row and column position of each token in its episode (the model's multimodal rotary positions)."""
    segments: Segments
    """Which tokens attend to which."""
    placeholder_at_M: Tensor
    """Index of each image placeholder among the T."""
    feature_of_M: Tensor
    """Index of its visual token among the S."""
    read_at_U: Tensor
    """Index among the T of each position before a generated token, in order."""
    predicted_from_N: Tensor
    """Index among the U of the position before each generated token; the same for rows that share it."""
    target_ids_N: Tensor
    sampler_logprobs_N: Tensor
    episode_of_N: Tensor
    """Which tokens are of one row."""
    advantages_N: Tensor
    weights_N: Tensor

    def to(self, device: torch.device) -> MicroBatch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: t.to(device) for name, t in values.items() if isinstance(t, Tensor)}
        return replace(self, **moved, segments=self.segments.to(device))


class Collator:
    """Makes the tensors of a piece, on the host: first all of its vision passes, then its micro-batches.

    The placeholders of a micro-batch refer to the visual tokens of all passes, one pass after the other.
    """

    def __init__(self, full_views: FullViews, spec: ViewSpec, *, image_token_id: int, kernel: Kernel) -> None:
        self._full_views = full_views
        self._spec = spec
        self._image_token_id = image_token_id
        self._kernel = kernel
        self._grids: dict[ViewKey, Grid] = {}
        self._first_feature: dict[ViewKey, int] = {}
        self._num_features = self._first_of_round = 0

    def vision_pass(self, planned: VisionPassPlan) -> VisionPass:
        """Tensors of a planned pass of the vision tower."""
        shown = cut_views(planned.views, self._full_views)
        grids = {key: grid_of(view, self._spec) for key, view in shown.items()}
        # Images of one size are adjacent, so that the tower attends to them without gathering.
        order = sorted(shown, key=lambda key: grids[key])
        for key in order:
            self._first_feature[key] = self._num_features
            self._num_features += visual_tokens(grids[key], self._spec)
        self._grids.update(grids)
        blank = np.zeros((1, self._spec.token_side, self._spec.token_side, 3), np.uint8)
        if not order:
            self._num_features += 1
        pixels = [np.stack([shown[key] for key in same]) for _, same in itertools.groupby(order, key=grids.__getitem__)]
        return VisionPass(
            pixels=tuple(torch.from_numpy(views) for views in pixels or [blank]),
            grids=tuple(grids[key] for key in order) or (grid_of(blank[0], self._spec),),
            spec=self._spec,
            recomputes_blocks=planned.recomputes_blocks,
        )

    def begin_round(self) -> None:
        """Number the features of the vision passes that follow from 0, for the micro-batches that follow those."""
        self._first_of_round = self._num_features

    def micro_batch(self, families: MicroBatchPlan) -> MicroBatch:
        """Tensors of a planned micro-batch.

        Raises:
            LearnerError: the placeholders of an episode do not agree in number with its pictures' visual tokens.
        """
        chunks = list(self._chunks(families))
        starts = np.cumsum([0, *(stop - start for _, start, stop in chunks)])
        token_ids, positions, placeholders, features = [], [], [], []
        for (row, start, stop), at in zip(chunks, starts.tolist(), strict=False):
            positions_3T, pictures = self._layout(row)
            token_ids.append(row.token_ids[start:stop])
            positions.append(positions_3T[:, start:stop])
            for key, first, last in pictures:
                if start <= first and last <= stop:
                    placeholders.append(np.arange(first, last) - start + at)
                    features.append(np.arange(last - first) + self._first_feature[key] - self._first_of_round)
        rows = [row for family in families for row in family.rows]
        counts = [len(row.generated_at) for row in rows]
        read_at, predicted_from = np.unique(np.concatenate(list(_predicted_from(families))), return_inverse=True)
        return MicroBatch(
            token_ids_T=torch.from_numpy(np.concatenate(token_ids)),
            positions_3T=torch.from_numpy(np.concatenate(positions, axis=1)),
            segments=segments_of([(family.num_shared, family.remainders) for family in families], self._kernel),
            placeholder_at_M=_joined(placeholders),
            feature_of_M=_joined(features),
            read_at_U=torch.from_numpy(read_at),
            predicted_from_N=torch.from_numpy(predicted_from),
            target_ids_N=_joined([row.token_ids[row.generated_at] for row in rows]),
            sampler_logprobs_N=torch.from_numpy(np.concatenate([row.sampler_logprobs for row in rows])),
            episode_of_N=torch.from_numpy(np.repeat(np.arange(len(rows)), counts)),
            advantages_N=torch.from_numpy(np.concatenate([row.advantages for row in rows]).astype(np.float32)),
            weights_N=torch.from_numpy(np.concatenate([row.token_weights for row in rows]).astype(np.float32)),
        )

    @staticmethod
    def _chunks(families: MicroBatchPlan) -> Iterator[tuple[PlannedEpisode, int, int]]:
        """The sequence as (row, start, stop): of each family the beginning, by its first row, and the remainders."""
        for family in families:
            yield family.rows[0], 0, family.num_shared
            for row in family.rows:
                yield row, family.num_shared, row.num_tokens

    def _layout(self, row: PlannedEpisode) -> tuple[NDArray[np.int64], list[tuple[ViewKey, int, int]]]:
        """Positions [3, tokens of the row], and (view, start, stop) of its pictures' placeholders."""
        keys = [key for key, _ in shown_views(row)]
        grids = [self._grids[key] for key in keys]
        spans = placeholder_spans(row, grids, self._spec.merge_size, self._image_token_id)
        positions_3T = mrope_positions(row.num_tokens, spans, grids, self._spec.merge_size)
        return positions_3T, [(key, *span) for key, span in zip(keys, spans, strict=True)]


def _predicted_from(families: Sequence[Family]) -> Iterator[NDArray[np.int64]]:
    start = 0
    for family in families:
        remainder = start + family.num_shared
        for row, length in zip(family.rows, family.remainders, strict=True):
            before = row.generated_at - 1
            is_shared = before < family.num_shared
            yield np.where(is_shared, start + before, remainder + before - family.num_shared)
            remainder += length
        start += family.num_tokens


def _joined(arrays: Iterator[NDArray[np.int64]] | Sequence[NDArray[np.int64]]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *arrays]))


def cut_views(keys: Sequence[ViewKey], full_views: FullViews) -> dict[ViewKey, View_HW3]:
    """The views, made as in the engines; each image is fetched once."""
    full = {number: full_views[number] for number in sorted({number for number, _ in keys})}
    return {(number, view): cut_view(full[number], view) for number, view in keys}


def visual_tokens(grid: Grid, spec: ViewSpec) -> int:
    frames, rows, columns = grid
    return frames * rows * columns // spec.merge_size**2


def placeholder_spans(
    row: PlannedEpisode, grids: Sequence[Grid], merge_size: int, image_token_id: int
) -> list[tuple[int, int]]:
    """[start, stop) of each image's placeholders in an episode, checked against the images."""
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
