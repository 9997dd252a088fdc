"""Text of a policy made visible, and tokens as spans."""

import pytest
from tokenizers import Tokenizer, decoders, models

from cluster.viewer.text import load_tokenizer, spans_of, visible
from configs.paths import ROOT


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


def test_tokens_of_one_character_are_one_span_with_their_versions():
    letters = {"G": 0, "Ã": 1, "¼": 2, "n": 3, "Ċ": 4}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    spans = spans_of(
        tokenizer,
        {
            "completion_ids": [0, 1, 2, 3, 1],
            "logprobs": [-0.001, -0.5, -0.25, -3.0, float("nan")],
            "version_spans": [{"version": 7, "num_tokens": 2}, {"version": 8, "num_tokens": 3}],
        },
    )
    assert [span.text for span in spans] == ["G", "ü", "n", "\ufffd"]
    assert [span.ids for span in spans] == [(0,), (1, 2), (3,), (1,)]
    assert [span.version for span in spans] == [7, 8, 8, 8]
    assert [span.level for span in spans] == [0, 3, 5, 5], "0.999, exp(-0.75) = 0.47, 0.05, and what is no number"


def test_the_shipped_model_has_a_tokenizer_and_a_moved_one_none(tmp_path):
    assert load_tokenizer(str(ROOT / "configs" / "tiny")) is not None
    assert load_tokenizer(str(tmp_path)) is None
