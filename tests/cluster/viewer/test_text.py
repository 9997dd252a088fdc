"""Tokens as spans."""

from tokenizers import Tokenizer, decoders, models

from cluster.viewer.text import load_tokenizer, spans_of
from configs.paths import ROOT


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


def test_a_record_of_tokens_that_is_damaged_has_no_spans():
    tokenizer = load_tokenizer(str(ROOT / "configs" / "tiny"))
    assert tokenizer is not None
    sound = {"completion_ids": [1, 2], "logprobs": [-0.1, -0.2], "version_spans": []}
    assert len(spans_of(tokenizer, sound)) == 2
    for change in ({"completion_ids": [1, None]}, {"completion_ids": [1, -2]}, {"logprobs": [None, -0.1]}):
        assert spans_of(tokenizer, sound | change) == []
