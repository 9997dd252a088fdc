"""The command as a person runs it: real Ray, vLLM, DeepSpeed, Parquet and pictures; killed and resumed on the way.

The tests of this module share one run, in the order they stand in: two steps, then a resumption that is killed, then
one that ends. What they check is what the run left on disk.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from actors.data.dataset import Dataset, PromptCursor
from actors.data.shapes import make_shapes
from learner.state.checkpoint import CheckpointFolder

pytestmark = [pytest.mark.ray, pytest.mark.timeout(420)]

ROOT = Path(__file__).resolve().parents[2]


class Job:
    """The run's folder, and the command with this module's settings."""

    def __init__(self, folder: Path) -> None:
        self.shapes = make_shapes(folder / "shapes", train_rows=64, heldout_rows=8, seed=3)
        self.runs = folder / "runs"
        self.run = self.runs / "job"
        self.started_at = time.time()

    def start(self, num_steps: int) -> subprocess.Popen[str]:
        settings = [
            "run.name=job",
            f"run.dir={self.runs}",
            f"data.train={self.shapes['train']}",
            f"data.heldout={self.shapes['heldout']}",
            f"train.num_steps={num_steps}",
            "train.prompts_per_step=8",
            "train.max_draws=1.5",
            "train.checkpoint_every=1",
            "learner.prompts_per_mini_batch=4",
            "learner.stream=true",
            "rollout.group_size=4",
        ]
        command = [sys.executable, "-m", "cluster.cli", "train", "--json", *settings]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(self, num_steps: int) -> dict:
        process = self.start(num_steps)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-4000:]
        return json.loads(out.splitlines()[-1])

    def status(self) -> dict:
        """Of `visionthink status`, in a process of its own."""
        command = [sys.executable, "-m", "cluster.cli", "status", str(self.run), "--json"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    def lines(self, name: str) -> list[dict]:
        path = self.run / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def episodes(self, step: int) -> list[dict]:
        return pq.read_table(self.run / "episodes" / f"step-{step:06d}.parquet").to_pylist()


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return Job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def summary(job):
    return job.finish(2)


def test_the_summary_has_the_figures_it_promises(summary):
    wanted = {"accuracy", "accuracy_full", "accuracy_quarter", "ask_share", "ask_share_needed"}
    wanted |= {"ask_share_unneeded", "visual_token_share"}
    assert wanted <= summary["heldout"].keys()
    assert {"first_step_s", "wall_s", "steps", "episodes_per_s"} <= summary.keys()
    assert summary["steps"] == 2
    assert 0 < summary["first_step_s"] < summary["wall_s"]


def test_what_judges_took_is_told_per_step_and_in_all(summary, job):
    """Rules alone judge in the driver: every figure is there, and none of them is a call."""
    steps = [line for line in job.lines("metrics.jsonl") if "policy/version" in line]
    names = "calls llm_calls cache_hits prompt_tokens reply_tokens cost_usd retries throttled unjudged queue_s paused_s"
    for line in steps:
        assert {f"judge/{name}" for name in names.split()} <= line.keys()
        assert 0 <= line["time/judge_wait_s"] < line["time/collect_s"]
        assert {line[f"judge/{name}"] for name in ("calls", "llm_calls", "cost_usd", "paused_s", "unjudged")} == {0}
    assert summary["judge"]["groups"] > sum(line["groups/drawn"] for line in steps), "the held-out split was judged too"
    assert {"llm_calls", "prompt_tokens", "reply_tokens", "cost_usd", "cache_hits"} <= summary["judge"].keys()


def test_every_episode_was_sampled_under_the_version_it_was_learned_from(summary, job):
    metrics = [line for line in job.lines("metrics.jsonl") if "policy/version" in line]
    version = 0
    for line in metrics:
        rows = job.episodes(line["step"])
        assert rows
        assert {(row["oldest_version"], row["newest_version"]) for row in rows} == {(version, version)}
        for turn in (turn for row in rows for turn in row["turns"]):
            assert turn["version_spans"] == [{"version": version, "num_tokens": len(turn["completion_ids"])}]
        assert line["policy/staleness_max"] == 0
        assert 0 < line["time/update_wait_s"] <= line["time/step_s"] - line["time/collect_s"]
        version = int(line["policy/version"])
    assert version == 4, "two steps of two mini-batches"


def test_sampler_and_learner_agree_on_every_token(summary, job):
    for line in job.lines("metrics.jsonl"):
        if line["step"] == 1 and "learner/mismatch" in line:
            assert line["learner/mismatch"] <= 1e-4
            break
    else:
        pytest.fail("no mismatch was recorded")


def test_rewards_follow_from_what_the_episode_shows(summary, job):
    rows = job.episodes(1)
    assert {row["sample"] for row in rows} <= set(job.lines("ledger.jsonl")[0]["samples"])
    for row in rows:
        least = 1.0 * row["is_correct"] + 0.5 * row["is_well_formed"]
        assert row["reward"] == pytest.approx(least) or row["reward"] == pytest.approx(least - 0.1)
        assert row["asked"] == (len(row["turns"]) == 2)
        assert all(len(turn["completion_ids"]) == len(turn["logprobs"]) for turn in row["turns"])


def test_the_exported_policy_loads_and_differs_from_the_first_one(summary, job):
    from safetensors.numpy import load_file

    before = load_file(ROOT / "configs" / "tiny" / "model.safetensors")
    after = load_file(job.run / "export" / "model.safetensors")
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)
    assert {"README.md", "client.py", "visionthink.yaml"} <= {file.name for file in (job.run / "export").iterdir()}


def test_the_report_shows_pictures(summary, job):
    html = (job.run / "report.html").read_text()
    assert "data:image/png;base64," in html
    assert "which way do the stripes run?" in html or "what colour is the shape?" in html


def test_killed_and_resumed_the_ledger_has_no_gap_and_no_duplicate(summary, job):
    process = job.start(5)  # the same command: its name says which run
    deadline = time.monotonic() + 240
    while len(job.lines("ledger.jsonl")) < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    running = job.status()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    checkpoints = CheckpointFolder(job.run / "checkpoints")
    assert any(checkpoints.find_flaw(name) is None for name in checkpoints.list())
    assert (running["state"], running["is_running"], running["pid"]) == ("running", True, process.pid)
    assert {member["role"] for member in running["members"]} == {"rollouts", "learner"}
    killed = job.status()
    assert (killed["state"], killed["is_running"]) == ("gone", False)

    resumed = job.finish(5)
    assert resumed["steps"] == 5
    assert job.finish(5) == resumed, "a run that is complete is not repeated"
    ended = job.status()
    assert (ended["state"], ended["step"], ended["cause"], ended["members"]) == ("ended", 5, "", [])
    ledger = job.lines("ledger.jsonl")
    assert [entry["step"] for entry in ledger] == [1, 2, 3, 4, 5]
    consumed = [uid for entry in ledger for uid in entry["samples"]]
    num_rows = len(Dataset.open(str(job.shapes["train"])))
    cursor = PromptCursor(dataset=str(job.shapes["train"]), num_rows=num_rows, seed=0)
    assert consumed == [ref.uid for ref in cursor.take(len(consumed))]
    for step in range(1, 6):
        assert {row["sample"] for row in job.episodes(step)} <= set(ledger[step - 1]["samples"])


def test_useful_time_counts_all_drivers_of_the_run(summary, job):
    steps = [line for line in job.lines("metrics.jsonl") if "run/useful_time" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5]
    for before, line in itertools.pairwise(steps):
        useful_s = line["time/step_s"] - line["waste/reform_s"]
        assert line["run/useful_s"] == pytest.approx(before["run/useful_s"] + useful_s)
        assert line["run/wall_s"] > before["run/wall_s"] + line["time/step_s"]
    assert all(0 < line["run/useful_time"] < 1 for line in steps)


def test_no_process_of_a_killed_run_stays_behind(summary, job):
    import psutil

    def left() -> list[str]:
        return [
            " ".join(process.info["cmdline"] or []) or process.info["name"]
            for process in psutil.process_iter(["name", "cmdline", "create_time", "status"])
            if process.info["create_time"] > job.started_at
            and process.info["status"] != psutil.STATUS_ZOMBIE
            and any(mark in " ".join(process.info["cmdline"] or []) for mark in ("VLLM::", "ray::", str(job.runs)))
        ]

    deadline = time.monotonic() + 30
    while left() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left() == []
