"""An LLM judge against a scripted endpoint: what each behaviour ends in, and that no key is ever shown."""

import asyncio
import logging
import pickle
import time
from dataclasses import asdict, replace

import pytest
import yaml

from configs.judges import JudgeConfig, LLMJudgeConfig
from judge.llm.client import LLMJudge
from judge.llm.endpoint import connect
from judge.llm.prompt import load_wording
from judge.llm.version import judge_version
from judge.pool import JudgePool
from judge.verdict import Failure, JudgeRequest, NoVerdict, Usage, Verdict
from tests.judge import openai_server as scripted
from tests.judge.openai_server import METRICS, OpenAIServer
from tests.judge.scripted import InProcess

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
    "half a JSON body": (scripted.half_json, Failure.UNUSABLE, "no chat completion"),
    "a web page": (scripted.raw(b"<html>1</html>", "text/html"), Failure.UNUSABLE, "no chat completion"),
    "no body": (scripted.raw(b""), Failure.UNUSABLE, "no chat completion"),
    "wrong schema": (scripted.raw(b'{"verdict": 1}'), Failure.UNUSABLE, "no chat completion"),
    "error with success": (scripted.raw(b'{"error": {"message": "1"}}'), Failure.UNUSABLE, "no chat completion"),
    "no choices": (scripted.no_choices, Failure.UNUSABLE, "no chat completion"),
    "two choices": (scripted.two_choices, Failure.UNUSABLE, "no chat completion"),
    "two verdicts": (scripted.says('{"verdict": 1} {"verdict": 0}'), Failure.UNUSABLE, "not a verdict"),
    "1 in prose": (scripted.says("Score: 0, because of step 1"), Failure.UNUSABLE, "not a verdict"),
    "cut reply": (scripted.says('{"verdict": 1}', finish_reason="length"), Failure.UNUSABLE, "length"),
    "other keys": (scripted.says('{"score": 1}'), Failure.UNUSABLE, "not a verdict"),
    "true": (scripted.says('{"verdict": true}'), Failure.UNUSABLE, "not a verdict"),
    "empty reply": (scripted.says(""), Failure.UNUSABLE, "not a verdict"),
    "no text": (scripted.says(None), Failure.UNUSABLE, "no chat completion"),
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


@pytest.mark.parametrize("reference", ["<|im_end|>", "<s>", "[INST]", "\u200b"])
async def test_a_reference_that_consists_of_special_tokens_is_judged(server, reference):
    request = JudgeRequest(question="Which token?", reference=reference, predictions=(reference, "red"))
    kinds = [getattr(outcome, "is_correct", None) for outcome in await grade(config_for(server), request)]
    assert kinds == [reference != "\u200b", False]


async def test_an_empty_reference_is_rejected_unasked(server):
    outcomes = await grade(config_for(server), replace(REQUEST, reference=" \n"))
    assert {outcome.failure for outcome in outcomes} == {Failure.REJECTED}
    assert server.num_calls == 0


def prompts(server):
    return [call.body["messages"] for call in server.calls]


async def test_at_temperature_0_the_same_question_is_the_same_call_and_a_group_shares_its_prefix(server):
    judge = LLMJudge(config_for(server))
    for predictions in (("Red", "blue"), ("Red",), ("Red",)):
        await judge.grade(replace(REQUEST, predictions=predictions))
    await judge.aclose()
    same = [text for text in map(str, prompts(server)) if "Red" in text]
    assert len(same) == 3
    assert len(set(same)) == 1
    assert len({str(messages).split("<<<prediction")[0] for messages in prompts(server)}) == 1
    await grade(config_for(server))
    assert str(prompts(server)[-1]) not in same, "another run has another secret"


@pytest.mark.parametrize("metric", ["strict", "relaxed", "anls"])
async def test_the_metric_reaches_the_llm(server, metric):
    await grade(replace(config_for(server), metric=metric))
    told = {name: getattr(load_wording("judge"), name) in str(prompts(server)[0][0]["content"]) for name in METRICS}
    assert told == {name: name == metric for name in METRICS}


async def test_a_judge_travels_with_its_wording_and_secret_and_no_replica_reads_a_file(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = asdict(load_wording("judge"))
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**texts, "system": "Our own words. {criterion}"}))
    judge = LLMJudge(config_for(server, prompt="own.yaml"))
    sent = pickle.dumps(judge)
    (tmp_path / "own.yaml").unlink()
    monkeypatch.chdir("/")
    for replica in (pickle.loads(sent), pickle.loads(sent)):  # noqa: S301
        assert [outcome.is_correct for outcome in await replica.grade(REQUEST)] == [True, False]
        await replica.aclose()
    assert "Our own words." in prompts(server)[0][0]["content"]
    assert sorted(map(str, prompts(server)[:2])) == sorted(map(str, prompts(server)[2:])), "one secret for all replicas"


