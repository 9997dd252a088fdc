"""A served policy over HTTP: replies, streams, usage, limits, cancellation."""

import asyncio
import json
import os
import sys

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from actors.tools.resize import RESIZE_CALL
from cluster.serving.app import ServeSettings
from cluster.serving.metrics import FOLDER_VARIABLE
from tests.cluster.serving.endpoint import LOOK, chat, data_uri, encoded, endpoint, events_of, image_part, text_part

CLOSELY = f"which colour, seen {LOOK}?"


def joined(events, field):
    return "".join(choice["delta"].get(field) or "" for event in events for choice in event["choices"])


async def test_a_direct_answer_spends_a_quarter_of_the_visual_tokens():
    async with endpoint() as here:
        fields = (await here.post(chat("green"))).json()
    ChatCompletion.model_validate(fields)
    (choice,) = fields["choices"]
    message, usage = choice["message"], fields["usage"]
    assert (message["content"], message["reasoning"], message["reasoning_content"]) == ("green", "clear é", "clear é")
    assert (choice["finish_reason"], choice["status"], fields["model"]) == ("stop", "answered", "tiny")
    assert usage["visual_tokens"] == {"spent": 16, "always_full": 64, "saved": 48}
    assert usage["asked"] is False
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_a_policy_that_asks_is_shown_the_full_view_within_the_same_request():
    async with endpoint() as here:
        fields = (await here.post(chat("blue", CLOSELY))).json()
        assert len(here.engine.samplings) == 2
    assert fields["choices"][0]["message"]["content"] == "blue"
    assert fields["choices"][0]["message"]["reasoning"] == "unclear\n\nclear é", "of both turns"
    assert "tool_call" not in json.dumps(fields)
    assert fields["usage"]["visual_tokens"] == {"spent": 80, "always_full": 64, "saved": -16}
    assert fields["usage"]["asked"] is True


@pytest.mark.parametrize(("resolution", "spent"), [("quarter", 16), ("full", 64), ("auto", 80)])
async def test_the_resolution_decides_which_views_are_shown(resolution, spent):
    async with endpoint() as here:
        usage = (await here.post(chat("red", CLOSELY, resolution=resolution))).json()["usage"]
    assert usage["visual_tokens"]["spent"] == spent
    assert usage["asked"] == (resolution == "auto")


async def test_a_stream_says_the_same_as_a_whole_reply():
    for question in ("which colour?", CLOSELY):
        async with endpoint() as here:
            whole = (await here.post(chat("red", question))).json()
            options = {"stream": True, "stream_options": {"include_usage": True}}
            reply = await here.post(chat("red", question, **options))
        assert reply.headers["content-type"].startswith("text/event-stream")
        events = events_of(reply.text)
        for event in events:
            ChatCompletionChunk.model_validate(event)
        message = whole["choices"][0]["message"]
        for field in ("content", "reasoning", "reasoning_content"):
            assert joined(events, field) == message[field]
        assert events[0]["choices"][0]["delta"]["role"] == "assistant"
        assert len({event["id"] for event in events}) == 1
        assert events[-1]["choices"] == []
        assert events[-1]["usage"] == whole["usage"]
        assert [event["choices"][0]["finish_reason"] for event in events[:-1]].count("stop") == 1
        assert sum("reasoning" in event["choices"][0]["delta"] for event in events[:-1]) >= 2, "as tokens come"


CALL = f"<tool_call>{RESIZE_CALL}</tool_call>"


@pytest.mark.parametrize(
    ("script", "status", "content", "reasoning"),
    [
        ((f"<think>a</think>{CALL}", "<answer>no thought</answer>"), "malformed", "no thought", "a"),
        ((f"<think></think>{CALL}", "<think>b</think><answer>c</answer>"), "answered", "c", "b"),
        ((f"<think>a</think>{CALL}", f"<think>b</think>{CALL}"), "malformed", "", "a\n\nb"),
        (("It is red.",), "malformed", "It is red.", ""),
        (("<think>a</think><answer></answer>",), "answered", "", "a"),
        (
            ("<think>\u4f60\u597d \U0001f600</think><answer>\u00e9\n</answer>",),
            "answered",
            "\u00e9",
            "\u4f60\u597d \U0001f600",
        ),
    ],
)
async def test_replies_of_every_shape_are_the_same_streamed_and_whole(script, status, content, reasoning):
    async with endpoint() as here:
        here.engine.script = script
        whole = (await here.post(chat(max_tokens=96))).json()["choices"][0]
        events = events_of((await here.post(chat(max_tokens=96, stream=True))).text)
    assert (whole["status"], whole["finish_reason"]) == (status, "stop")
    assert (whole["message"]["content"], whole["message"]["reasoning"]) == (content, reasoning)
    assert (joined(events, "content"), joined(events, "reasoning")) == (content, reasoning)
    assert events[-1]["choices"][0]["status"] == status


