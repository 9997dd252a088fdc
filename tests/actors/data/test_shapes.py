import io
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from actors.data.shapes import (
    COARSE,
    COLOURS,
    FINE,
    SHAPES,
    SIDE,
    WAYS,
    ShapesRow,
    draw_row,
    draw_scene,
    encode_png,
    make_shapes,
    paint,
    shape_mask,
    stripe_mask,
    write_split,
)
from actors.images import ViewSpec, full_view, quarter_view

SPEC = ViewSpec(patch_size=14, merge_size=2, min_pixels=56 * 56, max_pixels=SIDE * SIDE)


def scenes(stripe_width: int, count: int = 12):
    rng = np.random.default_rng(7)
    return [draw_scene(rng, "train", stripe_width=stripe_width) for _ in range(count)]


def test_fine_stripes_of_all_ways_have_the_same_quarter_view_bit_for_bit():
    for scene in scenes(FINE):
        quarters = [quarter_view(paint(replace(scene, way=way))) for way in WAYS]
        assert all(np.array_equal(quarters[0], other) for other in quarters[1:])


def test_the_fine_square_is_flat_in_the_quarter_view():
    for scene in scenes(FINE):
        left = scene.square_left // 2
        square = quarter_view(paint(scene))[70:98, left : left + 28]
        assert (square == square[0, 0]).all()


def test_coarse_stripes_survive_and_every_way_differs_in_both_views():
    for width, cut in ((COARSE, quarter_view), (COARSE, np.array), (FINE, np.array)):
        scene = scenes(width, 1)[0]
        views = [cut(paint(replace(scene, way=way))) for way in WAYS]
        assert len({view.tobytes() for view in views}) == len(WAYS)


def test_half_of_a_fine_square_is_coloured_whatever_the_way():
    for way in WAYS:
        blocks = stripe_mask(way, FINE).reshape(28, 2, 28, 2).sum((1, 3))
        assert (blocks == 2).all()


def test_the_engine_shows_a_picture_as_it_was_painted():
    picture = paint(scenes(FINE, 1)[0])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(picture)))), picture)
    assert np.array_equal(full_view(Image.fromarray(picture), SPEC), picture)


def test_a_row_needs_the_full_view_only_for_fine_stripes():
    coarse, fine = scenes(COARSE, 1)[0], scenes(FINE, 1)[0]
    assert ShapesRow(scene=fine, kind="stripes").needs_full
    assert not ShapesRow(scene=coarse, kind="stripes").needs_full
    assert not ShapesRow(scene=fine, kind="colour").needs_full
    assert not ShapesRow(scene=fine, kind="shape").needs_full


def test_answers_are_what_is_painted():
    scene = scenes(COARSE, 1)[0]
    assert ShapesRow(scene=scene, kind="colour").answer == scene.colour
    assert ShapesRow(scene=scene, kind="shape").answer == scene.shape
    assert ShapesRow(scene=scene, kind="stripes").answer == scene.way
    picture = paint(scene)
    middle = picture[scene.shape_top + 60, scene.shape_left + 42]
    assert tuple(middle) == COLOURS[scene.colour]


def test_the_asked_share_of_rows_needs_the_full_view():
    rng = np.random.default_rng(0)
    rows = [draw_row(rng, "train", needs_full_share=1 / 3) for _ in range(2000)]
    assert np.mean([row.needs_full for row in rows]) == pytest.approx(1 / 3, abs=0.04)
    flat_but_unneeded = [row for row in rows if row.scene.stripe_width == FINE and not row.needs_full]
    assert len(flat_but_unneeded) > 300  # a flat square alone is no reason to ask: the question decides too


def test_splits_share_no_scene_whatever_the_seeds():
    rng = np.random.default_rng(3)
    train = {draw_scene(rng, "train", stripe_width=FINE) for _ in range(500)}
    heldout = {draw_scene(rng, "heldout", stripe_width=FINE) for _ in range(500)}
    assert not train & heldout
    assert len(train) > 490


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_split(tmp_path / name, num_rows=20, seed=seed, split="train")
    first, second, third = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == second
    assert first != third


def test_a_written_split_has_the_published_columns_and_page_checksums(tmp_path):
    counted: list[tuple[str, int]] = []
    paths = make_shapes(
        tmp_path, train_rows=300, heldout_rows=10, progress=lambda split, rows: counted.append((split, rows))
    )
    assert counted == [("train", 256), ("train", 44), ("heldout", 10)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heldout.parquet", "train.parquet"]
    table = pq.read_table(paths["train"], page_checksum_verification=True)
    assert table.column_names == ["problem", "images", "original_answer", "doc_id", "info"]
    row = table.slice(299, 1).to_pylist()[0]
    assert row["info"].keys() == {"tgt_width", "tgt_height", "use_tool"}
    assert Image.open(io.BytesIO(row["images"][0]["bytes"])).size == (SIDE, SIDE)
    assert len(set(table.column("doc_id").to_pylist())) == 300


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    def fail(num_rows: int) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_split(tmp_path / "train.parquet", num_rows=10, seed=0, split="train", progress=fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"num_rows": 0}, {"needs_full_share": 1.5}])
def test_impossible_requests_are_refused(tmp_path, wrong):
    settings = {"num_rows": 5, "seed": 0, "split": "train"} | wrong
    with pytest.raises(ValueError, match="is invalid"):
        write_split(tmp_path / "train.parquet", **settings)


def test_unknown_patterns_are_refused():
    assert len({shape_mask(shape).sum() for shape in SHAPES}) == len(SHAPES)
    with pytest.raises(ValueError, match="unknown"):
        shape_mask("star")
    with pytest.raises(ValueError, match="unknown"):
        stripe_mask("up", FINE)
