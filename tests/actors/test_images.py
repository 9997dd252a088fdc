import io
import json

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from actors.errors import ImageError
from actors.images import ViewSpec, can_quarter, check_and_decode, full_view, num_visual_tokens, quarter_view, view_size
from configs.schema import ModelConfig

TINY = ViewSpec(patch_size=14, merge_size=2, min_pixels=56 * 56, max_pixels=224 * 224)
LARGE = ViewSpec(patch_size=16, merge_size=2, min_pixels=256 * 256, max_pixels=1024 * 1024)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def decode(picture: bytes, max_pixels: int = 10**6, max_side_ratio: float = 100.0) -> Image.Image:
    return check_and_decode(picture, max_pixels=max_pixels, max_side_ratio=max_side_ratio)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("spec", [TINY, LARGE])
@given(height=st.integers(1, 3000), width=st.integers(1, 3000))
def test_the_quarter_view_has_exactly_a_quarter_of_the_tokens(spec, height, width):
    assume(max(height, width) <= 100 * min(height, width))
    full_height, full_width = view_size(height, width, spec)
    assert spec.min_pixels <= full_height * full_width <= spec.max_pixels
    tokens = num_visual_tokens(full_height, full_width, spec)
    if can_quarter(full_height, full_width, spec):
        assert 4 * num_visual_tokens(full_height // 2, full_width // 2, spec) == tokens
    else:
        shrink = min(1.0, (spec.max_pixels / (height * width)) ** 0.5)
        assert round(shrink * min(height, width) / spec.token_side) < 2


@given(rows=st.integers(1, 8), columns=st.integers(1, 8))
def test_a_picture_of_legal_size_passes_bit_for_bit(rows, columns):
    assume(TINY.min_pixels <= rows * columns * 56 * 56 <= TINY.max_pixels)
    pixels = noise(rows * 56, columns * 56)
    assert np.array_equal(full_view(Image.fromarray(pixels), TINY), pixels)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((224, 224), (224, 224)),
        ((448, 448), (224, 224)),
        ((60, 60), (56, 56)),
        ((110, 170), (112, 168)),
        ((30, 30), (84, 84)),
        ((28, 112), (28, 112)),
        ((1, 1), (84, 84)),
        ((100, 10_000), (28, 1792)),
    ],
)
def test_the_full_view_has_the_nearest_legal_size(size, expected):
    assert view_size(*size, TINY) == expected


def test_a_picture_too_small_to_quarter_is_never_enlarged_to_be_quartered():
    for side in range(1, 42):
        assert not can_quarter(*view_size(side, side, TINY), TINY)


def test_the_quarter_is_the_mean_of_each_block_rounded_half_up():
    full = noise(56, 112)
    blocks = full.reshape(28, 2, 56, 2, 3).astype(np.int64)
    assert np.array_equal(quarter_view(full), (blocks.sum((1, 3)) + 2) // 4)


def test_a_budget_without_a_view_that_can_be_quartered_is_refused():
    with pytest.raises(ValueError, match="max_pixels=3000"):
        ViewSpec(patch_size=14, merge_size=2, min_pixels=1, max_pixels=3000)
    with pytest.raises(ValueError, match="max_pixels=6000"):
        ViewSpec(patch_size=14, merge_size=2, min_pixels=4000, max_pixels=6000)


def test_patch_sizes_come_from_the_models_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {"patch_size": 16, "spatial_merge_size": 2}}))
    model = ModelConfig(path=str(tmp_path), min_pixels=1, max_pixels=10**6)
    assert ViewSpec.from_model(model).token_side == 32
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="vision_config"):
        ViewSpec.from_model(model)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_allowed_formats_decode_to_rgb(format):
    image = decode(encoded(Image.fromarray(noise(20, 30)), format))
    assert (image.mode, image.size) == ("RGB", (30, 20))


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF"])
def test_other_formats_are_refused(format):
    with pytest.raises(ImageError, match="not a readable"):
        decode(encoded(Image.fromarray(noise(20, 30)), format))


@pytest.mark.parametrize("broken", [b"", b"not a picture", encoded(Image.fromarray(noise(64, 64)))[:200]])
def test_broken_pictures_are_refused(broken):
    with pytest.raises(ImageError):
        decode(broken)


def test_truncation_anywhere_is_an_image_error_or_a_picture():
    whole = encoded(Image.fromarray(noise(16, 16)), "JPEG")
    refused = 0
    for length in range(0, len(whole), 7):
        try:
            assert decode(whole[:length]).size == (16, 16)
        except ImageError:
            refused += 1
    assert refused > 10


def test_too_many_pixels_and_extreme_sides_are_refused_from_the_header():
    wide = encoded(Image.new("RGB", (3000, 2)))
    with pytest.raises(ImageError, match="max_side_ratio"):
        decode(wide)
    with pytest.raises(ImageError, match="max_source_pixels"):
        decode(wide, max_pixels=5999, max_side_ratio=5000)
    # Only the header and no pixel follows: nothing can have been decompressed.
    with pytest.raises(ImageError, match="max_source_pixels"):
        decode(encoded(Image.new("1", (9000, 9000)))[:60])


def test_a_single_pixel_is_a_picture():
    assert decode(encoded(Image.new("RGB", (1, 1), (1, 2, 3)))).getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    upright = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that turns upright into how it is stored
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode(encoded(stored, exif=exif)), upright)


@pytest.mark.filterwarnings("ignore:.*EXIF data")
def test_a_broken_exif_block_counts_as_upright():
    picture = encoded(Image.fromarray(noise(4, 6)), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    assert decode(picture).size == (6, 4)


def test_every_mode_becomes_rgb():
    ramp = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    deep = decode(encoded(Image.fromarray(ramp)))
    assert np.abs(np.asarray(deep)[..., 0].astype(int) - ramp / 257).max() <= 0.5
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = decode(encoded(cmyk, "JPEG", quality=100)).getpixel((4, 4))
    assert red[0] > 200
    assert max(red[1:]) < 60
    for mode in ("L", "LA", "P", "1", "RGBA"):
        assert decode(encoded(Image.new(mode, (8, 8)))).mode == "RGB"


def test_transparency_is_laid_over_white():
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((1, 0), (255, 0, 0, 255))
    image = decode(encoded(clear))
    assert (image.getpixel((0, 0)), image.getpixel((1, 0))) == ((255, 255, 255), (255, 0, 0))


def test_the_first_frame_of_an_animation_is_shown():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    animated = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert decode(animated).getpixel((4, 4)) == (255, 0, 0)


def test_a_text_chunk_that_inflates_is_refused():
    notes = PngImagePlugin.PngInfo()
    notes.add_text("comment", "a" * (2 * PngImagePlugin.MAX_TEXT_CHUNK), zip=True)
    with pytest.raises(ImageError):
        decode(encoded(Image.new("RGB", (4, 4)), pnginfo=notes))
