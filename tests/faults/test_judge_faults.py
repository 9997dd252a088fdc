"""Judges that fail, on real parts: Ray Serve, the endpoint's client over sockets, and the caller's side."""

import asyncio
import os
import signal
import time
from dataclasses import asdict, replace

import pytest
import yaml
from ray import serve

from configs.judges import JudgeConfig, LLMJudgeConfig
from judge.deployment import delete_application, deploy_judges
from judge.llm.cache import VerdictCache
from judge.llm.prompt import load_wording
from judge.llm.version import judge_version
from judge.pool import JudgePool
from judge.verdict import JudgeRequest, NoVerdict, Verdict
from tests.judge.openai_server import OpenAIServer, failing_share, honest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

GROUP_SIZE, MIN_SCORED = 8, 2
PRICES = {"prompt_price": 2.0, "reply_price": 8.0}


def llm_judges(server: OpenAIServer, **settings: object) -> JudgeConfig:
    llm = LLMJudgeConfig(model="scripted", base_url=server.url, try_timeout_s=5.0, **PRICES)
    return JudgeConfig(**{"chain": ("openai",), "llm": llm, **settings})


def group(number: int) -> JudgeRequest:
    """Half of the answers are right; all of them differ."""
    answers = tuple(f"red{' ' * i}" if i % 2 else f"blue {i}" for i in range(GROUP_SIZE))
    return JudgeRequest(question=f"Which colour is shape {number}?", reference="red", predictions=answers)


def is_right(prediction: str) -> bool:
    return prediction.strip() == "red"


async def test_with_a_tenth_of_the_calls_failing_for_good_no_group_is_lost(local_ray):
    with OpenAIServer(failing_share(0.1)) as server:
        config = llm_judges(server)
        pool = JudgePool(deploy_judges(config, "tenth"), config)
        groups = [group(number) for number in range(60)]
        graded = await asyncio.gather(*(pool.grade(request) for request in groups))
        delete_application("tenth")
    counts = pool.counters
    num_scored = [sum(isinstance(outcome, Verdict) for outcome in outcomes) for outcomes in graded]
    lost = sum(scored < MIN_SCORED for scored in num_scored)
    assert lost < 0.01 * len(groups)
    assert 0.06 < counts.num_unjudged / (GROUP_SIZE * len(groups)) < 0.14, "the failing tenth, and nothing else"
    for request, outcomes in zip(groups, graded, strict=True):
        for prediction, outcome in zip(request.predictions, outcomes, strict=True):
            assert isinstance(outcome, NoVerdict) or outcome.is_correct == is_right(prediction)
    assert counts.num_llm_calls == server.num_calls
    judged = GROUP_SIZE * len(groups) - counts.num_unjudged
    assert counts.cost_usd >= (judged * (100 * 2.0 + 5 * 8.0)) / 1e6


async def test_an_outage_is_waited_out_and_what_was_decided_is_never_asked_again(local_ray, tmp_path):
    said: list[str] = []
    with OpenAIServer(honest) as server:
        config = llm_judges(server)
        handle, store = deploy_judges(config, "outage"), VerdictCache(tmp_path / "verdicts.sqlite", said.append)
        pool = JudgePool(handle, config, store=store, judge_version=judge_version(config), warn=said.append)
        await pool.grade(group(0))
        server.is_down = True
        under_way = [asyncio.create_task(pool.grade(group(number))) for number in range(1, 13)]
        await asyncio.sleep(6)
        assert not any(task.done() for task in under_way)
        num_calls, went_up_at = server.num_calls, time.monotonic()
        assert num_calls < 12 * GROUP_SIZE * 3, "probes, not storms"
        server.is_down = False
        graded = await asyncio.gather(*under_way)
        assert time.monotonic() - went_up_at < 15
        assert all(
            outcome.is_correct == is_right(p) for p, outcome in zip(group(1).predictions, graded[0], strict=True)
        )
        assert pool.counters.num_unjudged == 0
        assert 4 < pool.counters.paused_s < 22
        assert len(said) == 2
        num_calls = server.num_calls
        second = JudgePool(handle, config, store=store, judge_version=judge_version(config))
        for number in range(13):
            assert all(isinstance(outcome, Verdict) for outcome in await second.grade(group(number)))
        assert server.num_calls == num_calls
        assert (second.counters.num_calls, second.counters.num_cache_hits) == (0, 13 * GROUP_SIZE)
        store.close()
        delete_application("outage")


async def test_replicas_take_wording_and_secret_with_them_and_read_no_file_to_start(local_ray, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({**asdict(load_wording("judge")), "system": "Our own words. {criterion}"}))
    with OpenAIServer(honest) as server:
        config = llm_judges(server)
        config = replace(config, llm=replace(config.llm, prompt="own.yaml"))
        handle = deploy_judges(config, "wording")
        file.unlink()
        pool = JudgePool(handle, config)
        for _ in range(2):
            assert all(isinstance(outcome, Verdict) for outcome in await pool.grade(group(0)))
            os.kill(await serve.get_app_handle("wording").pid.remote(), signal.SIGKILL)
        heads = {call.text.split("<<<prediction")[0] for call in server.calls}
        delete_application("wording")
    assert len(server.calls) >= 2 * GROUP_SIZE
    assert len(heads) == 1, "one wording and one code for a group, whoever asks"
    assert heads.pop().startswith("Our own words.")