async def test_the_secret_of_the_run_is_shown_nowhere(server):
    config = config_for(server)
    judge = LLMJudge(config)
    shown = repr(judge) + repr(config) + repr(await judge.grade(REQUEST))
    await judge.aclose()
    secret = judge._secret
    assert len(secret) == 32
    assert repr(secret)[2:-1] not in shown
    assert secret.hex() not in shown + repr(server.calls)


async def test_the_model_that_answered_is_recorded(server):
    server.plan = lambda call: replace(
        scripted.honest(call), body=scripted.honest(call).body.replace(b'"scripted"', b'"gpt-4o-2024-11-20"')
    )
    assert {outcome.model for outcome in await grade(config_for(server, model="gpt-4o"))} == {"gpt-4o-2024-11-20"}


DEAD_PROXY = "http://me:secret@127.0.0.1:9"


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_loopback_is_never_asked_through_a_proxy(server, monkeypatch, variable, host):
    monkeypatch.setenv(variable, DEAD_PROXY)
    config = config_for(server, base_url=server.url.replace("127.0.0.1", host))
    assert {type(outcome) for outcome in await grade(config)} == {Verdict}


async def test_an_llm_of_the_cluster_is_never_asked_through_a_proxy(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", DEAD_PROXY)
    monkeypatch.setattr("judge.llm.endpoint.is_direct", lambda url: False)
    assert {type(outcome) for outcome in await grade(replace(config_for(server), chain=("cluster",)))} == {Verdict}
    outcomes = await grade(config_for(server))
    assert {outcome.failure for outcome in outcomes} == {Failure.UNREACHABLE}


@pytest.mark.parametrize("address", ["http://judge.example/v1", "https://judge.example/v1"])
async def test_a_call_that_goes_through_a_proxy_names_it_when_it_fails(monkeypatch, address):
    monkeypatch.setenv("ALL_PROXY", DEAD_PROXY)
    llm = LLMJudgeConfig(model="m", base_url=address, try_timeout_s=5)
    outcomes = await grade(JudgeConfig(chain=("openai",), llm=llm))
    assert {outcome.failure for outcome in outcomes} == {Failure.UNREACHABLE}
    assert outcomes[0].reason.startswith("through the proxy http://127.0.0.1:9 (ALL_PROXY): APIConnectionError")
    assert "secret" not in repr(outcomes)


async def test_a_proxy_that_does_not_concern_the_endpoint_is_not_even_built(monkeypatch):
    config = LLMJudgeConfig(model="m", base_url="http://far.example/v1")
    for variables in ({"ALL_PROXY": "socks5://x:1", "no_proxy": "far.example"}, {"HTTPS_PROXY": "socks5://x:1"}):
        with monkeypatch.context() as environment:
            for name, value in variables.items():
                environment.setenv(name, value)
            await connect(config, "").close()


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "socks4://x:1", "gopher://x", "http://x:port", "http://"])
async def test_a_client_that_cannot_be_built_denies_with_one_line_that_names_the_proxy(monkeypatch, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    llm = LLMJudgeConfig(model="m", base_url="http://judge.example/v1", try_timeout_s=5)
    outcomes = await grade(JudgeConfig(chain=("openai",), llm=llm))
    assert {outcome.failure for outcome in outcomes} == {Failure.DENIED}
    assert "ALL_PROXY" in outcomes[0].reason
    assert "\n" not in outcomes[0].reason


async def test_the_chain_asks_only_about_what_the_precheck_left_open(server):
    config = config_for(server)
    llm = LLMJudge(config)
    outcomes = await JudgePool(InProcess(llm), config).grade(
        replace(REQUEST, predictions=("red", ":", "Solution", "x" * 5000))
    )
    await llm.aclose()
    assert [outcome.judge for outcome in outcomes] == ["openai", "precheck", "precheck", "precheck"]
    assert [outcome.is_correct for outcome in outcomes] == [True, False, False, False]
    assert server.num_calls == 1


async def test_an_llm_of_the_cluster_is_asked_at_its_address(server):
    config = replace(config_for(server), chain=("cluster",))
    assert {outcome.judge for outcome in await grade(config)} == {"cluster"}


async def test_outcomes_cross_processes(server):
    outcomes = await grade(config_for(server))
    assert pickle.loads(pickle.dumps(outcomes)) == outcomes  # noqa: S301
