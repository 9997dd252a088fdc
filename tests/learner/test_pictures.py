import hashlib
from dataclasses import replace

import numpy as np
import pytest

from actors.data.dataset import Dataset
from actors.data.shapes import make_shapes
from actors.episode import SampleRef
from actors.errors import LearnerError
from actors.images import ViewSpec, check_and_decode, full_view
from configs.schema import DataConfig
from learner.batches.pictures import Picture, PictureReader, pictures_of
from tests.learner.builders import make_group, plan_of

SPEC = ViewSpec(patch_size=14, merge_size=2, min_pixels=56 * 56, max_pixels=112 * 112)
LIMITS = DataConfig()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(make_shapes(tmp_path_factory.mktemp("shapes"), train_rows=4, heldout_rows=4, seed=5)["train"])


def played(path, row):
    """A row's picture as a rollout worker cuts it: what is known of it, and the full view."""
    ref = SampleRef(dataset=path, row=row, uid=f"0-{row}")
    encoded = Dataset.open(path).read(ref).image
    decoded = check_and_decode(encoded, max_pixels=LIMITS.max_source_pixels, max_side_ratio=LIMITS.max_side_ratio)
    view = full_view(decoded, SPEC)
    sha256 = hashlib.sha256(encoded).hexdigest()
    return Picture(handle=None, ref=ref, full_size=view.shape[:2], image_sha256=sha256), view


@pytest.mark.parametrize("row", range(4))
def test_a_picture_read_again_is_the_one_that_was_played(path, row):
    picture, view = played(path, row)
    assert np.array_equal(PictureReader(SPEC, LIMITS).read(picture), view)


def test_a_row_that_has_changed_since_is_refused_with_both_hashes(path):
    picture, _ = played(path, 0)
    with pytest.raises(LearnerError, match=rf"row 1 of .* has changed.* not {picture.image_sha256[:12]}"):
        PictureReader(SPEC, LIMITS).read(replace(picture, ref=replace(picture.ref, row=1)))


def test_another_pixel_budget_is_refused_with_both_sizes(path):
    picture, _ = played(path, 0)
    with pytest.raises(LearnerError, match=r"\(56, 56\) pixels, and was played with \(112, 112\)"):
        PictureReader(replace(SPEC, max_pixels=56 * 56), LIMITS).read(picture)


def test_a_data_set_that_is_not_here_is_a_learners_error(path):
    picture, _ = played(path, 0)
    gone = replace(picture, ref=replace(picture.ref, dataset="/nowhere/train.parquet"))
    with pytest.raises(LearnerError, match=r"row 0 of /nowhere/train\.parquet cannot be read again"):
        PictureReader(SPEC, LIMITS).read(gone)


def test_the_pictures_of_a_plan_are_those_of_its_groups_by_number():
    groups = [make_group(seed) for seed in range(5)]
    for plan in plan_of(groups, prompts=2, ranks=2, budget=300):
        rows = [picture.ref.row for picture in pictures_of(plan, groups)]
        assert rows == [groups[index].played.ref.row for index in plan.image_groups]
