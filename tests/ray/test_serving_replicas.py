"""Two engines behind one endpoint, one of which is killed under load."""

import asyncio
import base64
import os
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import openai
import psutil
import pytest
import ray
from prometheus_client.mmap_dict import MmapedDict
from ray import serve

from cluster.policies import policy_config
from cluster.runtime.connect import connect
from cluster.serving.app import ServeSettings
from cluster.serving.deployment import served
from cluster.serving.gateway import ENVIRONMENT
from cluster.serving.settings import serving_config
from configs.ranges import Range
from tests.ray.serving_parts import draw_rows

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(500),
    pytest.mark.filterwarnings("default"),  # Ray's own, at its start and end
]
PORT = 18_737
MAX_RUNNING = 16
AT_A_TIME = 32
START_S = 150.0


@pytest.fixture(scope="module")
def address():
    limits = ServeSettings(model="tiny", created=1, max_running=MAX_RUNNING)
    config = serving_config(policy_config(None, None, []).config, max_running=MAX_RUNNING)
    connect(ENVIRONMENT)
    with served(config, limits, replicas=Range(minimum=2, maximum=2), host="127.0.0.1", port=PORT) as address:
        yield address
    serve.shutdown()
    ray.shutdown()


def processes(*parts):
    """Processes below this one with all of these in their command line, by id."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if all(part in line for part in parts):
            found[process.pid] = process
    return found


def replicas():
    return processes("ray::ServeReplica", "policy")


async def wait_for_two(besides=()):
    deadline_at = time.monotonic() + START_S
    while len(set(replicas()) - set(besides)) < 2:
        assert time.monotonic() < deadline_at, "no new replica came"
        await asyncio.sleep(0.5)


def requests_by_replica():
    """Completed requests by process id, from the files of the replicas' metrics."""
    folder, counts = Path(tempfile.gettempdir()) / f"policy-{PORT}-{os.getpid()}-metrics", Counter()
    for file in folder.glob("counter_*.db"):
        for key, value, *_ in MmapedDict.read_all_values_from_file(str(file)):
            if '"visionthink_requests_total"' in key and '"200"' in key:
                counts[int(file.stem.rpartition("_")[2])] += int(value)
    return counts


async def ask(client, number, picture, question):
    """(content, visual tokens) of the reply, every fourth as a stream, or the error."""
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    asked = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
    try:
        if number % 4:
            reply = await client.chat.completions.create(**asked)
            return reply.choices[0].message.content, reply.usage.visual_tokens["spent"]
        parts, usage = [], None
        options = {"include_usage": True}
        async for chunk in await client.chat.completions.create(**asked, stream=True, stream_options=options):
            usage = chunk.usage or usage
            parts += [choice.delta.content or "" for choice in chunk.choices]
        return "".join(parts), usage.visual_tokens["spent"]
    except openai.APIError as error:
        return error


async def ask_all(client, asks, on_reply=lambda number_done: None):
    places, num_done = asyncio.Semaphore(AT_A_TIME), 0

    async def one(number, picture, row):
        nonlocal num_done
        async with places:
            reply = await ask(client, number, picture, row.question)
        num_done += 1
        on_reply(num_done)
        return reply

    return await asyncio.gather(*(one(number, *each) for number, each in enumerate(asks)))


async def test_a_replica_killed_under_load_loses_its_own_requests_alone(address):
    """Requests spread. The lost ones get OpenAI's error, all others their own reply, and a new engine comes."""
    rows = draw_rows(48)
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120) as client:
        await wait_for_two()
        expected = await ask_all(client, rows)
        assert all(isinstance(reply, tuple) for reply in expected)
        first = requests_by_replica()
        assert set(first) == set(replicas())
        assert min(first.values()) >= 48 // 4, first
        victim, *_ = replicas().values()
        engines = victim.children(recursive=True)
        assert engines

        def kill(num_done):
            if num_done == 96:
                os.kill(victim.pid, signal.SIGKILL)

        got = await ask_all(client, rows * 6, kill)
        lost = [reply for reply in got if isinstance(reply, openai.APIError)]
        wrong = [
            number
            for number, reply in enumerate(got)
            if isinstance(reply, tuple) and reply != expected[number % len(rows)]
        ]
        print(f"{len(lost)} of {len(got)} lost: {Counter(map(type, lost))}; spread before the kill: {first}")
        assert not wrong
        assert 0 < len(lost) <= 2 * AT_A_TIME
        for error in lost:
            assert error.body is not None, repr(error)
            assert set(error.body) == {"message", "type", "param", "code"}, repr(error)
            assert error.code == "engine_unavailable"
        _, alive = psutil.wait_procs(engines, timeout=20)
        assert not alive, "the engine of a dead replica ends with it"

        before_new = time.monotonic()
        await wait_for_two(besides=[victim.pid])
        (new,) = set(replicas()) - set(first)
        deadline_at = time.monotonic() + START_S
        while not requests_by_replica()[new]:
            assert time.monotonic() < deadline_at, "the new replica got no request"
            again = await ask_all(client, rows)
            assert again == expected
        print(f"the new replica serves {time.monotonic() - before_new:.0f} s after the last reply")
