"""What keeps an LLM judge from judging is found before anything starts; what may pass is told."""

import time
from dataclasses import replace

import pytest

from actors.errors import JudgeError
from configs.judges import JudgeConfig, LLMJudgeConfig
from judge.llm.client import preflight_judge
from tests.judge import openai_server as scripted
from tests.judge.openai_server import OpenAIServer

KEY = "sk-very-secret-0123456789"


@pytest.fixture(scope="module")
def shared_server():
    with OpenAIServer() as server:
        yield server


@pytest.fixture
def server(shared_server):
    shared_server.plan = scripted.honest
    shared_server.calls.clear()
    return shared_server


@pytest.fixture
def told():
    return []


def config_for(server, **llm):
    settings = {"model": "scripted", "base_url": server.url, **llm}
    return JudgeConfig(chain=("rules", "openai"), llm=LLMJudgeConfig(**settings))


async def test_a_judge_that_answers_is_asked_once_and_nothing_is_said(server, told):
    await preflight_judge(config_for(server), warn=told.append)
    assert (server.num_calls, told) == (1, [])
    await preflight_judge(JudgeConfig(), warn=told.append)
    assert server.num_calls == 1


async def test_azure_is_asked_at_its_deployment(server, told):
    config = config_for(server, base_url=server.address, azure_api_version="2024-10-21", model="mine")
    await preflight_judge(config, warn=told.append)
    assert server.calls[0].path == "/openai/deployments/mine/chat/completions?api-version=2024-10-21"


@pytest.mark.parametrize(
    ("plan", "words", "remedy"),
    [
        (scripted.echoes_key(401), "status 401", "correct the key, the model or the address"),
        (scripted.echoes_key(403), "status 403", "correct the key, the model or the address"),
        (scripted.status(404, message="no such model"), "no such model", "correct the key, the model or the address"),
        (scripted.status(429, kind="insufficient_quota"), "status 429", "correct the key"),
        (scripted.status(400, message="no response_format here"), "no response_format here", "judge.llm.reply"),
        (scripted.status(422, message="temperature"), "temperature", "judge.llm.thinks"),
        (scripted.resets, "APIConnectionError", "start it, or correct the address"),
    ],
)
async def test_an_endpoint_that_refuses_or_is_not_there_is_one_line_with_setting_and_remedy(
    server, told, monkeypatch, plan, words, remedy
):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.plan = plan
    with pytest.raises(JudgeError, match=remedy) as error:
        await preflight_judge(config_for(server, api_key_env="JUDGE_KEY"), warn=told.append)
    message = str(error.value)
    assert message.startswith(f"judge.llm.base_url={server.url!r} with judge.llm.model='scripted'")
    assert words in message
    assert KEY[:8] not in message
    assert "\n" not in message
    assert told == []


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (scripted.storm(), "status 429"),
        (scripted.status(500), "status 500"),
        (scripted.status(503), "status 503"),
        (scripted.hangs, "no reply within"),
        (scripted.drips, "no reply within"),
        (scripted.says("Score: 1"), "not a verdict"),
        (scripted.raw(b"<html>", "text/html"), "no chat completion"),
    ],
)
async def test_what_may_pass_is_a_warning(server, told, plan, words):
    server.plan = plan
    started = time.monotonic()
    await preflight_judge(config_for(server), warn=told.append, timeout_s=2.0 if "no reply" in words else 9.0)
    assert time.monotonic() - started < 9
    assert len(told) == 1
    assert words in told[0]


@pytest.mark.parametrize("port", [9, 1])
async def test_nobody_listening_is_found_at_once(told, port):
    config = JudgeConfig(chain=("openai",), llm=LLMJudgeConfig(model="m", base_url=f"http://127.0.0.1:{port}/v1"))
    with pytest.raises(JudgeError, match=r"ConnectError.*start it, or correct the address"):
        await preflight_judge(config, warn=told.append)


async def test_a_proxy_in_between_is_named(told, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    config = JudgeConfig(chain=("openai",), llm=LLMJudgeConfig(model="m"))
    with pytest.raises(JudgeError, match=r"through the proxy http://127.0.0.1:9 \(HTTPS_PROXY\): APIConnectionError"):
        await preflight_judge(config, warn=told.append)
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1")
    with pytest.raises(JudgeError, match=r"socksio.*the proxy socks5://127.0.0.1:1 \(HTTPS_PROXY\)"):
        await preflight_judge(config, warn=told.append)


async def test_key_and_wording_are_checked_before_any_call(server, told, tmp_path, monkeypatch):
    monkeypatch.delenv("UNSET_KEY", raising=False)
    with pytest.raises(JudgeError, match="UNSET_KEY' is empty or not set"):
        await preflight_judge(config_for(server, api_key_env="UNSET_KEY"), warn=told.append)
    with pytest.raises(JudgeError, match="cannot be read"):
        await preflight_judge(config_for(server, api_key_file=str(tmp_path / "none")), warn=told.append)
    with pytest.raises(ValueError, match=r"judge\.llm\.prompt='\./none\.yaml' is invalid"):
        await preflight_judge(config_for(server, prompt="./none.yaml"), warn=told.append)
    await preflight_judge(replace(config_for(server), chain=("cluster",)), warn=told.append)
    assert server.num_calls == 0
