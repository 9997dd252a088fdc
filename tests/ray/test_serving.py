"""A policy behind real Ray Serve and vLLM, asked by the official client; its export in plain engines."""

import asyncio
import base64
import io
import json
import os
import subprocess
import sys
import time

import httpx
import openai
import pytest
import ray
from PIL import Image
from ray import serve

from actors.errors import RunError
from cluster.policies import policy_config
from cluster.runtime.connect import connect
from cluster.serving.app import ServeSettings, digest_key
from cluster.serving.deployment import served
from cluster.serving.gateway import ENVIRONMENT
from cluster.serving.settings import serving_config
from configs.ranges import Range
from tests.ray.serving_parts import draw_rows, make_export

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("default"),  # Ray's own, at its start and end
]
KEY = "sk-test"


def data_uri(content):
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def asks(picture, question, **fields):
    content = [{"type": "image_url", "image_url": {"url": data_uri(picture)}}, {"type": "text", "text": question}]
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], **fields}


@pytest.fixture(scope="module")
def rows():
    return draw_rows(24)


@pytest.fixture(scope="module")
def address():
    config = policy_config(None, None, []).config
    limits = ServeSettings(
        model="tiny", created=1, key_digests=frozenset({digest_key(KEY)}), max_running=16, max_body_bytes=1 << 20
    )
    connect(ENVIRONMENT)
    one = Range(minimum=1, maximum=1)
    with served(serving_config(config, max_running=16), limits, replicas=one, host="127.0.0.1", port=18_734) as address:
        yield address
    serve.shutdown()
    ray.shutdown()


@pytest.fixture
async def client(address):
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


async def test_the_official_client_gets_answers_that_belong_to_their_pictures(client, rows):
    """What is read off the full view alone is read without a mistake by the shipped model."""
    replies = await asyncio.gather(
        *(
            client.chat.completions.create(**asks(picture, row.question, extra_body={"resolution": "full"}))
            for picture, row in rows
        )
    )
    assert [reply.choices[0].message.content for reply in replies] == [row.answer for _, row in rows]
    assert all(reply.usage.visual_tokens["spent"] == 64 for reply in replies)


async def test_both_turns_are_played_within_one_request(client, rows):
    replies = await asyncio.gather(
        *(client.chat.completions.create(**asks(picture, row.question)) for picture, row in rows)
    )
    spent = {reply.usage.asked: reply.usage.visual_tokens for reply in replies}
    assert spent == {
        True: {"spent": 80, "always_full": 64, "saved": -16},
        False: {"spent": 16, "always_full": 64, "saved": 48},
    }, "the shipped model asks about half of the pictures"
    for reply, (_, row) in zip(replies, rows, strict=True):
        if reply.usage.asked or not row.needs_full:
            assert reply.choices[0].message.content == row.answer
        assert reply.choices[0].message.reasoning


async def test_a_stream_says_the_same_token_by_token(client, rows):
    picture, row = rows[0]
    whole = await client.chat.completions.create(**asks(picture, row.question))
    stream = await client.chat.completions.create(
        **asks(picture, row.question), stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas) == whole.choices[0].message.reasoning
    assert chunks[-1].usage.model_dump() == whole.usage.model_dump()


async def test_bad_requests_get_openais_errors_and_hurt_no_good_one(client, address, rows):
    picture, row = rows[0]
    good = client.chat.completions.create(**asks(picture, row.question, extra_body={"resolution": "full"}))
    bad = [
        (asks(picture, "?", extra_body={"n": 2}), openai.BadRequestError),
        (asks(picture[:200], "?"), openai.BadRequestError),
        ({**asks(picture, "?"), "model": "gpt-4o"}, openai.NotFoundError),
        (asks(b"\x89PNG" + b"x" * 2_000_000, "?"), openai.APIStatusError),
    ]
    got = await asyncio.gather(
        good, *(client.chat.completions.create(**fields) for fields, _ in bad), return_exceptions=True
    )
    assert got[0].choices[0].message.content == row.answer
    for (_, kind), error in zip(bad, got[1:], strict=True):
        assert isinstance(error, kind), error
        assert set(error.body) == {"message", "type", "param", "code"}
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="wrong").models.list()
    async with httpx.AsyncClient() as plain:
        reply = await plain.get(f"{address}/nothing")
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "unknown_url")


