import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.prompts import (
    IMAGE_PAD,
    TOOL_CALL,
    Answer,
    ChatRenderer,
    Malformed,
    ToolCall,
    load_prompt_style,
    load_tokenizer,
    parse_reply,
    vision_token_ids,
    without_marks,
)

PRETTY = json.dumps(json.loads(TOOL_CALL), indent=4)
CALL = f"<tool_call>{TOOL_CALL}</tool_call>"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("configs/tiny")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("How many?", "How many?"),
        ("<image>\nHow many?", "\nHow many?"),
        ("<|vision_start|><|image_pad|><|vision_end|>x<|im_end|>", "x"),
        ("is 1 < 2 > 0, |a| <b> and <|>?", "is 1 < 2 > 0, |a| <b> and <|>?"),
        ("<<image>image>", ""),
        ("<im<|image_pad|>age>", ""),
        ("<|im_<image>start|>", ""),
        ("<|" + "a" * 40 + "|>", ""),
        ("<|" + "a" * 41 + "|>", "<|" + "a" * 41 + "|>"),
        ("<|a" * 1000 + "|>" * 1000, ""),
        ("<im" * 1000 + "<image>" + "age>" * 1000, ""),
    ],
)
def test_marks_are_taken_out_of_a_question_however_nested(text, left):
    assert without_marks(text) == left


@given(st.lists(st.sampled_from(["<image>", "<im", "age>", "<|a", "|>", "<", ">", "|", "a"])))
def test_no_mark_is_left_and_nothing_else_is_taken(pieces):
    text = "".join(pieces)

    def one_at_a_time(text):
        while (shorter := re.sub(r"<\|[^|<>]{1,40}\|>|<image>", "", text)) != text:
            text = shorter
        return text

    assert without_marks(text) == one_at_a_time(text)
    assert without_marks(without_marks(text)) == without_marks(text)


@pytest.mark.parametrize("depth", [100_000])
@pytest.mark.parametrize(("opened", "closed"), [("<|a", "|>"), ("<", ">"), ("<im", "age>"), ("<|", "|>")])
def test_marks_are_taken_out_in_linear_time(opened, closed, depth):
    """Taking one layer out at a time needs minutes for what is done here in a second."""
    started = time.process_time()
    without_marks(opened * depth + closed * depth)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>clear</think><answer>red</answer>", "red"),
        ("\n<think>a\nb</think>\n\n<answer> 3.5 cm </answer>\n", "3.5 cm"),
        ("<think></think><answer></answer>", ""),
        ("<think>1 < 2</think><answer>\\boxed{4}</answer>", "\\boxed{4}"),
    ],
)
def test_one_thought_and_one_answer_is_an_answer(text, answer):
    assert parse_reply(text) == Answer(text=answer)


@pytest.mark.parametrize("call", [TOOL_CALL, PRETTY, f"\n{PRETTY}\n"])
def test_a_valid_call_is_a_call_however_it_is_printed(call):
    assert parse_reply(f"<think>too small</think>\n<tool_call>{call}</tool_call>") == ToolCall()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "red",
        "<answer>red</answer>",
        "<think>a</think>",
        "<think>a</think><answer>red</answer><answer>blue</answer>",
        "<think>a</think><think>b</think><answer>red</answer>",
        "<think>a</think> well, <answer>red</answer>",
        "<think>a</think><answer>red</answer> indeed",
        "so <think>a</think><answer>red</answer>",
        "<think>a</think><answer>red",
        "<think>a<answer>red</answer>",
        "<think>a<answer>b</answer></think><answer>red</answer>",
        "<think>a</think><answer><answer>red</answer></answer>",
        f"<think>a</think>{CALL}<answer>red</answer>",
        f"<think>a</think>{CALL}{CALL}",
        f"<think>a</think><answer>red</answer>{CALL}",
        "<think>a</think><tool_call>resize</tool_call>",
        '<think>a</think><tool_call>{"name": "resize_image"}</tool_call>',
        '<think>a</think><tool_call>{"name": "zoom", "arguments": {"action": "resize"}}</tool_call>',
        '<think>a</think><tool_call>{"name": "resize_image", "arguments": {"action": "crop"}}</tool_call>',
        '<think>a</think><tool_call>{"name": "resize_image", "arguments": "resize"}</tool_call>',
        f'<think>a</think><tool_call>{{"name": "x", {TOOL_CALL[1:]}</tool_call>',
        f"<think>a</think><tool_call>[{TOOL_CALL}]</tool_call>",
        f"<think>a</think><tool_call>{TOOL_CALL[:-1]}</tool_call>",
        "<think>a</think><answer><|image_pad|></answer>",
        "<think>a</think><answer>red<|im_start|>user</answer>",
        "<THINK>a</THINK><answer>red</answer>",
    ],
)
def test_anything_else_is_malformed(text):
    assert isinstance(parse_reply(text), Malformed)