async def test_a_stream_ends_without_usage_unless_it_is_asked_for():
    async with endpoint() as here:
        events = events_of((await here.post(chat(stream=True))).text)
    assert all(event["choices"] and "usage" not in event for event in events)


async def test_sampling_settings_reach_the_engine_and_max_tokens_bounds_both_turns():
    async with endpoint() as here:
        await here.post(chat(temperature=0.5, top_p=0.9, seed=7, max_tokens=30))
        (sampling,) = here.engine.samplings
        assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.max_tokens) == (0.5, 0.9, 7, 30)
        here.engine.samplings.clear()
        await here.post(chat())
        (sampling,) = here.engine.samplings
        assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.max_tokens) == (0.0, 1.0, None, 48)
        assert not sampling.has_logprobs, "nothing is learned from it"
        here.engine.samplings.clear()
        fields = (await here.post(chat("red", CLOSELY, max_tokens=20))).json()
        first, second = here.engine.samplings
        assert first.max_tokens == 20
        assert 0 < second.max_tokens < 20, "what turn 1 has left"
        assert (fields["choices"][0]["finish_reason"], fields["choices"][0]["status"]) == ("length", "truncated")
        assert fields["usage"]["completion_tokens"] == 20
        assert fields["usage"]["asked"] is True


async def test_fields_without_an_effect_are_accepted():
    neutral = {"n": 1, "stop": None, "tools": [], "logprobs": False, "presence_penalty": 0.0, "user": "me"}
    neutral |= {"response_format": {"type": "text"}, "metadata": {"a": "b"}, "stream": False, "frequency_penalty": 0}
    content = [text_part("which"), image_part(data_uri(encoded("blue"))), text_part("colour?")]
    content[1]["image_url"]["detail"] = "low"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content, "name": "me"}]
    async with endpoint() as here:
        reply = await here.post({"model": "tiny", "messages": messages, **neutral})
    assert reply.json()["choices"][0]["message"]["content"] == "blue"


async def test_sixty_four_requests_at_once_get_the_answers_to_their_own_pictures():
    colours = ["red", "green", "blue"]
    async with endpoint(max_running=8) as here:
        replies = await asyncio.gather(
            *(
                here.post(chat(colours[index % 3], CLOSELY if index % 2 else "which colour?", stream=index % 5 == 0))
                for index in range(64)
            )
        )
    for index, reply in enumerate(replies):
        streamed = index % 5 == 0
        answer = (
            joined(events_of(reply.text), "content") if streamed else reply.json()["choices"][0]["message"]["content"]
        )
        assert answer == colours[index % 3]


async def test_whoever_finds_too_many_waiting_is_told_when_to_come_back():
    async with endpoint(max_running=1, max_waiting=2) as here:
        here.engine.gate.clear()
        inside = [asyncio.create_task(here.post(chat(stream=number == 0))) for number in range(3)]
        while here.engine.num_running < 1:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        refused = await here.post(chat())
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert (await here.client.get("/v1/models")).status_code == 200
        assert "visionthink_requests_inside 3.0" in (await here.client.get("/metrics")).text
        here.engine.gate.set()
        assert [reply.status_code for reply in await asyncio.gather(*inside)] == [200] * 3
        assert (await here.post(chat())).status_code == 200


def padded(num_bytes):
    """A question about a picture of so many bytes, most of them behind its end."""
    picture = encoded()
    url = data_uri(picture + bytes(num_bytes - len(picture)))
    return {"model": "tiny", "messages": [{"role": "user", "content": [image_part(url), text_part("which colour?")]}]}


