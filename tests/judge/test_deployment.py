"""The judge pool as Ray Serve runs it."""

import asyncio
import os
import signal
import socket
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import ray
from ray import serve
from ray.exceptions import ActorDiedError, GetTimeoutError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, RayServeException

from actors.errors import JudgeError
from configs.judges import JudgeConfig, LLMJudgeConfig
from judge.deployment import (
    ServeJudgeHandle,
    count_judges,
    delete_application,
    deploy_judges,
    reap_applications,
    serve_options,
)
from judge.pool import JudgePool
from judge.verdict import JudgeRequest, NoVerdict, Usage, Verdict

LLM = LLMJudgeConfig(model="none", max_concurrent=64)
OPENAI = JudgeConfig(chain=("openai",), llm=LLM)


def request(*answers: str, reference: str = "red") -> JudgeRequest:
    return JudgeRequest(question="Which colour?", reference=reference, predictions=answers)


class Slow:
    """Compares, and takes as long as a model would, so that calls are in flight when a replica dies."""

    def __init__(self, config):
        pass

    async def grade(self, request):
        await asyncio.sleep(3600 if request.reference == "hang" else 0.3)
        if request.reference == "bug":
            raise KeyError("a bug in the judge")
        if request.reference == "outage":
            raise JudgeError("the endpoint is down")
        return [
            Verdict(is_correct=text.strip() == request.reference, judge="slow", reason="", usage=Usage(num_calls=1))
            for text in request.predictions
        ]


BUG = RayTaskError("grade", "traceback", KeyError("bug"))
ENDPOINT_DOWN = RayTaskError("grade", "traceback", JudgeError("endpoint down")).as_instanceof_cause()


class Raising:
    """A Serve handle whose calls end in an error."""

    def __init__(self, error):
        self.grade = self
        self.error = error

    async def remote(self, request):
        raise self.error


@pytest.mark.parametrize(
    "error", [ActorDiedError(), TaskCancelledError(), GetTimeoutError(), BackPressureError(1, 1), ENDPOINT_DOWN]
)
async def test_a_lost_process_or_a_judge_that_says_so_may_be_asked_again(error):
    with pytest.raises(JudgeError, match="call to a judge failed"):
        await ServeJudgeHandle(Raising(error)).grade(request("red"))


@pytest.mark.parametrize("error", [BUG, BUG.as_instanceof_cause()])
async def test_a_bug_in_a_replica_comes_out_as_it_is(error):
    with pytest.raises(RayTaskError) as raised:
        await ServeJudgeHandle(Raising(error)).grade(request("red"))
    assert raised.value is error


def test_options_follow_the_config_and_reserve_no_cpu():
    options = serve_options(replace(OPENAI, min_replicas=2, max_replicas=5, target_ongoing_requests=3.5))
    scaling = options["autoscaling_config"]
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 3.5)
    assert options["max_ongoing_requests"] == LLM.max_concurrent, "no call waits in front of a replica"
    assert options["ray_actor_options"] == {"num_cpus": 0}


def raising(*errors: Exception):
    """A function that raises these, one per call, and then does nothing."""
    left = list(errors)

    def step(*args, **settings):
        if left:
            raise left.pop(0)

    return step


@pytest.mark.parametrize("error", [RuntimeError("x\ny"), RayServeException("x"), ActorDiedError(), TimeoutError("x")])
@pytest.mark.parametrize("step", ["start", "run_many"])
def test_whatever_keeps_serve_from_coming_up_is_a_judge_error(monkeypatch, step, error):
    monkeypatch.setattr(serve, "start", raising())
    monkeypatch.setattr(serve, step, raising(error))
    with pytest.raises(JudgeError, match="the judge pool 'x' failed to start"):
        deploy_judges(JudgeConfig(), "x")


@pytest.mark.parametrize("error", [RayServeException("Serve is not up"), ActorDiedError(), TimeoutError("60 s")])
def test_taking_a_pool_away_hides_no_error_that_came_before(monkeypatch, error):
    monkeypatch.setattr(serve, "delete", raising(*[error] * 3))
    delete_application("x")


def test_a_pool_that_takes_long_to_end_its_calls_is_left_to_serve_with_a_word(monkeypatch, caplog):
    monkeypatch.setattr(serve, "delete", raising(*[TimeoutError("60 s")] * 5))
    delete_application("x", within_s=0.0)
    assert "'x' was not gone within 0 s" in caplog.text


