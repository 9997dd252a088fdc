"""A judge's key is nowhere but in its file and in its judges' memory: not in Ray's logs, not on its dashboard."""

import asyncio
import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import ray
from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

from configs.judges import JudgeConfig, LLMJudgeConfig
from configs.load import to_yaml
from configs.schema import Config
from judge.deployment import delete_application, deploy_judges
from judge.pool import JudgePool
from judge.verdict import JudgeRequest, Verdict
from tests.judge.openai_server import OpenAIServer, echoes_key, wants_key
from tests.local_ray import ray_on_this_machine

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

KEY = "sk-not-to-be-seen-5f0c27b1"
MODEL = "model-that-may-be-seen"
PAGES = (
    "/api/v0/actors?detail=1",
    "/api/v0/tasks?detail=1",
    "/api/v0/workers?detail=1",
    "/api/v0/runtime_envs?detail=1",
    "/api/v0/jobs?detail=1",
    "/api/serve/applications/",
    "/api/cluster_status",
    "/logical/actors",
    "/nodes?view=summary",
)


@pytest.fixture
def dashboard():
    """Address of the dashboard, and the folder of Ray's logs."""
    with ray_on_this_machine(include_dashboard=True, dashboard_port=0) as context:
        yield f"http://{context.dashboard_url}", Path(ray._private.worker.global_worker.node.get_session_dir_path())


def pages(address: str) -> dict[str, str]:
    """As the owner of the cluster sees them, with its token.

    To switch tokens off for this test would not do: Ray settles that once per process, and after another cluster of
    the same process no reply of a replica would reach the caller.
    """
    found = {}
    headers = get_auth_headers_if_auth_enabled({})
    for page in PAGES:
        try:
            with urllib.request.urlopen(urllib.request.Request(address + page, headers=headers), timeout=30) as reply:
                found[page] = reply.read().decode()
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{page}: {error} {error.read()[:500]}") from error
    return found


async def test_a_key_that_the_endpoint_even_echoes_is_seen_nowhere(dashboard, tmp_path, monkeypatch, capfd, caplog):
    address, session = dashboard
    key_file = tmp_path / "judge.key"
    key_file.write_text(KEY + "\n")
    said: list[str] = []
    # The endpoint refuses the key and prints it back, as some do, until a person was told; then it takes it.
    with OpenAIServer(echoes_key()) as server:
        llm = LLMJudgeConfig(model=MODEL, base_url=server.url, api_key_file=str(key_file))
        config = JudgeConfig(chain=("rules", "openai"), llm=llm, max_tries=2)
        pool = JudgePool(deploy_judges(config, "secrets"), config, warn=said.append)
        requests = [
            JudgeRequest(question=f"Which animal {n}?", reference="cat", predictions=("feline", "dog"))
            for n in range(4)
        ]
        under_way = [asyncio.create_task(pool.grade(request)) for request in requests]
        async with asyncio.timeout(60):
            while not said:
                await asyncio.sleep(0.1)
        server.plan = wants_key(KEY)
        graded = await asyncio.gather(*under_way)
        assert all(isinstance(outcome, Verdict) for outcomes in graded for outcome in outcomes)
        assert any("401" in text for text in said), said
        shown = await asyncio.to_thread(pages, address)
        delete_application("secrets")

    assert "judge" in shown["/api/serve/applications/"], "the dashboard does show the judges"
    texts = {
        **shown,
        "config": to_yaml(Config(judge=config)),
        "warnings": json.dumps(said),
        "outcomes": repr(graded),
        "log": caplog.text,
        "output": "".join(capfd.readouterr()),
    }
    logs = {str(file): file.read_text(errors="replace") for file in session.rglob("*") if file.is_file()}
    assert any("secrets" in text for text in logs.values()), sorted(logs)
    leaks = [where for where, text in (texts | logs).items() if KEY in text or KEY[:12] in text]
    assert leaks == []
