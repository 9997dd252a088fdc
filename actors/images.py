"""Images: safe decoding, the two views, the number of visual tokens.

Engine and learner make views with these same functions, so both see the same pixels.

Legend of shapes: H height, W width, in pixels; the last axis of 3 is RGB.
"""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from actors.config_json import read_config_json, vision_settings
from actors.errors import ImageError
from configs.schema import ModelConfig

View_HW3 = npt.NDArray[np.uint8]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Per channel, for values from 0 to 1: the normalisation of the Qwen models."""

FORMATS = ("JPEG", "PNG", "WEBP")
"""Only these decoders are used: the others had the vulnerabilities (such as CVE-2026-40192)."""
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the operation that undoes it."""
_DECODER_ERRORS = (
    OSError,  # truncated or broken files; UnidentifiedImageError is one
    SyntaxError,  # Pillow's PNG and JPEG parsers
    ValueError,  # oversized text chunks, bad header fields
    EOFError,
    struct.error,
    IndexError,
    OverflowError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # where warnings are errors
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSpec:
    """How images become visual tokens: the model's patches and normalisation, and the pixel budget."""

    patch_size: int
    """Pixels of a patch's side."""
    merge_size: int
    """Patches of a visual token's side."""
    min_pixels: int
    max_pixels: int
    """Budget of the full view, both ends included."""
    temporal_patch_size: int = 2
    """Frames of a patch; a still picture fills them all."""
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    """Of each channel, subtracted and divided by after scaling to 0 to 1."""

    def __post_init__(self) -> None:
        for name in ("patch_size", "merge_size", "min_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is invalid: must be at least 1")
        block = (2 * self.token_side) ** 2
        if self.max_pixels // block < -(-self.min_pixels // block):
            raise ValueError(
                f"max_pixels={self.max_pixels} is invalid: there must be a multiple of {block} pixels between "
                f"min_pixels={self.min_pixels} and max_pixels, so that the view can be quartered; raise max_pixels"
            )

    @property
    def token_side(self) -> int:
        """Pixels of a visual token's side."""
        return self.patch_size * self.merge_size

    @classmethod
    def from_model(cls, model: ModelConfig) -> Self:
        """Patches and normalisation of the model's folder, and the budget of its settings.

        Without a `preprocessor_config.json`, mean and std are CLIP's.

        Raises:
            ValueError: the folder's `config.json` has no patch or merge size.
        """
        vision = vision_settings(read_config_json(model.path))
        try:
            patch_size, merge_size = int(vision["patch_size"]), int(vision["spatial_merge_size"])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"model.path={model.path!r} is invalid: its config.json has no vision_config with patch_size and "
                "spatial_merge_size; give a folder of a vision-language model"
            ) from error
        preprocessor = Path(model.path) / "preprocessor_config.json"
        processor = json.loads(preprocessor.read_text()) if preprocessor.is_file() else {}
        return cls(
            patch_size=patch_size,
            merge_size=merge_size,
            min_pixels=model.min_pixels,
            max_pixels=model.max_pixels,
            temporal_patch_size=int(vision["temporal_patch_size"]),
            mean=tuple(processor.get("image_mean", CLIP_MEAN)),
            std=tuple(processor.get("image_std", CLIP_STD)),
        )


BYTES_PER_PIXEL = 16
"""Memory that decoding takes: Pillow keeps 4 bytes a pixel for the picture as stored, as RGB and upright, and the view
that is resized from it comes on top."""


def check_and_decode(encoded: bytes, *, max_pixels: int, max_side_ratio: float) -> Image.Image:
    """The picture, upright, RGB, its first frame; ImageError with the reason when it must not or cannot be decoded."""
    return decode(open_picture(encoded, max_pixels=max_pixels, max_side_ratio=max_side_ratio))


def open_picture(encoded: bytes, *, max_pixels: int, max_side_ratio: float) -> Image.Image:
    """The picture with nothing but its header read; ImageError with the reason when it must not be decoded."""
    if not encoded:
        raise ImageError("the image is empty")
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except _DECODER_ERRORS as error:
        raise ImageError(f"not a readable {', '.join(FORMATS)} image: {error}") from error
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"the image has {width} x {height} pixels")
    if width * height > max_pixels:
        raise ImageError(f"the image has {width} x {height} pixels, more than data.max_source_pixels={max_pixels}")
    if max(width, height) > max_side_ratio * min(width, height):
        raise ImageError(
            f"the image has {width} x {height} pixels, an aspect ratio above data.max_side_ratio={max_side_ratio}"
        )
    return image


