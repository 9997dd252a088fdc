"""Grades and extractions: what is asked, how strictly the reply is read, and that runs are kept apart."""

from dataclasses import replace

import pytest

from configs.judges import JudgeConfig, LLMJudgeConfig
from judge.llm.cache import VerdictCache
from judge.llm.client import LLMJudge
from judge.llm.prompt import call_options, prompt_of, read_completion
from judge.llm.tasks import GRADES, parse_task_reply
from judge.pool import JudgePool
from judge.verdict import JudgeRequest, NoVerdict, Verdict
from tests.judge.openai_server import OpenAIServer, choice, completion
from tests.judge.scripted import InProcess

CONFIG = JudgeConfig(chain=("rules", "openai"), max_replicas=1, llm=LLMJudgeConfig(model="m"))


@pytest.mark.parametrize(
    ("text", "form", "found"),
    [
        ('{"grade": 0.7}', "json", (True, "0.7")),
        ('{"grade": 1}', "json", (True, "1")),
        ('{"grade": 0.0}', "json", (False, "0.0")),
        ('{"grade": 0.75}', "json", None),
        ('{"grade": true}', "json", None),
        ('{"grade": "0.7"}', "json", None),
        ('{"grade": 0.7, "why": ""}', "json", None),
        ("[0.7]", "json", None),
        ("I would rather not say", "json", None),
        ("[" * 100_000, "json", None),
        (" 0.4\n", "text", (False, "0.4")),
        ("1.1", "text", None),
        ("0.5 because", "text", None),
        ("-0.5", "choice", None),
    ],
)
def test_a_grade_is_read_whole_or_not_at_all(text, form, found):
    assert parse_task_reply("grade", text, form) == found


@pytest.mark.parametrize(("task", "wanted"), [("grade", "a grade"), ("extract", "an answer")])
def test_a_reply_that_is_no_json_is_told_as_such(task, wanted):
    body = completion([choice("I would rather not say")]).body.decode()
    outcome = read_completion(body, "json", judge="openai", judge_version="v", task=task)
    assert outcome.reason == f"unusable reply: not {wanted}: 'I would rather not say'"


def test_an_extraction_is_the_text_of_one_key():
    assert parse_task_reply("extract", '{"answer": " 14 "}', "json") == (True, "14")
    assert parse_task_reply("extract", '{"answer": 14}', "json") is None
    assert parse_task_reply("extract", "(B)", "text") == (True, "(B)")
    assert parse_task_reply("extract", " ", "text") == (False, "")


@pytest.mark.parametrize("task", ["grade", "extract"])
@pytest.mark.parametrize("form", ["json", "text", "choice"])
def test_the_prompt_of_a_task_has_its_three_places_and_no_other(task, form):
    config = replace(CONFIG, llm=replace(CONFIG.llm, reply=form))
    system, user = prompt_of(config, task)
    assert [user.count(f"{{{place}}}") for place in ("question", "reference", "prediction", "nonce")] == [1] * 4
    assert "{reply}" not in system + user
    options = call_options(config.llm, task, run=2)
    assert options["seed"] == 2
    assert ("response_format" in options) == (form == "json")
    if form == "choice" and task == "grade":
        assert options["extra_body"]["structured_outputs"]["choice"] == list(GRADES)


async def test_a_pool_grades_and_extracts_past_the_rules_and_keeps_runs_apart(tmp_path):
    def plan(call):
        asked = call.body["response_format"]["json_schema"]["name"]
        replies = {"grade": f'{{"grade": 0.{call.body["seed"]}}}', "answer": '{"answer": "14"}'}
        return completion([choice(replies.get(asked, "no"))])

    with OpenAIServer(plan) as server:
        config = replace(CONFIG, llm=replace(CONFIG.llm, base_url=server.url))
        judge, store = LLMJudge(config), VerdictCache(tmp_path / "verdicts.sqlite", pytest.fail)
        pool = JudgePool(InProcess(judge), config, store=store, judge_version="v")
        judge._version = "v"
        request = JudgeRequest(question="What is x?", reference="red", predictions=("red",), task="grade")
        for _ in range(2):  # the second time from the cache
            graded = [(await pool.grade(replace(request, run=run)))[0] for run in (0, 3, 7)]
            assert [outcome.reply for outcome in graded] == ["0.0", "0.3", "0.7"]
        (extracted,) = await pool.grade(replace(request, task="extract"))
        assert (extracted.reply, server.num_calls) == ("14", 4)
        (verdict,) = await pool.grade(replace(request, task="verdict"))
        assert (verdict.judge, server.num_calls) == ("rules", 4)
        await judge.aclose()
        store.close()


async def test_a_reply_that_is_no_grade_is_no_verdict():
    with OpenAIServer(lambda call: completion([choice('{"grade": 7}')])) as server:
        config = replace(CONFIG, llm=replace(CONFIG.llm, base_url=server.url))
        judge = LLMJudge(config)
        request = JudgeRequest(question="?", reference="red", predictions=("blue",), task="grade")
        (outcome,) = await judge.grade(request)
        await judge.aclose()
    assert isinstance(outcome, NoVerdict)
    assert "not a grade" in outcome.reason
    assert Verdict(is_correct=True, judge="j", reason="").reply == ""
