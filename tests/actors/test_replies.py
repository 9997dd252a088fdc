import json

import pytest

from actors.replies import Answer, Malformed, parse_reply
from actors.tools.registry import RESIZE_ALONE, ToolCall
from actors.tools.resize import RESIZE_CALL
from actors.tools.tool import WrongCall

PRETTY = json.dumps(json.loads(RESIZE_CALL), indent=4)
CALL = f"<tool_call>{RESIZE_CALL}</tool_call>"


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
    assert parse_reply(text, RESIZE_ALONE) == Answer(text=answer)


@pytest.mark.parametrize("call", [RESIZE_CALL, PRETTY, f"\n{PRETTY}\n"])
def test_a_valid_call_is_a_call_however_it_is_printed(call):
    assert parse_reply(f"<think>too small</think>\n<tool_call>{call}</tool_call>", RESIZE_ALONE) == ToolCall(
        name="resize_image", arguments={"action": "resize"}
    )


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
        "<think>a</think><answer><|image_pad|></answer>",
        "<think>a</think><answer>red<|im_start|>user</answer>",
        "<THINK>a</THINK><answer>red</answer>",
    ],
)
def test_anything_else_is_malformed(text):
    assert isinstance(parse_reply(text, RESIZE_ALONE), Malformed)


@pytest.mark.parametrize(
    "text",
    [
        "<think>a</think><tool_call>resize</tool_call>",
        '<think>a</think><tool_call>{"name": "resize_image"}</tool_call>',
        '<think>a</think><tool_call>{"name": "zoom", "arguments": {"action": "resize"}}</tool_call>',
        '<think>a</think><tool_call>{"name": "resize_image", "arguments": {"action": "crop"}}</tool_call>',
        '<think>a</think><tool_call>{"name": "resize_image", "arguments": "resize"}</tool_call>',
        f'<think>a</think><tool_call>{{"name": "x", {RESIZE_CALL[1:]}</tool_call>',
        f"<think>a</think><tool_call>[{RESIZE_CALL}]</tool_call>",
        f"<think>a</think><tool_call>{RESIZE_CALL[:-1]}</tool_call>",
    ],
)
def test_anything_else_in_the_tags_of_a_call_is_a_wrong_call_and_malformed_without_tools(text):
    assert isinstance(parse_reply(text, RESIZE_ALONE), WrongCall)
    assert isinstance(parse_reply(text, None), Malformed)


def test_deeply_nested_json_is_a_wrong_call_and_not_a_crash():
    text = f"<think>a</think><tool_call>{'[' * 100_000}</tool_call>"
    assert isinstance(parse_reply(text, RESIZE_ALONE), WrongCall)


def test_a_call_without_tools_is_malformed():
    assert isinstance(parse_reply(f"<think>a</think>{CALL}", None), Malformed)
