"""What vision towers are made of, with few calls for all of their pictures (`learner.families` puts it together).

The library's towers attend to one image or window after the other in a Python loop and work out the same indices at
every call. Here one call attends to all windows (flash attention on a GPU), or to all segments of one length, and what
depends on an image's grid alone is worked out once per grid. The numbers are the library's own
(tests/learner/test_model.py compares them).

Legend: V views of one size, H and W their sides in pixels, P patches, D values of a patch, S visual tokens (merged
patches), E width of the tower, N segments of one length, L their length, A attention
heads, K width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from actors.images import View_HW3, ViewSpec
from learner.attention import varlen_attention
from learner.batches.segments import choose_kernel
from learner.fusing import fuse

Grid = tuple[int, int, int]
"""(frames, patch rows, patch columns) of one picture."""

ROTARY_BASE = 10_000.0


def grid_of(view_HW3: View_HW3, spec: ViewSpec) -> Grid:
    """Grid of a view.

    Raises:
        ValueError: a side is no multiple of a visual token's side.
    """
    height, width = view_HW3.shape[:2]
    side = spec.token_side
    if height % side or width % side:
        raise ValueError(f"a view of {height}x{width} pixels does not divide into visual tokens of {side}x{side}")
    return (1, height // spec.patch_size, width // spec.patch_size)


def patchify(views_VHW3: Tensor, spec: ViewSpec) -> Tensor:
    """Normalised float32 patches [P, D] of views of one size, uint8 [V, H, W, 3], on the views' device.

    Rows are ordered by merged token, as the Hugging Face image processor orders them, and hold its values.
    """
    views, height, width, channels = views_VHW3.shape
    patch, merge, device = spec.patch_size, spec.merge_size, views_VHW3.device
    side = patch * merge
    blocks = views_VHW3.reshape(views, height // side, merge, patch, width // side, merge, patch, channels)
    ordered = blocks.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(-1, channels, patch * patch)
    mean, std = (torch.tensor(values, device=device)[:, None] for values in (spec.mean, spec.std))
    values = ordered.float().div_(255).sub_(mean).div_(std)
    # A still picture fills every frame of the temporal patch.
    return values[:, :, None, :].expand(-1, -1, spec.temporal_patch_size, -1).reshape(len(values), -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class VarlenWindows:
    """Which patches attend to each other, for flash attention: segments of any lengths, as they lie."""

    starts: Tensor
    """int32 [segments + 1]"""
    longest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedWindows:
    """Which patches attend to each other: equal lengths gathered side by side."""

    order_P: Tensor | None
    """[P] where the patches of the gathered order come from; None when they already lie so."""
    inverse_P: Tensor | None
    groups: tuple[tuple[int, int], ...]
    """(N, L) per length, in the gathered order."""


Windows = VarlenWindows | GroupedWindows


def cut_windows(lengths: Sequence[int], device: torch.device, dtype: torch.dtype) -> Windows:
    """Short segments of consecutive patches, given by their lengths, for the kernel of this device."""
    if choose_kernel(device.type, dtype) == "padded":
        return group_segments(lengths, device)
    starts = torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32))
    return VarlenWindows(starts=starts.to(device), longest=max(lengths))


def group_segments(lengths: Sequence[int], device: torch.device) -> GroupedWindows:
    """Gather segments of consecutive patches, given by their lengths, into one group per length."""
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    by_length: dict[int, list[int]] = {}
    for start, length in zip(starts.tolist(), lengths, strict=False):
        if length:
            by_length.setdefault(length, []).append(start)
    order = np.concatenate([(np.array(at)[:, None] + np.arange(length)).ravel() for length, at in by_length.items()])
    groups = tuple((len(at), length) for length, at in by_length.items())
    if np.array_equal(order, np.arange(len(order))):
        return GroupedWindows(order_P=None, inverse_P=None, groups=groups)
    to = torch.from_numpy
    return GroupedWindows(order_P=to(order).to(device), inverse_P=to(np.argsort(order)).to(device), groups=groups)


def fast_attention(
    self: Any,
    hidden_states: Tensor,
    cu_seqlens: Tensor | None = None,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    windows: Windows | None = None,
    **unused: Any,
) -> Tensor:
    """`forward` of the tower's attention [P, E] -> [P, E], without one call per segment."""
    if windows is None:
        assert cu_seqlens is not None
        windows = group_segments(cu_seqlens.diff().tolist(), hidden_states.device)
    assert position_embeddings is not None
    qkv = self.qkv(hidden_states).reshape(len(hidden_states), 3, self.num_heads, -1)
    # The gradients of a split and of unbound parts are put together by one copy.
    turning, value = qkv.split([2, 1], dim=1)
    q, k, v = *rotate(turning, *position_embeddings).unbind(1), value.squeeze(1)
    match windows:
        case VarlenWindows():
            sides = (windows.starts, windows.longest)
            attended = varlen_attention(q, k, v, sides, sides, scale=self.scaling, is_causal=False)
        case GroupedWindows():
            attended = _grouped_attention((q, k, v), windows, self.scaling)
    result: Tensor = self.proj(attended.flatten(1))
    return result