async def test_requests_that_wait_hold_bounded_memory():
    settings = {"max_running": 1, "max_body_bytes": 16_000, "max_waiting_bytes": 16_000}
    async with endpoint(**settings) as here:
        here.engine.gate.clear()
        playing = asyncio.create_task(here.post(padded(9_000)))
        while here.engine.num_running < 1:
            await asyncio.sleep(0.01)
        waiting = asyncio.create_task(here.post(padded(9_000)))  # a body of 12 kB: what is played holds nothing
        await asyncio.sleep(0.1)
        refused = await here.post(padded(9_000))
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert "the requests that wait hold 9000 bytes already" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) >= 1
        here.engine.gate.set()
        assert [reply.status_code for reply in await asyncio.gather(playing, waiting)] == [200, 200]
        assert (await here.post(padded(9_000))).status_code == 200, "what was held is free again"
    with pytest.raises(ValueError, match="max_waiting_bytes=5 is invalid"):
        ServeSettings(model="tiny", created=1, max_waiting_bytes=5)


class Caller:
    """A client below HTTP, which leaves when it is told to."""

    def __init__(self, body: dict) -> None:
        self._messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
        self.left = asyncio.Event()
        self.sent: list[dict] = []

    async def call(self, app) -> None:
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        await app(scope, self._receive, self._send)

    async def _receive(self) -> dict:
        if self._messages:
            return self._messages.pop()
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict) -> None:
        self.sent.append(message)


@pytest.mark.parametrize("stream", [True, False])
async def test_when_the_client_leaves_the_engine_stops_and_its_place_is_free(stream):
    async with endpoint(max_running=1, max_waiting=1) as here:
        here.engine.gate.clear()
        running, waiting = Caller(chat(stream=stream)), Caller(chat(stream=stream))
        calls = [asyncio.create_task(caller.call(here.app)) for caller in (running, waiting)]
        while not here.engine.num_running:
            await asyncio.sleep(0.01)
        waiting.left.set()  # it has never reached the engine
        await asyncio.wait_for(calls[1], 5)
        assert here.engine.num_cancelled == 0
        running.left.set()
        await asyncio.wait_for(calls[0], 5)
        assert (here.engine.num_cancelled, here.engine.num_running) == (1, 0)
        assert bool(running.sent) == stream or running.sent[0]["status"] == 499
        here.engine.gate.set()
        assert (await here.post(chat("blue"))).json()["choices"][0]["message"]["content"] == "blue"


async def test_a_cancelled_call_leaves_nothing_behind():
    """As Ray Serve ends a request whose client has left: it cancels the task."""
    async with endpoint(max_running=1, max_waiting=0) as here:
        here.engine.gate.clear()
        for stream in (True, False):
            call = asyncio.create_task(Caller(chat(stream=stream)).call(here.app))
            while not here.engine.num_running:
                await asyncio.sleep(0.01)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            assert here.engine.num_running == 0
        here.engine.gate.set()
        assert (await here.post(chat())).status_code == 200


async def test_models_health_and_metrics():
    async with endpoint() as here:
        await here.post(chat("red", CLOSELY))
        await here.post(chat("red"))
        await here.post(b"{")
        models = (await here.client.get("/v1/models")).json()
        assert [model["id"] for model in models["data"]] == ["tiny"]
        assert (await here.client.get("/v1/models/tiny")).json() == models["data"][0]
        assert (await here.client.get("/health")).json() == {"status": "ok"}
        page = (await here.client.get("/metrics")).text
    for line in (
        'visionthink_requests_total{status="200"} 2.0',
        'visionthink_requests_total{status="400"} 1.0',
        'visionthink_answers_total{asked="yes",status="answered"} 1.0',
        'visionthink_tokens_total{kind="visual"} 96.0',
        'visionthink_tokens_total{kind="visual_always_full"} 128.0',
        "visionthink_answer_seconds_count 2.0",
    ):
        assert line in page, line


async def test_metrics_are_shared_by_the_replicas_of_a_node(tmp_path):
    """Real processes: prometheus_client settles at its import how values are kept."""
    program = (
        "from cluster.serving.metrics import Metrics\n"
        "metrics = Metrics(); metrics.request_done(200); metrics.set_inside(3)\n"
        "print(metrics.page().decode())"
    )
    for _ in range(2):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            program,
            env={**os.environ, FOLDER_VARIABLE: str(tmp_path)},
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
    page = out.decode()
    assert 'visionthink_requests_total{status="200"} 2.0' in page
    assert "visionthink_requests_inside 3.0" in page, "what a process held that is gone does not count"
