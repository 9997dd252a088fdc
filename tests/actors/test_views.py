import numpy as np
import pytest

from actors.images import quarter_view
from actors.views import Crop, cut_view, parse_view, region, shown_size, tokens_of

FULL = np.random.default_rng(0).integers(0, 256, (112, 224, 3), dtype=np.uint8)
CROP = Crop(left=28, top=56, right=112, bottom=84)


@pytest.mark.parametrize(
    ("view", "text", "size", "tokens", "shows"),
    [
        ("quarter", "quarter", (56, 112), 8, Crop(left=0, top=0, right=224, bottom=112)),
        ("full", "full", (112, 224), 32, Crop(left=0, top=0, right=224, bottom=112)),
        (CROP, "crop:28,56,112,84", (28, 84), 3, CROP),
    ],
)
def test_a_view_is_a_value_with_a_text(view, text, size, tokens, shows):
    assert str(view) == text
    assert parse_view(text) == view
    assert hash(parse_view(text)) == hash(view)
    assert shown_size(view, FULL.shape[:2]) == size == cut_view(FULL, view).shape[:2]
    assert tokens_of(view, FULL.shape[:2], 28) == tokens
    assert region(view, FULL.shape[:2]) == shows


def test_pixels_come_from_the_full_view():
    assert (cut_view(FULL, "full") == FULL).all()
    assert (cut_view(FULL, "quarter") == quarter_view(FULL)).all()
    assert (cut_view(FULL, CROP) == FULL[56:84, 28:112]).all()


@pytest.mark.parametrize("text", ["", "Full", "crop", "crop:1,2,3", "crop:5,0,5,9", "crop:0,9,5,0", "crop:-1,0,5,9"])
def test_another_text_is_no_view(text):
    with pytest.raises(ValueError, match="is invalid"):
        parse_view(text)


@pytest.mark.parametrize("box", [(0, 0, 0, 28), (0, 28, 28, 0), (-28, 0, 28, 28)])
def test_a_box_without_an_inside_is_a_bug(box):
    with pytest.raises(AssertionError):
        Crop(left=box[0], top=box[1], right=box[2], bottom=box[3])


def test_a_crop_outside_of_the_picture_is_a_bug():
    with pytest.raises(AssertionError):
        cut_view(FULL, Crop(left=0, top=0, right=252, bottom=28))
