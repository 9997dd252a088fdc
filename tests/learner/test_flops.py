"""Operations of an update, counted by hand."""

import pytest
from torch import nn

from tests.bench.flops import Passes, _vision, products
from tests.learner.builders import small_model


def test_frozen_weights_need_no_gradient_of_their_own():
    """2 x 3 trained, 4 x 3 frozen, biases are no products: 2 (6 + 12) forward, then 2 x 2 x 6 and 2 x 12 backward."""
    trained, frozen = nn.Linear(3, 2), nn.Linear(3, 4).requires_grad_(False)
    assert products([*trained.parameters(), *frozen.parameters()]) == Passes(36, 48)
    assert products(trained.parameters()).total == 3 * products(trained.parameters()).forward


@pytest.mark.parametrize(("is_trained", "backward"), [(True, 2), (False, 0)])
def test_a_frozen_tower_has_no_backward_pass(is_trained, backward):
    model = small_model(width=64, vision_width=96, layers=2, vocab_size=448).requires_grad_(is_trained)

    class Shown:
        visual_tokens = {"a": 16}

    found = _vision(model, [Shown()])
    assert found.forward > 0
    assert found.backward == backward * found.forward