def test_a_second_endpoint_does_not_take_the_place_of_the_first(address):
    config, limits = policy_config(None, None, []).config, ServeSettings(model="another", created=1)
    one = Range(minimum=1, maximum=1)
    with (
        pytest.raises(RunError, match=r"an endpoint is up at 127\.0\.0\.1:18734 of this cluster already"),
        served(config, limits, replicas=one, host="127.0.0.1", port=18_734),
    ):
        pass
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}, "and its end took nothing away"


async def test_clients_that_leave_free_their_places(client, address, rows):
    body = json.dumps({**asks(rows[0][0], rows[0][1].question), "stream": True})
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}

    async def leave() -> None:
        async with (
            httpx.AsyncClient(timeout=30) as plain,
            plain.stream("POST", f"{address}/v1/chat/completions", content=body, headers=headers) as reply,
        ):
            async for _ in reply.aiter_bytes():
                return

    await asyncio.gather(*(leave() for _ in range(40)))
    async with httpx.AsyncClient() as plain:
        deadline_at = time.monotonic() + 20
        while "visionthink_requests_inside 0.0" not in (await plain.get(f"{address}/metrics")).text:
            assert time.monotonic() < deadline_at
            await asyncio.sleep(0.2)
        assert (await plain.get(f"{address}/health")).json() == {"status": "ok"}
    reply = await client.chat.completions.create(**asks(rows[0][0], rows[0][1].question))
    assert reply.choices[0].message.content


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return make_export(tmp_path_factory.mktemp("run") / "export")


def test_the_client_that_an_export_carries(address, export, rows, tmp_path):
    picture, row = rows[0]
    (tmp_path / "picture").write_bytes(picture)
    done = subprocess.run(
        [sys.executable, str(export / "client.py"), str(tmp_path / "picture"), row.question, "full"],
        env={**os.environ, "OPENAI_BASE_URL": f"{address}/v1", "OPENAI_API_KEY": KEY},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"answer:    {row.answer}\n" in done.stdout
    assert "spent:     64 visual tokens, always-full 64\ncalls:     none (0 refused)\n" in done.stdout


def test_plain_transformers_answers_from_an_export(export, rows):
    from transformers import AutoModelForImageTextToText, AutoProcessor  # this process is forked while small

    processor = AutoProcessor.from_pretrained(export)
    model = AutoModelForImageTextToText.from_pretrained(export)
    for picture, row in rows[:3]:
        image = Image.open(io.BytesIO(picture))
        content = [{"type": "image", "image": image}, {"type": "text", "text": f"{row.question} answer"}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 64
        replies = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        text = processor.batch_decode(replies[:, inputs["input_ids"].shape[1] :])[0]
        assert text.endswith(f"</think><answer>{row.answer}</answer><|im_end|>")


PLAIN_VLLM = """
import json
import sys

from vllm import LLM, SamplingParams

if __name__ == "__main__":
    llm = LLM(model=sys.argv[1], max_model_len=560, enforce_eager=True, limit_mm_per_prompt={"image": 1})
    chats = json.load(open(sys.argv[2]))
    replies = llm.chat(chats, SamplingParams(temperature=0, max_tokens=16))
    print("REPLIES" + json.dumps([reply.outputs[0].text for reply in replies]))
"""


@pytest.mark.slow
def test_plain_vllm_answers_from_an_export(export, rows, tmp_path):
    (tmp_path / "plain.py").write_text(PLAIN_VLLM)
    chats = [asks(picture, f"{row.question} answer")["messages"] for picture, row in rows[:3]]
    (tmp_path / "chats.json").write_text(json.dumps(chats))
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    environment |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    done = subprocess.run(
        [sys.executable, "plain.py", str(export), "chats.json"],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if "REPLIES" in line]
    replies = json.loads(line.partition("REPLIES")[2])
    for reply, (_, row) in zip(replies, rows, strict=False):
        assert reply.endswith(f"</think><answer>{row.answer}</answer>")
