"""The LLM judge as Ray serves it, with a small real model. Wants `uv sync --group judge-test`."""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ray import serve

from actors.errors import JudgeError
from cluster.judging import start as launching
from configs.judges import ClusterJudgeConfig, JudgeConfig, LLMJudgeConfig
from judge.deployment import delete_application, deploy_judges
from judge.llm.served_model import model_id
from judge.llm.server import _start_proxies, deploy_llm, served_llm, wake_llm, waker
from judge.llm.version import judge_version
from judge.pool import JudgePool
from judge.trust.goldset import GOLD_FILE, read_gold
from judge.verdict import JudgeRequest, Verdict
from tests.judge.smollm2 import PACKAGE, gguf_file
from tests.local_ray import ray_on_this_machine

ROOT = Path(__file__).resolve().parents[3]
START_S = 240.0
ENGINE_CLASS = "JudgeLLMServer"
slow = pytest.mark.slow
needs_model = pytest.mark.skipif(gguf_file() is None, reason=f"{PACKAGE} is not installed: --group judge-test")


def judge_config(folder: Path, **cluster) -> JudgeConfig:
    settings = {"num_gpus": 0.0, "max_model_len": 2048, "start_timeout_s": START_S, **cluster}
    return JudgeConfig(
        chain=("cluster",),
        cache="",
        llm=LLMJudgeConfig(model=str(folder), reply="choice"),
        cluster=ClusterJudgeConfig(**settings),
    )


def requests(num_rows: int) -> list[JudgeRequest]:
    rows = [row for row in read_gold(GOLD_FILE) if row.kind in ("synonyms", "paraphrases")][:num_rows]
    return [JudgeRequest(question=row.question, reference=row.reference, predictions=(row.prediction,)) for row in rows]


def num_engines(app_name: str) -> int:
    deployments = serve.status().applications[app_name].deployments
    (engine,) = (deployment for name, deployment in deployments.items() if name.startswith(ENGINE_CLASS))
    return sum(engine.replica_states.values())


def kill_the_engine_and_wait_for_its_end() -> None:
    """kill -9 the replica: no process that it started may live on."""
    ours = psutil.Process().children(recursive=True)
    (replica,) = (process for process in ours if f":{ENGINE_CLASS}:" in "".join(process.cmdline()))
    children = replica.children(recursive=True)
    assert children
    replica.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "smollm2"
    subprocess.run(
        [sys.executable, "-m", "tests.judge.smollm2", str(folder)], cwd=ROOT, check=True, capture_output=True
    )
    return folder


@pytest.fixture
def local_ray():
    """A fresh one per test: how Serve listens is settled once."""
    with ray_on_this_machine():
        yield


async def test_a_chain_without_the_cluster_needs_no_ray():
    async with served_llm(JudgeConfig(), "unused") as config:
        assert config == JudgeConfig()


@pytest.mark.ray
@slow
def test_serve_of_another_run_has_proxies_and_serve_of_somebody_else_without_any_is_refused(local_ray):
    judges = JudgeConfig(chain=("openai",), llm=LLMJudgeConfig(model="none"))
    deploy_judges(judges, "other").close()
    address = _start_proxies()
    assert address.startswith("http://127.0.0.1:")
    assert _start_proxies() == address, "proxies that are up are used"
    assert "other" in serve.status().applications
    serve.shutdown()
    serve.start(proxy_location="Disabled")
    with pytest.raises(JudgeError, match=r"without HTTP proxies.*serve shutdown"):
        _start_proxies()


@pytest.mark.ray
@slow
async def test_more_gpus_than_the_cluster_has_are_refused(local_ray, monkeypatch):
    monkeypatch.setattr(launching, "connect", lambda: None)
    monkeypatch.setattr(launching, "check_judge", lambda *args, **settings: None)
    with pytest.raises(ValueError, match=r"num_gpus=2.0 is invalid: the LLM judge needs 2 GPUs, the cluster has 0"):
        async with launching.llm_in_cluster(judge_config(Path("model"), num_gpus=2.0)):
            pytest.fail("it came up")


@pytest.mark.ray
@slow
@needs_model
@pytest.mark.timeout(900)
async def test_an_engine_comes_from_zero_survives_a_kill_goes_when_idle_and_comes_again(local_ray, smollm2):
    config = judge_config(smollm2, downscale_delay_s=1.0)
    async with served_llm(config, "llm") as judge:
        assert num_engines("llm") == 1
        handle = deploy_judges(judge, "judges")
        pool = JudgePool(handle, judge, judge_version=judge_version(judge), wake=waker(judge, "llm"))
        graded = await asyncio.gather(*(pool.grade(request) for request in requests(12)))
        assert all(isinstance(outcome, Verdict) for (outcome,) in graded), graded
        assert {outcome.judge_version for (outcome,) in graded} == {judge_version(config)}
        assert pool.counters.num_llm_calls == 12
        await asyncio.to_thread(kill_the_engine_and_wait_for_its_end)
        (outcome,) = await pool.grade(requests(1)[0])
        assert isinstance(outcome, Verdict), outcome
        deadline_at = time.monotonic() + 120
        while num_engines("llm"):
            assert time.monotonic() < deadline_at, "the idle engine stays"
            await asyncio.sleep(1)
        paused_s = pool.counters.paused_s
        (outcome,) = await pool.grade(requests(1)[0])  # longer than one call may take, and no outage
        assert isinstance(outcome, Verdict)
        assert (pool.counters.paused_s, pool.counters.num_lost_calls) == (paused_s, 0)
        handle.close()
        delete_application("judges")
    assert "llm" not in serve.status().applications


@pytest.mark.ray
@slow
@needs_model
@pytest.mark.timeout(600)
async def test_an_engine_that_dies_at_start_is_an_error_with_its_reason(local_ray, smollm2, tmp_path):
    for file in smollm2.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(JudgeError, match=r"failed to start: "):
        async with served_llm(judge_config(tmp_path), "dies"):
            pass
    assert "dies" not in serve.status().applications


@pytest.mark.ray
@slow
@needs_model
@pytest.mark.timeout(600)
async def test_a_deadline_ends_the_wait_for_an_engine(local_ray, smollm2):
    config = judge_config(smollm2)
    served = deploy_llm(config, "late", deadline_at=time.monotonic() + START_S)
    assert served.llm.model == model_id(smollm2)
    started = time.monotonic()
    with pytest.raises(JudgeError, match=r"'late' was not ready within judge.cluster.start_timeout_s"):
        await wake_llm(served, "late", deadline_at=started + 3)
    assert time.monotonic() - started < 10
    serve.delete("late")


@pytest.mark.ray
@slow
@needs_model
@pytest.mark.timeout(600)
def test_judge_check_brings_the_llm_up_and_reports_what_it_does(smollm2, tmp_path):
    rows = [row for row in read_gold(GOLD_FILE) if row.kind in ("synonyms", "paraphrases")][:6]
    gold = tmp_path / "gold.jsonl"
    fields = ("question", "reference", "prediction", "kind")
    gold.write_text(
        "".join(
            json.dumps({**{name: getattr(row, name) for name in fields}, "verdict": int(row.is_correct)}) + "\n"
            for row in rows
        )
    )
    settings = ["judge.chain=[cluster]", f"judge.llm.model={smollm2}", "judge.llm.reply=choice"]
    settings += ["judge.cluster.num_gpus=0", "judge.cluster.max_model_len=2048"]
    command = [sys.executable, "-m", "cluster.cli", "judge", "check", "--json", "--set", str(gold), *settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["num_unjudged"] == 0
    assert figures["num_calls"] >= 6
