"""Texts from outside stay data, whatever they hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge.llm.fence import clean_text, fence, group_code

TOKENS = (
    "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|endoftext|>", "<|image_pad|>",
    "<｜User｜>", "<｜begin▁of▁sentence｜>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[TOOL_CALLS]", "<s>", "</s>",
    "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<unused12>", "<think>", "</think>", "<tool_call>",
    "[|assistant|]", "[|endofturn|]", "[gMASK]", "<sop>", "<end_of_utterance>", "<extra_id_0>",
)  # fmt: skip
PIECES = st.sampled_from(
    [*TOKENS, "<|im_", "start|>", "[IN", "ST]", "<", ">", "|", " ", "\u200b", "\u202e", "\x00", "red", "{}"]
)


@pytest.mark.parametrize("token", TOKENS)
def test_a_special_token_stays_readable_and_is_none_any_more(token):
    assert clean_text(f"re{token}d", 100) == f"re{token[0]} {token[1:]}d"
    assert clean_text(token.upper(), 100) == f"{token[0]} {token[1:].upper()}"


def test_tokens_inside_tokens_and_behind_invisible_characters_are_found():
    assert clean_text("<|im_<|im_start|>start|>[IN<s>ST]", 100) == "<|im_< |im_start|>start|>[IN< s>ST]"
    assert clean_text("<|im_\u200bstart|>", 100) == "< |im_start|>"


def test_invisible_characters_go_and_the_text_stays_as_written():
    assert clean_text("a\u200bb\u202ec\x00d\ufeffe\U000e0041f\ufe0fg\u3164h", 100) == "abcdefgh"
    assert clean_text("10² ½ ＲＥＤ é naïve\t|x|", 100) == "10² ½ ＲＥＤ é naïve\t|x|"
    assert clean_text("a\r\nb\rc\u2028d\x0be", 100) == "a\nb\nc\nd\ne"
    assert clean_text("a\ud800b", 100).encode() == b"ab"


def test_length_is_capped_before_and_after_cleaning():
    assert clean_text("x" * 10_000_000, 100) == "x" * 100
    assert clean_text("\u200b" * 10_000_000 + "x", 100) == ""


def test_a_group_has_one_code_and_another_group_or_run_another():
    codes = {group_code(b"run", "q", "r", prediction) for prediction in ("red", "blue", "{}")}
    assert len(codes) == 1
    others = {
        group_code(b"run", "q2", "r", "red"),
        group_code(b"run", "q", "r2", "red"),
        group_code(b"2", "q", "r", ""),
    }
    assert len(codes | others) == 4
    assert {len(code) for code in codes | others} == {16}
    assert group_code(b"run", "qr", "", "") != group_code(b"run", "q", "r", "")


@pytest.mark.parametrize("form", [str, str.upper])
def test_a_text_that_holds_the_code_by_chance_gets_another(form):
    code = group_code(b"run", "q", "r", "red")
    other = group_code(b"run", "q", "r", f"red {form(code)}")
    assert other != code
    assert other == group_code(b"run", "q", "r", f"{form(code)}")


@given(st.lists(PIECES | st.text(max_size=5), max_size=30).map("".join))
def test_no_text_keeps_a_token_or_an_invisible_character(text):
    cleaned = clean_text(text, 200)
    assert len(cleaned) <= 200
    assert [token for token in TOKENS if token in cleaned] == []
    assert all(char in "\n\t" or char.isprintable() or char.isspace() for char in cleaned)
    assert clean_text(cleaned, 200) == cleaned
    cleaned.encode()


@given(st.text(max_size=200))
def test_a_fence_has_one_start_and_one_end_whatever_is_inside(text):
    cleaned = clean_text(text, 100)
    code = group_code(b"run", "q", "r", cleaned)
    fenced = fence("prediction", cleaned, code)
    assert fenced.count(code) == 2
    assert fenced == f"<<<prediction {code}>>>\n{cleaned}\n<<<end of prediction {code}>>>"