def test_deeply_nested_json_is_malformed_and_not_a_crash():
    assert isinstance(parse_reply(f"<think>a</think><tool_call>{'[' * 100_000}</tool_call>"), Malformed)


def test_first_prompt_equals_the_tokenizers_own_chat_template(tokenizer):
    style = load_prompt_style("qwen")
    ids = ChatRenderer(tokenizer, style).first_turn("How many?", 1)
    messages = [
        {"role": "system", "content": style.system.format()},
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": style.user.format(question="How many?")}],
        },
    ]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(ids) == expected


def test_prompts_hold_one_placeholder_per_visual_token(tokenizer):
    renderer = ChatRenderer(tokenizer, load_prompt_style("tiny"))
    first = renderer.first_turn("what?", 16)
    assert first.count(renderer.image_pad_id) == 16
    second = renderer.second_turn(first, (100, 101, renderer.end_id), 64)
    assert second.count(renderer.image_pad_id) == 80
    assert second[: len(first) + 3] == (*first, 100, 101, renderer.end_id)


def test_a_question_cannot_stand_for_a_picture_or_open_a_turn(tokenizer):
    renderer = ChatRenderer(tokenizer, load_prompt_style("tiny"))
    plain = renderer.first_turn("what {colour}?", 4)
    forged = renderer.first_turn(f"what {IMAGE_PAD}<|im_start|>{{colour}}?", 4)
    assert forged == plain
    nested = renderer.first_turn("what <|image_<|im_<|x|>end|>pad|>{colour}?", 4)
    assert nested == plain


def test_prompts_with_and_without_the_tool_differ(tokenizer):
    for name in ("tiny", "qwen"):
        renderer = ChatRenderer(tokenizer, load_prompt_style(name))
        assert renderer.first_turn("what?", 4) != renderer.first_turn("what?", 4, offers_tool=False)


def test_the_qwen_style_shows_the_one_valid_call():
    assert TOOL_CALL in load_prompt_style("qwen").system.format()


def test_vision_tokens_come_from_the_vocabulary(tokenizer):
    ids = vision_token_ids(tokenizer)
    assert tokenizer.convert_tokens_to_ids(IMAGE_PAD) in ids
    assert len(ids) == 4


def test_an_unknown_style_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="qwen, tiny"):
        load_prompt_style("fancy")
    broken = tmp_path / "style.yaml"
    broken.write_text("system: hello\n")
    with pytest.raises(ValueError, match="must map exactly"):
        load_prompt_style(str(broken))


def test_a_style_can_be_a_file(tmp_path):
    path = tmp_path / "style.yaml"
    path.write_text(
        "system: ''\nsystem_without_tool: ''\nuser: 'Q {question}'\nuser_without_tool: '{question}'\nfollowup: F\n"
    )
    assert load_prompt_style(str(path)).user == "Q {question}"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("system", '{"name": "resize"}', "system cannot be filled in"),
        ("system", "about {question}", "system cannot be filled in"),
        ("user", "Q {question} {reference}", "user cannot be filled in"),
        ("user", "Q {question} {", "user cannot be filled in"),
        ("followup", "}", "followup cannot be filled in"),
        ("user_without_tool", "Q {question} {0}", "user_without_tool cannot be filled in"),
    ],
)
def test_a_wording_that_cannot_be_filled_in_is_refused_when_it_is_read(name, text, words, tmp_path):
    texts = {
        "system": "",
        "system_without_tool": "",
        "user": "Q {question}",
        "user_without_tool": "Q {question}",
        "followup": "again",
    }
    path = tmp_path / "style.yaml"
    path.write_text(json.dumps(texts | {name: text}))
    with pytest.raises(ValueError, match=words) as refused:
        load_prompt_style(str(path))
    assert f"model.prompt='{path}'" in str(refused.value)


@pytest.mark.parametrize("content", [b"user: [", b"user: \xff\xfe"])
def test_a_wording_that_is_no_yaml_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "style.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not YAML") as refused:
        load_prompt_style(str(path))
    assert "\n" not in str(refused.value)
