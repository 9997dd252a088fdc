"""Text of others made visible."""

import pytest

from cluster.visible import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\tc", "a\nb\tc"),
        ("\x00\x1b[2J\r", "␀␛[2J␍"),
        ("user\u202egnp.exe", "user⟦U+202E⟧gnp.exe"),
        ("\u2066\ufeff\x85", "⟦U+2066⟧⟦U+FEFF⟧⟦U+0085⟧"),
        ("half \ud83d", "half ?"),
        ("日本 עברית 👩‍🔬", "日本 עברית 👩‍🔬"),
        (None, "None"),
    ],
)
def test_characters_that_act_unseen_are_shown_and_others_stay(text, shown):
    assert visible(text) == shown
