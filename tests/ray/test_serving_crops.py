"""The shipped crop policy behind a real endpoint: regions are cropped within a request, and usage tells of it."""

import asyncio
import base64

import numpy as np
import openai
import pytest
import ray
from ray import serve

from actors.data.crop import NEEDS, draw_row, paint
from actors.data.shapes import encode_png
from cluster.policies import policy_config
from cluster.runtime.connect import connect
from cluster.serving.app import ServeSettings
from cluster.serving.deployment import served
from cluster.serving.gateway import ENVIRONMENT
from cluster.serving.settings import serving_config
from configs.ranges import Range

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("default"),  # Ray's own, at its start and end
]
QUARTER, CROP, FULL = 16, 4, 64
"""Visual tokens of the views."""


@pytest.fixture(scope="module")
def address():
    limits = ServeSettings(model="crops", created=1, max_running=16)
    config = serving_config(policy_config(None, "tiny_crop", []).config, max_running=16)
    connect(ENVIRONMENT)
    one = Range(minimum=1, maximum=1)
    with served(config, limits, replicas=one, host="127.0.0.1", port=18_738) as address:
        yield address
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def rows():
    """36 questions by need."""
    rng = np.random.default_rng(5)
    return {need: [draw_row(rng, "heldout", need=need) for _ in range(36)] for need in NEEDS}


async def ask_all(address, rows, **fields):
    async def one(row):
        url = f"data:image/png;base64,{base64.b64encode(encode_png(paint(row.scene))).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": row.question}]
        return await client.chat.completions.create(
            model="crops", messages=[{"role": "user", "content": content}], extra_body=fields
        )

    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60) as client:
        return await asyncio.gather(*map(one, rows))


def right(replies, rows):
    return [reply.choices[0].message.content == row.answer for reply, row in zip(replies, rows, strict=True)]


async def test_a_question_about_a_region_is_answered_from_a_crop(address, rows):
    """The shipped policy chooses its way at random. What it is then shown, it pays for, and answers from."""
    asked = rows["region"]
    replies = await ask_all(address, asked)
    ways = {"none": [], "resize_image": [], "request_local_region": []}
    for index, reply in enumerate(replies):
        tools, spent = reply.usage.tools, reply.usage.visual_tokens
        (way,) = tools or ["none"]
        ways[way].append(index)
        assert spent == {"spent": spent["spent"], "always_full": FULL, "saved": FULL - spent["spent"]}
        assert spent["spent"] == QUARTER + sum(each["visual_tokens"] for each in tools.values())
        assert reply.usage.asked == bool(tools)
    assert all(ways.values()), f"each way is gone for some of {len(replies)} questions: {ways}"
    for index in ways["request_local_region"]:
        usage = replies[index].usage
        assert usage.tools == {"request_local_region": {"calls": 1, "visual_tokens": CROP}}
        assert usage.visual_tokens == {"spent": QUARTER + CROP, "always_full": FULL, "saved": FULL - QUARTER - CROP}
    for index in ways["resize_image"]:
        assert replies[index].usage.tools == {"resize_image": {"calls": 1, "visual_tokens": FULL}}
    is_right = right(replies, asked)
    shown = [*ways["request_local_region"], *ways["resize_image"]]
    print({way: f"{sum(is_right[index] for index in found)} of {len(found)} right" for way, found in ways.items()})
    assert sum(is_right[index] for index in shown) >= 0.9 * len(shown)
    assert sum(is_right[index] for index in ways["none"]) < len(ways["none"]), "the quarter view does not show it"


@pytest.mark.parametrize(("resolution", "spent"), [("quarter", QUARTER), ("full", FULL)])
async def test_one_view_alone_is_still_to_be_had(address, rows, resolution, spent):
    for need, asked in rows.items():
        replies = await ask_all(address, asked, resolution=resolution)
        for reply in replies:
            assert (reply.usage.visual_tokens["spent"], reply.usage.tools, reply.usage.asked) == (spent, {}, False)
        share = sum(right(replies, asked)) / len(asked)
        print(f"{need} by {resolution}: {share:.2f}")
        if resolution == "full":
            assert share >= 0.9
        elif need != "quarter":
            assert share <= 0.7
