"""An LLM judge against a scripted endpoint: what each behaviour ends in, and that no key is ever shown."""

import asyncio
import logging
import pickle
import time
from dataclasses import replace

import pytest

from configs.judges import JudgeConfig, LLMJudgeConfig
from judge.chain import make_judge
from judge.llm.client import LLMJudge
from judge.llm.version import judge_version
from judge.verdict import Failure, JudgeRequest, NoVerdict, Usage, Verdict
from tests.judge import openai_server as scripted
from tests.judge.openai_server import OpenAIServer

KEY = "sk-very-secret-0123456789"
REQUEST = JudgeRequest(question="Which colour?", reference="red", predictions=("Red", "blue"))


@pytest.fixture(scope="module")
def shared_server():
    with OpenAIServer() as server:
        yield server


@pytest.fixture
def server(shared_server):
    shared_server.plan, shared_server.is_down = scripted.honest, False
    shared_server.calls.clear()
    return shared_server


def config_for(server, **llm):
    settings = {"model": "scripted", "base_url": server.url, "try_timeout_s": 5.0, **llm}
    return JudgeConfig(chain=("openai",), llm=LLMJudgeConfig(**settings))


async def grade(config, request=REQUEST):
    judge = LLMJudge(config)
    try:
        return await judge.grade(request)
    finally:
        await judge.aclose()


async def test_verdicts_come_in_order_with_version_and_usage(server):
    config = config_for(server)
    right, wrong = await grade(config)
    assert (right.is_correct, wrong.is_correct) == (True, False)
    assert right.judge == "openai"
    assert right.judge_version == judge_version(config)
    assert right.usage == Usage(num_calls=1, prompt_tokens=100, reply_tokens=5)
    assert server.num_calls == 2


@pytest.mark.parametrize("reply", ["json", "choice", "text"])
async def test_each_form_of_reply_is_asked_for_and_read(server, reply):
    assert [outcome.is_correct for outcome in await grade(config_for(server, reply=reply))] == [True, False]
    body = server.calls[0].body
    assert (body["temperature"], body["seed"], body["max_tokens"]) == (0, 0, 16)
    assert ("response_format" in body) == (reply == "json")
    assert ("structured_outputs" in body) == (reply == "choice")


BEHAVIOURS = {
    "429": (scripted.storm(), Failure.THROTTLED, "status 429"),
    "429 with seconds": (scripted.storm(retry_after="7"), Failure.THROTTLED, "slow down"),
    "quota used up": (scripted.status(429, kind="insufficient_quota"), Failure.DENIED, "status 429"),
    "500": (scripted.status(500), Failure.UNREACHABLE, "status 500"),
    "503": (scripted.status(503, headers={"Retry-After": "2"}), Failure.UNREACHABLE, "status 503"),
    "400": (scripted.status(400, message="context too long"), Failure.REJECTED, "context too long"),
    "content filter": (scripted.status(400, kind="content_filter"), Failure.REJECTED, "status 400"),
    "401 with the key in it": (scripted.echoes_key(401), Failure.DENIED, "[key]"),
    "403 with the key in it": (scripted.echoes_key(403), Failure.DENIED, "[key]"),
    "500 with the key in it": (scripted.echoes_key(500), Failure.UNREACHABLE, "[key]"),
    "404": (scripted.status(404, message="no such model"), Failure.DENIED, "no such model"),
    "time-out": (scripted.hangs, Failure.UNREACHABLE, "try_timeout_s=0.3"),
    "slow drip": (scripted.drips, Failure.UNREACHABLE, "try_timeout_s=0.3"),
    "hang-up in the body": (scripted.hangs_up, Failure.UNREACHABLE, "APIConnectionError"),
    "reset": (scripted.resets, Failure.UNREACHABLE, "APIConnectionError"),
    "half a JSON body": (scripted.half_json, Failure.UNUSABLE, "not JSON"),
    "a web page": (scripted.raw(b"<html>1</html>", "text/html"), Failure.UNUSABLE, "not JSON"),
    "no body": (scripted.raw(b""), Failure.UNUSABLE, "not JSON"),
    "wrong schema": (scripted.raw(b'{"verdict": 1}'), Failure.UNUSABLE, "no choices"),
    "error with success": (scripted.raw(b'{"error": {"message": "1"}}'), Failure.UNUSABLE, "no choices"),
    "no choices": (scripted.no_choices, Failure.UNUSABLE, "0 choices"),
    "two choices": (scripted.two_choices, Failure.UNUSABLE, "2 choices"),
    "two verdicts": (scripted.says('{"verdict": 1} {"verdict": 0}'), Failure.UNUSABLE, "not a verdict"),
    "1 in prose": (scripted.says("Score: 0, because of step 1"), Failure.UNUSABLE, "not a verdict"),
    "cut reply": (scripted.says('{"verdict": 1}', finish_reason="length"), Failure.UNUSABLE, "length"),
    "other keys": (scripted.says('{"score": 1}'), Failure.UNUSABLE, "not a verdict"),
    "true": (scripted.says('{"verdict": true}'), Failure.UNUSABLE, "not a verdict"),
    "empty reply": (scripted.says(""), Failure.UNUSABLE, "not a verdict"),
    "no text": (scripted.says(None), Failure.UNUSABLE, "no text"),
    "refusal": (scripted.says(None, refusal="I cannot"), Failure.UNUSABLE, "refusal"),
    "tool call": (scripted.says(None, tool_calls=[{"id": "1"}]), Failure.UNUSABLE, "tool_calls"),
    "filtered reply": (scripted.says("", finish_reason="content_filter"), Failure.REJECTED, "filtered"),
    "key in the reply": (scripted.says(KEY), Failure.UNUSABLE, "[key]"),
}


