"""Replies sorted into reasoning and answer, however they are cut into pieces."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.prompts import ChatRenderer, load_prompt_style, load_tokenizer
from actors.replies import Answer, parse_reply
from actors.tools.registry import RESIZE_ALONE
from actors.tools.resize import RESIZE_CALL
from cluster.serving.deltas import TAGS, Delta, ReplySplitter, TokenText, merged, split_reply


def joined(deltas, channel):
    return "".join(delta.text for delta in deltas if delta.channel == channel)


def shown(text):
    deltas = split_reply(text)
    return joined(deltas, "reasoning"), joined(deltas, "answer")


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>flat?</think><answer>red</answer>", "flat?", "red"),
        (" <think>\n a b \n</think>\n\n<answer>\n red  one \n</answer>\n", "a b", "red  one"),
        (f"<think>unclear</think><tool_call>{RESIZE_CALL}</tool_call>", "unclear", ""),
        ("It is red.", "", "It is red."),
        ("<think>never ends", "never ends", ""),
        ("<think>a</think><answer>b < c and <b>d</b> </ans", "a", "b < c and <b>d</b> </ans"),
        ("<think>a</think><answer><think>b</think>c</answer>", "ab", "c"),
        ("<tool_call>cut off", "", ""),
        ("<<think>>x</think>", ">x", "<"),
        ("", "", ""),
    ],
)
def test_what_a_reply_shows(text, reasoning, answer):
    assert shown(text) == (reasoning, answer)


PIECES = st.sampled_from([*TAGS, "<", "</", "think>", " ", "\n", "é", "a b"])


@settings(deadline=None, max_examples=100)
@given(st.lists(PIECES, max_size=12).map("".join), st.data())
def test_the_cuts_do_not_matter(text, data):
    splitter, deltas, rest = ReplySplitter(), [], text
    while rest:
        length = data.draw(st.integers(1, len(rest)))
        deltas += splitter.add(rest[:length])
        rest = rest[length:]
    deltas += splitter.finish()
    assert (joined(deltas, "reasoning"), joined(deltas, "answer")) == shown(text)
    assert all(delta.text for delta in deltas)


@settings(deadline=None, max_examples=100)
@given(st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"]), max_size=30), st.text(max_size=10))
def test_the_answer_is_the_one_that_is_scored(answer, thought):
    text = f"<think>{thought}</think><answer>{answer}</answer>"
    reply = parse_reply(text, RESIZE_ALONE)
    if isinstance(reply, Answer):
        assert shown(text)[1] == reply.text


def test_nothing_is_shown_of_a_tag_that_is_not_complete_yet():
    splitter = ReplySplitter()
    assert splitter.add("<thi") == []
    assert joined(splitter.add("nk>hm</thin"), "reasoning") == "hm"
    assert splitter.add("k><answer>red ") != []
    assert joined(splitter.finish(), "answer") == "", "the space at the end is not part of the answer"


@pytest.fixture(scope="module")
def renderer():
    return ChatRenderer(load_tokenizer("configs/tiny"), load_prompt_style("tiny"))


@settings(deadline=None, max_examples=60)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.integers(1, 5))
def test_tokens_become_the_text_that_decoding_them_at_once_gives(renderer, text, size):
    """Byte-level tokens cut characters into pieces: none is shown before it is whole."""
    ids = load_ids(renderer, text)
    stream = TokenText(renderer.reply_text)
    parts = [stream.add(ids[start : start + size]) for start in range(0, len(ids), size)]
    parts.append(stream.add((), is_last=True))
    assert "".join(parts) == renderer.reply_text(ids)


def load_ids(renderer, text):
    return [*renderer._tokenizer.encode(text, add_special_tokens=False), renderer.end_id]


def test_a_character_of_several_tokens_is_shown_when_it_is_whole(renderer):
    ids = load_ids(renderer, "é")[:-1]
    assert len(ids) == 2
    stream = TokenText(renderer.reply_text)
    assert stream.add(ids[:1]) == ""
    assert stream.add(ids[1:]) == "é"
    cut = TokenText(renderer.reply_text)
    assert cut.add(ids[:1]) + cut.add((), is_last=True) == "\ufffd", "a reply that ends within a character shows it"


def test_deltas_that_go_out_together_are_merged_within_a_channel():
    pieces = [("reasoning", "a"), ("reasoning", "b"), ("answer", "c"), ("answer", "d"), ("reasoning", "e")]
    deltas = merged([Delta(channel=channel, text=text) for channel, text in pieces])
    assert [(delta.channel, delta.text) for delta in deltas] == [
        ("reasoning", "ab"),
        ("answer", "cd"),
        ("reasoning", "e"),
    ]
