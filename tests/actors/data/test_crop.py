from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from actors.data.crop import CORNERS, CropRow, draw_row, draw_scene, make_crop, paint, region_of
from actors.data.dataset import Dataset
from actors.data.shapes import COARSE, FINE, SIDE, WAYS
from actors.episode import SampleRef
from actors.images import ViewSpec, quarter_view
from actors.needs import NEEDS, needed_view
from actors.views import Crop, cut_view, tokens_of

SPEC = ViewSpec(patch_size=14, merge_size=2, min_pixels=56 * 56, max_pixels=SIDE * SIDE)
FULL = (SIDE, SIDE)


def scenes(count: int, *, is_scattered: bool, stripe_width: int = FINE):
    rng = np.random.default_rng(5)
    return [draw_scene(rng, "train", stripe_width=stripe_width, is_scattered=is_scattered) for _ in range(count)]


def test_a_region_is_one_visual_token_of_the_quarter_view_and_a_sixteenth_of_the_full_view():
    for corner in CORNERS:
        assert tokens_of(region_of(corner), FULL, SPEC.token_side) * 16 == tokens_of("full", FULL, SPEC.token_side)


def test_the_quarter_view_shows_where_a_single_square_is_but_not_its_stripes():
    for scene in scenes(12, is_scattered=False):
        quarters = [quarter_view(paint(replace(scene, way=way))) for way in WAYS]
        assert all(np.array_equal(quarters[0], other) for other in quarters[1:])
        elsewhere = next(corner for corner in CORNERS if corner != scene.corner)
        assert not np.array_equal(quarters[0], quarter_view(paint(replace(scene, corner=elsewhere))))


def test_the_quarter_view_does_not_show_which_of_scattered_squares_has_stripes():
    for scene in scenes(12, is_scattered=True):
        quarters = [
            quarter_view(paint(replace(scene, way=way, corner=corner))).tobytes() for way in WAYS for corner in CORNERS
        ]
        assert len(set(quarters)) == 1


def test_the_region_shows_the_stripes_whole_and_of_scattered_squares_only_one_crop_does():
    for scene in scenes(12, is_scattered=True):
        shown = {
            corner: {cut_view(paint(replace(scene, way=way)), region_of(corner)).tobytes() for way in WAYS}
            for corner in CORNERS
        }
        assert {corner: len(views) for corner, views in shown.items()} == {
            corner: len(WAYS) if corner == scene.corner else 1 for corner in CORNERS
        }


def test_coarse_stripes_can_be_told_apart_in_the_quarter_view():
    for is_scattered in (False, True):
        for scene in scenes(4, is_scattered=is_scattered, stripe_width=COARSE):
            assert len({quarter_view(paint(replace(scene, way=way))).tobytes() for way in WAYS}) == len(WAYS)


def test_the_shape_hides_no_square():
    """Whatever the shape's colour, the picture under the squares stays the same."""
    for scene in (*scenes(40, is_scattered=False), *scenes(20, is_scattered=True)):
        red, blue = (paint(replace(scene, colour=colour)) for colour in ("red", "blue"))
        for corner in CORNERS if scene.is_scattered else (scene.corner,):
            assert np.array_equal(cut_view(red, region_of(corner)), cut_view(blue, region_of(corner)))


def test_a_question_about_the_shape_needs_no_more_than_the_quarter_view():
    for is_scattered in (False, True):
        (scene,) = scenes(1, is_scattered=is_scattered)
        needs = [CropRow(scene=scene, kind=kind).needs for kind in ("colour", "shape", "stripes")]
        assert needs == ["quarter", "quarter", "full" if is_scattered else "region"]
        assert CropRow(scene=replace(scene, stripe_width=COARSE), kind="stripes").needs == "quarter"


@pytest.mark.parametrize("need", NEEDS)
def test_a_row_is_drawn_with_the_need_that_is_wanted_and_from_its_split(need):
    rng = np.random.default_rng(0)
    for split in ("train", "heldout"):
        rows = [draw_row(rng, split, need=need) for _ in range(20)]
        assert {(row.needs, row.scene.split) for row in rows} == {(need, split)}


def test_the_written_rows_say_what_they_need_and_where(tmp_path):
    paths = make_crop(tmp_path, train_rows=30, heldout_rows=9)
    assert {split: len(Dataset.open(str(path))) for split, path in paths.items()} == {"train": 30, "heldout": 9}
    dataset = Dataset.open(str(paths["train"]))
    samples = [dataset.read(SampleRef(dataset="crop", row=row, uid=str(row))) for row in range(30)]
    assert Counter(sample.needs for sample in samples) == {"quarter": 10, "region": 10, "full": 10}
    for sample in samples:
        assert sample.needs_full == (sample.needs != "quarter")
        view = needed_view(sample.needs, sample.region, FULL, SPEC.token_side)
        assert isinstance(view, Crop) == (sample.needs == "region")
        if isinstance(view, Crop):
            assert tokens_of(view, FULL, SPEC.token_side) == 4


def test_the_same_seed_writes_identical_bytes(tmp_path):
    first, again, other = (
        make_crop(tmp_path / name, train_rows=20, heldout_rows=5, seed=seed)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert all(first[split].read_bytes() == again[split].read_bytes() for split in first)
    assert all(first[split].read_bytes() != other[split].read_bytes() for split in first)