@pytest.mark.parametrize("name", BEHAVIOURS)
async def test_no_failure_is_a_verdict_none_is_tried_again_and_none_shows_the_key(
    server, name, monkeypatch, caplog, capfd
):
    plan, failure, words = BEHAVIOURS[name]
    server.plan = plan
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    judge = LLMJudge(config_for(server, api_key_env="JUDGE_KEY", try_timeout_s=0.3 if "_s=" in words else 5.0))
    started = time.monotonic()
    outcomes = await judge.grade(REQUEST)
    assert time.monotonic() - started < 3
    assert {type(outcome) for outcome in outcomes} == {NoVerdict}
    assert {outcome.failure for outcome in outcomes} == {failure}
    assert all(words in outcome.reason and len(outcome.reason) <= 200 for outcome in outcomes)
    assert [outcome.usage.num_calls for outcome in outcomes] == [1, 1]
    assert server.num_calls == 2
    assert server.calls[0].headers["authorization"] == f"Bearer {KEY}"
    shown = "".join((repr(judge), repr(outcomes), caplog.text, *capfd.readouterr()))
    assert KEY[:8] not in shown
    await judge.aclose()


async def test_a_wait_that_the_endpoint_asks_for_is_handed_on(server):
    server.plan = scripted.storm(retry_after="7")
    assert [outcome.retry_after_s for outcome in await grade(config_for(server))] == [7, 7]
    server.plan = scripted.status(503, headers={"Retry-After-Ms": "1500"})
    assert [outcome.retry_after_s for outcome in await grade(config_for(server))] == [1.5, 1.5]


async def test_nobody_listening_is_unreachable_and_an_outage_ends(server):
    with OpenAIServer() as gone:
        config = config_for(gone)
    assert {outcome.failure for outcome in await grade(config)} == {Failure.UNREACHABLE}
    server.is_down = True
    judge = LLMJudge(config_for(server))
    assert {outcome.failure for outcome in await judge.grade(REQUEST)} == {Failure.UNREACHABLE}
    server.is_down = False
    assert {type(outcome) for outcome in await judge.grade(REQUEST)} == {Verdict}
    await judge.aclose()


async def test_a_mended_key_file_is_read_after_a_refusal_and_not_before(server, tmp_path):
    server.plan = scripted.wants_key(KEY)
    file = tmp_path / "key"
    file.write_text("sk-old-and-revoked-key")
    judge = LLMJudge(config_for(server, api_key_file=str(file)))
    denied = await judge.grade(REQUEST)
    assert {outcome.failure for outcome in denied} == {Failure.DENIED}
    assert "revoked" not in repr(denied)
    file.write_text(KEY)
    assert {type(outcome) for outcome in await judge.grade(REQUEST)} == {Verdict}
    file.unlink()
    assert {type(outcome) for outcome in await judge.grade(REQUEST)} == {Verdict}
    await judge.aclose()


