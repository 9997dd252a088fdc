"""Only a whole, strict verdict is one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge.llm.prompt import parse_verdict, read_completion
from judge.verdict import Failure, NoVerdict, Usage, Verdict

GOOD = {"role": "assistant", "content": '{"verdict": 1}', "refusal": None}


@pytest.mark.parametrize(
    ("mode", "text", "is_correct"),
    [
        ("json", '{"verdict": 1}', True),
        ("json", ' {"verdict":0}\n', False),
        ("json", '{ "verdict" : 1 }', True),
        ("choice", "1", True),
        ("choice", "0", False),
        ("text", " 1\n", True),
        ("text", "0", False),
    ],
)
def test_one_verdict_is_read(mode, text, is_correct):
    assert parse_verdict(text, mode) is is_correct


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "1", "0", "true", "null", "[]", "{}", '"1"', '["verdict", 1]', '[{"verdict": 1}]', "Verdict: 1",
        "Score: 1", "Score: 0 because of step 1", 'The verdict is {"verdict": 1}', '{"verdict": 1} because',
        '{"verdict": 1}{"verdict": 1}', '{"verdict": 1}\n{"verdict": 0}', '```json\n{"verdict": 1}\n```',
        '{"verdict": 1', '{"verdict":', '{"verdict": true}', '{"verdict": "1"}', '{"verdict": 1.0}', '{"verdict": 1e0}',
        '{"verdict": 2}', '{"verdict": -1}', '{"verdict": null}', '{"verdict": [1]}', '{"verdict": NaN}',
        '{"verdict": 0, "verdict": 1}', '{"verdict": 1, "reason": "x"}', '{"Verdict": 1}', '{"score": 1}',
        "{'verdict': 1}", '{"verdict": 1,}', '{"verdict": 01}', '\ufeff{"verdict": 1}', '{"verdict": １}',
        "[" * 199, '{"verdict": ' + "1" * 150 + "}", '{"verdict": 1}' + " " * 400,
    ],
)  # fmt: skip
def test_anything_else_is_no_json_verdict(text):
    assert parse_verdict(text, "json") is None


@pytest.mark.parametrize("mode", ["choice", "text"])
@pytest.mark.parametrize(
    "text",
    [
        "", "yes", "1.", "1.0", "01", "10", "1 1", "1\n1", "0 1", "**1**", "Score: 1", "１", "①", "-0", "true", '"1"',
        '{"verdict": 1}', "1, since step 0", "<think></think>1", "\u200b1",
    ],
)  # fmt: skip
def test_anything_else_is_no_digit(mode, text):
    assert parse_verdict(text, mode) is None


@given(st.text(max_size=300))
def test_no_text_but_a_digit_is_a_digit(text):
    if text.strip(" \t\r\n") not in ("0", "1"):
        assert parse_verdict(text, "text") is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["verdict", "x"]) | st.text(), inner),
)


@given(JSON)
def test_no_json_but_the_one_object_is_a_verdict(value):
    is_verdict = isinstance(value, dict) and set(value) == {"verdict"} and type(value["verdict"]) is int
    if is_verdict and value["verdict"] in (0, 1):
        assert parse_verdict(json.dumps(value), "json") is (value["verdict"] == 1)
    else:
        assert parse_verdict(json.dumps(value), "json") is None


def read(body):
    text = body if isinstance(body, str) else json.dumps(body)
    return read_completion(text, "json", judge="llm", judge_version="v")


def completion(message=GOOD, finish_reason="stop", **changes):
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 3}, **changes}


def test_a_completion_gives_verdict_version_and_usage():
    usage = Usage(num_calls=1, prompt_tokens=9, reply_tokens=3)
    assert read(completion()) == Verdict(
        is_correct=True, judge="llm", reason="replied '{\"verdict\": 1}'", judge_version="v", usage=usage
    )


@pytest.mark.parametrize(
    "usage", [None, {}, [], {"prompt_tokens": "9"}, {"prompt_tokens": -1}, {"prompt_tokens": True}]
)
def test_an_endpoint_that_does_not_count_tokens_judges_all_the_same(usage):
    assert read(completion(usage=usage)).usage == Usage(num_calls=1)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "no chat completion"),
        ("<html>1</html>", "no chat completion"),
        ('{"choices": [{"mess', "no chat completion"),
        ("[" * 100_000, "no chat completion"),
        ("[]", "no chat completion"),
        ("{}", "no chat completion"),
        ({"choices": None}, "no chat completion"),
        ({"choices": {}}, "no chat completion"),
        ({"choices": []}, "no chat completion"),
        ({"choices": ["x"]}, "no chat completion"),
        ({"error": {"message": "1"}}, "no chat completion"),
        ({"choices": completion()["choices"] * 2}, "no chat completion"),
        (completion(None), "no chat completion"),
        (completion({**GOOD, "content": None}), "no chat completion"),
        (completion({**GOOD, "content": ["1"]}), "no chat completion"),
        (completion({**GOOD, "content": ""}), "not a verdict"),
        (completion({**GOOD, "refusal": "I cannot"}), "refusal"),
        (completion({**GOOD, "tool_calls": [{"id": "1"}]}), "tool_calls"),
        (completion({**GOOD, "function_call": {"name": "1"}}), "function_call"),
        (completion(finish_reason="length"), "ended by 'length'"),
        (completion(finish_reason="tool_calls"), "ended by 'tool_calls'"),
        (completion(finish_reason=None), "ended by 'None'"),
        (completion({**GOOD, "content": "\x1b[31m1"}), r"'\x1b[31m1'"),
    ],
)
def test_anything_but_one_finished_choice_with_a_verdict_is_unusable(body, reason):
    outcome = read(body)
    assert isinstance(outcome, NoVerdict)
    assert outcome.failure is Failure.UNUSABLE
    assert reason in outcome.reason
    assert len(outcome.reason) < 150
    assert outcome.usage.num_calls == 1


def test_a_filtered_reply_is_not_asked_for_again():
    assert read(completion(finish_reason="content_filter")).failure is Failure.REJECTED