def test_a_serve_that_does_not_answer_is_left_alone_after_the_deadline(monkeypatch, caplog):
    monkeypatch.setattr(serve, "delete", lambda name: threading.Event().wait(30))
    started = time.monotonic()
    delete_application("x", within_s=0.2)
    assert time.monotonic() - started < 5
    assert "'x' was not gone within 0.2 s" in caplog.text


def test_a_serve_whose_head_has_ended_is_not_waited_for(monkeypatch, caplog):
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
    monkeypatch.setattr(serve, "delete", lambda name: threading.Event().wait(30))
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=address))
    monkeypatch.setattr("judge.deployment.HEAD_POLL_S", 0.1)
    started = time.monotonic()
    delete_application("x", within_s=20.0)
    assert time.monotonic() - started < 5
    assert "'x' is left with its cluster, whose head has ended" in caplog.text


@pytest.mark.ray
def test_a_pool_whose_judges_do_not_come_up_in_time_is_given_up(local_ray):
    def hangs(config):
        time.sleep(600)

    # Serve gives a replica that it stops as long as a call may take: without this limit the module's end waits for it.
    config = replace(OPENAI, start_timeout_s=3.0, timeout_s=2.0, llm=replace(LLM, try_timeout_s=1.0))
    started = time.monotonic()
    with pytest.raises(JudgeError, match=r"'hangs' was not ready within judge\.start_timeout_s=3"):
        deploy_judges(config, "hangs", make=hangs)
    assert time.monotonic() - started < 30

    def breaks(config):
        raise KeyError("no such model")

    with pytest.raises(JudgeError, match=r"'breaks' failed to start: .*no such model"):
        deploy_judges(OPENAI, "breaks", make=breaks)
    delete_application("breaks")


@pytest.mark.ray
async def test_the_pool_grades_groups_one_call_per_answer(local_ray):
    handle = deploy_judges(OPENAI, "grades", make=Slow)
    pool = JudgePool(handle, OPENAI)
    groups = await asyncio.gather(*(pool.grade(request("red", f"blue {n}", "")) for n in range(40)))
    for outcomes in groups:
        assert [outcome.is_correct for outcome in outcomes if isinstance(outcome, Verdict)] == [True, False, False]
    assert pool.counters.num_calls == 41, "equal answers are asked about once, empty ones not at all"
    assert 0 <= pool.counters.mean_queue_s < 10
    assert count_judges("grades") in (1, 2)
    delete_application("grades")
    assert count_judges("grades") is None
    assert "grades" not in serve.status().applications


@pytest.mark.ray
def test_what_a_killed_driver_left_is_ended_and_nothing_else(local_ray):
    for name in ("left", "of-another"):
        deploy_judges(OPENAI, name, make=Slow).close()
    assert reap_applications(["left", "left-llm"]) == ["left"]
    assert "left" not in serve.status().applications
    assert count_judges("of-another")
    assert reap_applications(["left", "left-llm"]) == []
    delete_application("of-another")


@pytest.mark.ray
async def test_killing_a_replica_with_calls_in_flight_loses_nothing(local_ray):
    config = replace(OPENAI, min_replicas=2, max_replicas=2)
    pool = JudgePool(deploy_judges(config, "killed", make=Slow), config)
    for kill in range(2):
        calls = [asyncio.create_task(pool.grade(request(f"{kill}.{n}", "red"))) for n in range(24)]
        await asyncio.sleep(0.15)
        os.kill(await serve.get_app_handle("killed").pid.remote(), signal.SIGKILL)
        for outcomes in await asyncio.gather(*calls):
            assert [outcome.is_correct for outcome in outcomes if isinstance(outcome, Verdict)] == [False, True]
    assert pool.counters.num_retries > 0, "no call was in flight when its replica died"
    delete_application("killed")


@pytest.mark.ray
async def test_an_outage_is_no_verdict_and_a_bug_stops_the_caller(local_ray):
    config = replace(OPENAI, max_tries=2)
    handle = deploy_judges(config, "broken", make=Slow)
    pool = JudgePool(handle, config)
    outcomes = await pool.grade(request("blue", reference="outage"))
    assert isinstance(outcomes[0], NoVerdict)
    assert "the endpoint is down" in outcomes[0].reason
    with pytest.raises(KeyError, match="a bug in the judge"):
        await pool.grade(request("blue", reference="bug"))
    late = JudgePool(handle, replace(config, timeout_s=1.1, llm=replace(LLM, try_timeout_s=0.1)))
    for outcome in await late.grade(request("red", "blue", reference="hang")):
        assert isinstance(outcome, NoVerdict)
        assert outcome.reason == "no verdict within 1.1 s"
    assert late.counters.num_lost_calls == 4, "two rounds of both"
    delete_application("broken")
