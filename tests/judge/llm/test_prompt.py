"""What an LLM judge is asked."""

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from configs.judges import JudgeConfig, LLMJudgeConfig
from judge.llm.prompt import FOLDER, Wording, build_messages, call_options, clean_texts, load_wording

WORDING = load_wording("judge")
SECRET = b"of the run"
TEXTS = {
    "system": "s {criterion}",
    "user": "{nonce} {question} {reference} {prediction} {reply}",
    "strict": "exactly",
    "relaxed": "within 5 %",
    "anls": "but for spelling",
    "json_reply": '{"verdict": 1}',
    "digit_reply": "1 or 0",
}


def config(reply="json", metric="strict"):
    return JudgeConfig(metric=metric, llm=LLMJudgeConfig(model="m", reply=reply))


def material(question="what?", reference="red", prediction="blue"):
    return clean_texts(question, reference, prediction, max_field_chars=100, max_answer_chars=50)


def messages(texts, wording=WORDING, secret=SECRET, **settings):
    return build_messages(wording.filled(config(**settings)), texts, secret)


def user_text(texts, **settings):
    return messages(texts, **settings)[-1]["content"]


def test_the_shipped_wording_holds_the_criteria_and_fences_each_text():
    system, user = messages(material())
    assert (system["role"], user["role"]) == ("system", "user")
    for word in ("Synonyms", "Units may be converted", "never meant for you"):
        assert word in system["content"]
    code = re.search(r"The code is ([0-9a-f]{16})\.", user["content"])[1]
    for name, text in (("question", "what?"), ("reference", "red"), ("prediction", "blue")):
        assert f"<<<{name} {code}>>>\n{text}\n<<<end of {name} {code}>>>" in user["content"]
    assert user["content"].count(code) == 7
    assert '{"verdict": 1}' in user["content"]
    assert "one digit" in user_text(material(), reply="choice")
    assert "one digit" in user_text(material(), reply="text")


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("strict", ["exactly", "Nearly the same is wrong"]),
        ("relaxed", ["within 5 %", "years", "label"]),
        ("anls", ["spelling", "read from a document", "each of them is a right answer"]),
    ],
)
def test_the_llm_is_told_the_criterion_of_the_metric_and_of_no_other(metric, words):
    system = messages(material(), metric=metric)[0]["content"]
    assert "{" not in system
    assert [word for word in words if word not in system] == []
    others = {"strict", "relaxed", "anls"} - {metric}
    assert [other for other in others if getattr(WORDING, other) in system] == []


def test_an_equal_call_is_equal_byte_for_byte_and_another_run_has_another_code():
    assert messages(material()) == messages(material())
    assert messages(material()) != messages(material(), secret=b"of another run")


@pytest.mark.parametrize(
    "predictions", [("red", "blue"), ("", "x" * 50), ("<s>", "{question}"), ("1", "The code is 0.")]
)
def test_calls_of_a_group_share_everything_before_the_prediction(predictions):
    first, second = (messages(material(prediction=prediction)) for prediction in predictions)
    assert first[0] == second[0]
    heads = {call[-1]["content"].split("<<<prediction ")[0] for call in (first, second)}
    assert len(heads) == 1
    assert "<<<reference" in heads.pop()


@given(
    st.text(max_size=40)
    | st.sampled_from(["{}", "{reference}", "{nonce}", "{reply}", "%s", "$reference", "{0!r}", "\\1", "\\g<0>"])
)
def test_template_marks_in_the_texts_are_inert(text):
    texts = material(prediction=text, question=text)
    user = user_text(texts)
    code = re.search(r"The code is ([0-9a-f]{16})\.", user)[1]
    assert f"<<<prediction {code}>>>\n{texts['prediction']}\n<<<end" in user
    assert user.count(f"<<<reference {code}>>>\nred\n") == 1


@pytest.mark.parametrize(
    "reference", ["<s>", "</s>", "[INST]", "<|im_end|>", "<image>", "<think>", "<eos><eos>", "\u200b", "\ue000"]
)
def test_a_reference_of_special_tokens_or_of_nothing_visible_is_not_emptied(reference):
    texts = material(reference=reference, prediction=reference)
    assert texts["reference"]
    assert f"\n{texts['reference']}\n<<<end of reference" in user_text(texts)
    assert material(reference=" \n")["reference"] == ""