def _grouped_attention(packed_3PAK: Sequence[Tensor], windows: GroupedWindows, scale: float) -> Tensor:
    """[P, A, K], one call per segment length instead of one per segment."""
    if windows.order_P is not None:
        packed_3PAK = [each[windows.order_P] for each in packed_3PAK]
    outputs, start = [], 0
    for count, length in windows.groups:
        stop = start + count * length
        q, k, v = (each[start:stop].reshape(count, length, *each.shape[1:]).transpose(1, 2) for each in packed_3PAK)
        outputs.append(F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(0, 1))
        start = stop
    out = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return out if windows.inverse_P is None else out[windows.inverse_P]


class PatchProjection(nn.Conv3d):
    """The patch embedding as the matrix product that it is: each patch is one kernel's worth of values."""

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)


@dataclass(frozen=True, slots=True, kw_only=True)
class GridLayout:
    """What the tower needs to know of one grid."""

    window_order_S: NDArray[np.int64]
    """Visual tokens of the picture in the order of its windows."""
    window_lengths: tuple[int, ...]
    """Patches per window."""
    coordinates_P2: NDArray[np.int64]
    """(row, column) of each patch, in the order of the windows."""


@lru_cache(maxsize=256)
def grid_layout(grid: Grid, *, merge_size: int, window_tokens: int) -> GridLayout:
    """Windows and coordinates of a picture; a window is `window_tokens` visual tokens on a side."""
    frames, rows, columns = grid
    token_rows, token_columns = rows // merge_size, columns // merge_size
    tokens = np.arange(frames * token_rows * token_columns).reshape(frames, token_rows, token_columns)
    windows = [
        tokens[t, r : r + window_tokens, c : c + window_tokens].ravel()
        for t in range(frames)
        for r in range(0, token_rows, window_tokens)
        for c in range(0, token_columns, window_tokens)
    ]
    order = np.concatenate(windows)
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    coordinates = np.stack([row, column], axis=-1)
    merged = coordinates.reshape(token_rows, merge_size, token_columns, merge_size, 2).transpose(0, 2, 1, 3, 4)
    per_token = np.tile(merged.reshape(token_rows * token_columns, merge_size**2, 2), (frames, 1, 1))
    return GridLayout(
        window_order_S=order,
        window_lengths=tuple(len(window) * merge_size**2 for window in windows),
        coordinates_P2=per_token[order].reshape(-1, 2),
    )


def rotary_embeddings(coordinates_P2: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine [P, K] of the axial rotary embedding: a half of the frequencies turns by row, one by column."""
    axis_width = head_width // 2
    exponents = torch.arange(0, axis_width, 2, dtype=torch.float32, device=coordinates_P2.device) / axis_width
    angles_P2F = coordinates_P2[..., None].float() * (1.0 / ROTARY_BASE**exponents)
    angles_PK = angles_P2F.flatten(1).repeat(1, 2)
    return angles_PK.cos(), angles_PK.sin()


class _Rotation(torch.autograd.Function):
    """Rotary embedding [P, ..., K] -> [P, ..., K] by angles whose cosines and sines are [P, K], with equal halves.

    Computed in float32 half by half: the library's chain reads and writes each value seven times. Nothing of its input
    is kept for the backward pass, which is the rotation back.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, cos_PK: Tensor, sin_PK: Tensor) -> Tensor:
        ctx.save_for_backward(cos_PK, sin_PK)
        return fused_rotation(values, cos_PK, sin_PK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos_PK, sin_PK = ctx.saved_tensors
        return fused_rotation(gradient, cos_PK, -sin_PK), None, None


def _rotated(values: Tensor, cos_PK: Tensor, sin_PK: Tensor) -> Tensor:
    half = values.shape[-1] // 2
    shape = (len(values), *[1] * (values.ndim - 2), half)
    cos, sin = (each[:, :half].float().reshape(shape) for each in (cos_PK, sin_PK))
    first, second = values[..., :half], values[..., half:]
    rotated = torch.empty_like(values)
    rotated[..., :half] = torch.addcmul(first * cos, second, sin, value=-1)
    rotated[..., half:] = torch.addcmul(second * cos, first, sin)
    return rotated


fused_rotation = fuse(_rotated, tokens_at=(0, 0, 0))


def rotate(values: Tensor, cos_PK: Tensor, sin_PK: Tensor) -> Tensor:
    """Queries or keys [P, ..., K], turned by their patches' positions."""
    rotated: Tensor = _Rotation.apply(values, cos_PK, sin_PK)  # type: ignore[no-untyped-call]
    return rotated


def whole_pictures(grids: Sequence[Grid], device: torch.device) -> Windows:
    """Every frame attends to itself. Pictures of one size are adjacent, and their kernel is the faster one for long
    segments."""
    return group_segments([rows * columns for frames, rows, columns in grids for _ in range(frames)], device)


def run_block(
    block: Any, hidden_PE: Tensor, embeddings: tuple[Tensor, Tensor], windows: Windows, *, recomputes: bool
) -> Tensor:
    """A block of the tower, [P, E] -> [P, E]; one that `recomputes` keeps its input alone for the backward pass."""
    run = partial(block, cu_seqlens=None, position_embeddings=embeddings, windows=windows)
    result: Tensor = checkpoint(run, hidden_PE, use_reentrant=False) if recomputes else run(hidden_PE)
    return result