async def test_a_missing_key_denies_without_a_call_and_says_what_to_do(server, tmp_path):
    file = tmp_path / "key"
    judge = LLMJudge(config_for(server, api_key_file=str(file)))
    outcomes = await judge.grade(REQUEST)
    assert {outcome.failure for outcome in outcomes} == {Failure.DENIED}
    assert f"judge.llm.api_key_file={str(file)!r} cannot be read" in outcomes[0].reason
    assert [outcome.usage for outcome in outcomes] == [Usage(), Usage()]
    assert server.num_calls == 0
    file.write_text(KEY)
    assert {type(outcome) for outcome in await judge.grade(REQUEST)} == {Verdict}
    await judge.aclose()


async def test_nothing_of_the_environment_goes_to_an_endpoint_that_asks_for_no_key(server, monkeypatch):
    for name in (
        "OPENAI_API_KEY",
        "OPENAI_ORG_ID",
        "OPENAI_PROJECT_ID",
        "AZURE_OPENAI_API_KEY",
        "AZURE_OPENAI_AD_TOKEN",
    ):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    await grade(config_for(server))
    await grade(config_for(server, base_url=server.address, azure_api_version="2024-10-21"))
    assert server.num_calls == 4
    assert KEY not in repr([call.headers for call in server.calls])


async def test_azure_is_called_at_its_deployment_with_version_and_key(server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    config = config_for(
        server, base_url=server.address, model="my-gpt", azure_api_version="2024-10-21", api_key_env="JUDGE_KEY"
    )
    assert {type(outcome) for outcome in await grade(config)} == {Verdict}
    call = server.calls[0]
    assert call.path == "/openai/deployments/my-gpt/chat/completions?api-version=2024-10-21"
    assert call.headers["api-key"] == KEY


async def test_predictions_are_asked_about_at_the_same_time(server):
    server.plan = scripted.delayed(0.3)
    started = time.monotonic()
    await grade(config_for(server), replace(REQUEST, predictions=tuple(f"p{index}" for index in range(16))))
    assert time.monotonic() - started < 1.5
    assert server.num_calls == 16


async def test_one_failing_prediction_takes_no_other_with_it(server):
    server.plan = lambda call: scripted.resets(call) if call.fields["prediction"] == "blue" else scripted.honest(call)
    right, lost = await grade(config_for(server))
    assert right.is_correct
    assert lost.failure is Failure.UNREACHABLE


async def test_a_cancelled_request_leaves_nothing_behind(server):
    server.plan = scripted.hangs
    judge = LLMJudge(config_for(server, try_timeout_s=50.0))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await judge.grade(REQUEST)
    assert len(asyncio.all_tasks()) == 1
    await judge.aclose()


async def test_a_bug_is_no_failure_of_the_endpoint(server, monkeypatch):
    monkeypatch.setattr("judge.llm.client.build_messages", lambda *args: 1 / 0)
    with pytest.raises(ExceptionGroup) as error:
        await grade(config_for(server))
    assert error.value.subgroup(ZeroDivisionError) is not None


async def test_a_reference_of_which_nothing_is_left_is_rejected_unasked(server):
    outcomes = await grade(config_for(server), replace(REQUEST, reference="<|im_end|>"))
    assert {outcome.failure for outcome in outcomes} == {Failure.REJECTED}
    assert server.num_calls == 0


async def test_the_chain_asks_only_about_what_the_precheck_left_open(server):
    chain = make_judge(config_for(server))
    outcomes = await chain.grade(replace(REQUEST, predictions=("red", ":", "Solution", "x" * 5000)))
    await chain.aclose()
    assert [outcome.judge for outcome in outcomes] == ["openai", "precheck", "precheck", "precheck"]
    assert [outcome.is_correct for outcome in outcomes] == [True, False, False, False]
    assert server.num_calls == 1


async def test_an_llm_of_the_cluster_wants_its_address_and_no_key(server):
    config = replace(config_for(server), chain=("cluster",))
    assert {outcome.judge for outcome in await grade(config)} == {"cluster"}
    with pytest.raises(ValueError, match="give the address"):
        LLMJudge(JudgeConfig(chain=("cluster",), llm=LLMJudgeConfig(model="m")))


async def test_outcomes_cross_processes(server):
    outcomes = await grade(config_for(server))
    assert pickle.loads(pickle.dumps(outcomes)) == outcomes  # noqa: S301