def decode(image: Image.Image) -> Image.Image:
    """What `open_picture` opened, decompressed, upright, RGB, its first frame; ImageError where it is damaged."""
    try:
        image.load()
        upright = _UPRIGHT.get(_orientation(image))
        rgb = _to_rgb(image)
    except _DECODER_ERRORS as error:
        raise ImageError(f"the image cannot be decoded: {error}") from error
    return rgb if upright is None else rgb.transpose(upright)


def full_view(image: Image.Image, spec: ViewSpec) -> View_HW3:
    """The full view of an RGB picture, uint8 [H, W, 3].

    Each side is a multiple of two visual tokens' sides, so that it can be quartered, and the pixel count lies within
    the budget; of all such sizes the one nearest to the picture's. A picture that already has it passes bit for bit.
    A picture under two tokens on a side is never enlarged to be quartered: its sides are multiples of one token's.
    """
    height, width = view_size(image.height, image.width, spec)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.array(image, dtype=np.uint8)


def view_size(height: int, width: int, spec: ViewSpec) -> tuple[int, int]:
    """(height, width) in pixels of the full view of a picture of the given size."""
    shrink = min(1.0, math.sqrt(spec.max_pixels / (height * width)))
    is_small = min(round(shrink * side / spec.token_side) for side in (height, width)) < 2
    grow = max(shrink, math.sqrt(spec.min_pixels / (height * width)))
    wanted = (height * grow, width * grow)
    sizes = _legal_sizes(wanted, spec, step=spec.token_side if is_small else 2 * spec.token_side)
    if is_small:
        sizes = (size for size in sizes if not can_quarter(*size, spec))
    return min(sizes, key=lambda size: _misfit(size, wanted))


def can_quarter(height: int, width: int, spec: ViewSpec) -> bool:
    """Whether a full view of this size has a quarter view; without one, the tool is not offered."""
    return height % (2 * spec.token_side) == 0 and width % (2 * spec.token_side) == 0


def quarter_view(full: View_HW3) -> View_HW3:
    """Half of each side, uint8 [H/2, W/2, 3]: the mean of each 2 x 2 block, rounded half up."""
    assert not any(side % 2 for side in full.shape[:2]), f"{full.shape[:2]} cannot be halved"
    return np.array(Image.fromarray(full).reduce(2), dtype=np.uint8)


def num_visual_tokens(height: int, width: int, spec: ViewSpec) -> int:
    """Visual tokens of a view of this size in pixels."""
    assert not any(side % spec.token_side for side in (height, width)), (height, width, spec.token_side)
    return (height // spec.token_side) * (width // spec.token_side)


def _legal_sizes(wanted: tuple[float, float], spec: ViewSpec, step: int) -> Iterator[tuple[int, int]]:
    """For every height within the budget, the widths around the wanted one: (height, width) in pixels."""
    most = spec.max_pixels // step**2
    for rows in range(1, most + 1):
        fewest, largest = -(-spec.min_pixels // (rows * step**2)), most // rows
        nearest = min(max(round(wanted[1] / step), fewest, 1), largest)
        for columns in range(nearest - 1, nearest + 2):
            if max(fewest, 1) <= columns <= largest:
                yield rows * step, columns * step


def _misfit(size: tuple[int, int], wanted: tuple[float, float]) -> float:
    """How far a size is from the wanted one. Distorting weighs more than scaling."""
    high, wide = math.log(size[0] / wanted[0]), math.log(size[1] / wanted[1])
    return (high + wide) ** 2 + 4 * (high - wide) ** 2


def _orientation(image: Image.Image) -> int:
    """EXIF orientation; a broken EXIF block says nothing about the pixels, so it counts as upright."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except (*_DECODER_ERRORS, TypeError, KeyError):
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: 16-bit grey scaled, transparency laid over white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()  # a plain image: no file handle, no metadata of the source's class
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.clip(np.asarray(image, dtype=np.float64), 0, 65535)
        return Image.fromarray((grey / 257 + 0.5).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