def test_texts_are_capped():
    texts = material("q" * 1000, "r" * 1000, "p" * 1000)
    assert [len(text) for text in texts.values()] == [100, 100, 50]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"user": "{question} {reference} {reply} {nonce}"}, "{prediction} 0 times"),
        ({"user": TEXTS["user"] + "{question}"}, "{question} 2 times"),
        ({"user": "{question} {reference} {prediction} {reply}"}, "no {nonce} before {prediction}"),
        ({"user": "{nonce} {prediction} {question} {reference} {reply}"}, "no {question} before {prediction}"),
        ({"user": "{nonce} {question} {reference} {prediction}"}, "{reply} 0 times"),
        ({"user": TEXTS["user"] + "{answer}"}, "{answer} 1 times"),
        ({"user": TEXTS["user"] + "{criterion}"}, "{criterion} 2 times"),
        ({"system": "s"}, "{criterion} 0 times"),
        ({"system": "{criterion} about {question}"}, "{question} 2 times"),
        ({"strict": "as in {reference}"}, "{reference} 2 times"),
        ({"relaxed": ""}, "relaxed is empty"),
        ({"json_reply": " "}, "json_reply is empty"),
        ({"system": 3}, "to texts"),
        ({"extra": "x"}, "map exactly system, user, strict, relaxed, anls, json_reply, digit_reply"),
    ],
)
def test_a_wording_that_cannot_work_is_refused_with_the_reason(change, words, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({**TEXTS, **change}))
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        load_wording(str(file))
    assert str(error.value).startswith(f"judge.llm.prompt={str(file)!r} is invalid")


def test_a_file_that_is_missing_or_no_yaml_is_refused(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        load_wording(str(tmp_path / "none.yaml"))
    file = tmp_path / "own.yaml"
    for content in (b"a: [", b"\xff\xfe\x00"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"is invalid: .*give `judge`, or a YAML file"):
            load_wording(str(file))
    with pytest.raises(ValueError, match="No such file"):
        load_wording("no-such-wording")


def test_a_wording_of_ones_own_works_without_a_system_text(tmp_path):
    file = tmp_path / "own.yaml"
    texts = {**TEXTS, "system": "", "user": "{criterion} " + TEXTS["user"]}
    file.write_text(yaml.safe_dump(texts))
    (message,) = messages(material(), wording=load_wording(str(file)))
    assert (message["role"], message["content"][:8]) == ("user", "exactly ")
    assert (FOLDER / "judge.yaml").is_file()
    assert load_wording(str(file)) == Wording(**texts)


def test_a_model_that_thinks_gets_room_for_it_and_no_temperature():
    options = call_options(LLMJudgeConfig(model="m", thinks=True, max_reply_tokens=512))
    assert options.keys() - {"response_format"} == {"model", "n", "max_completion_tokens"}
    assert options["max_completion_tokens"] == 512
    with pytest.raises(ValueError, match=r"judge\.llm\.max_reply_tokens=16 .*thinks"):
        LLMJudgeConfig(model="m", thinks=True)


@pytest.mark.parametrize(("mode", "field"), [("json", "response_format"), ("choice", "extra_body"), ("text", None)])
def test_sampling_is_fixed_and_the_form_is_asked_for_where_the_endpoint_can_keep_it(mode, field):
    options = call_options(LLMJudgeConfig(model="m", reply=mode, max_reply_tokens=7))
    sampling = {"model": "m", "temperature": 0.0, "seed": 0, "max_tokens": 7, "n": 1}
    assert {name: options[name] for name in sampling} == sampling
    assert set(options) - set(sampling) == ({field} if field else set())
    if mode == "json":
        form = options["response_format"]["json_schema"]
        assert form["strict"] is True
        assert form["schema"]["additionalProperties"] is False
    if mode == "choice":
        assert options["extra_body"] == {"structured_outputs": {"choice": ["0", "1"]}}
