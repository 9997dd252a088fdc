import pytest

from actors.needs import needed_view
from actors.views import Crop


@pytest.mark.parametrize("need", ["quarter", "full", None])
def test_a_need_without_a_region_is_the_view_itself(need):
    assert needed_view(need, None, (224, 224), 28) == need
    assert needed_view(need, (0.0, 0.0, 0.5, 0.5), (224, 224), 28) == need


def test_a_region_is_enlarged_to_whole_visual_tokens():
    assert needed_view("region", (0.5, 0.25, 0.75, 0.5), (224, 112), 28) == Crop(left=56, top=56, right=84, bottom=112)
    assert needed_view("region", (0.13, 0.0, 0.24, 0.01), (224, 224), 28) == Crop(left=28, top=0, right=56, bottom=28)


def test_a_region_that_the_set_does_not_record_is_unknown():
    assert needed_view("region", None, (224, 224), 28) is None
