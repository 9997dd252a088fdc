"""The whole run with an LLM judge that fails.

Run it with `pytest -n 0 -s -m slow tests/ray/test_runs_with_failing_judges.py`.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from actors.data.dataset import Dataset, PromptCursor
from actors.data.shapes import make_shapes
from tests.judge.openai_server import OpenAIServer, Plan, delayed, honest, status

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 5
OUTAGE_S = 60.0


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def every_tenth_fails(code: int) -> Plan:
    return lambda call: status(code)(call) if call.number % 10 == 0 else honest(call)


@pytest.mark.parametrize(
    ("chain", "code", "trace", "least"),
    [
        ("[openai]", 500, "retries", 30),  # another try of the same question helps
        ("[rules,openai]", 400, "unjudged", 10),  # no other try does: equal answers of a group are lost together
    ],
)
def test_with_a_tenth_of_the_llms_calls_failing_the_default_run_loses_no_group_and_learns(
    tmp_path, chain, code, trace, least
):
    shapes = make_shapes(tmp_path / "shapes", seed=0)
    with OpenAIServer(every_tenth_fails(code)) as server:
        settings = [
            f"run.dir={tmp_path}",
            f"data.train={shapes['train']}",
            f"data.heldout={shapes['heldout']}",
            f"judge.chain={chain}",
            "judge.llm.model=scripted",
            f"judge.llm.base_url={server.url}",
            "judge.cache=''",  # else few answers of this task would ever be asked about
        ]
        done = subprocess.run(
            [sys.executable, "-m", "cluster.cli", "train", "--json", *settings],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    drawn = sum(len(entry["samples"]) for entry in lines(tmp_path / "tiny" / "ledger.jsonl"))
    num_lost = len(lines(tmp_path / "tiny" / "lost.jsonl"))
    print({"drawn": drawn, "lost": num_lost, "judge": summary["judge"], "heldout": summary["heldout"]})
    assert summary["judge"][trace] >= least, "failures did reach the run"
    assert num_lost < 0.01 * drawn
    heldout = summary["heldout"]
    assert heldout["accuracy"] >= 0.95 * heldout["accuracy_full"]
    assert heldout["ask_share_needed"] >= 0.9
    assert heldout["ask_share_unneeded"] <= 0.1


def test_an_outage_of_a_minute_in_mid_run_consumes_every_sample_once_and_loses_none(tmp_path):
    shapes = make_shapes(tmp_path / "shapes", train_rows=512, heldout_rows=8, seed=3)
    run = tmp_path / "tiny"
    with OpenAIServer(delayed(0.05)) as server:
        settings = [
            f"run.dir={tmp_path}",
            f"data.train={shapes['train']}",
            f"data.heldout={shapes['heldout']}",
            f"train.num_steps={NUM_STEPS}",
            "judge.chain=[openai]",
            "judge.llm.model=scripted",
            f"judge.llm.base_url={server.url}",
            "judge.llm.prompt_price=1",
            "judge.cache=''",  # few answers differ: what is known would bridge the outage
        ]
        process = subprocess.Popen(
            [sys.executable, "-m", "cluster.cli", "train", "--json", *settings],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 300
        while len(lines(run / "ledger.jsonl")) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        num_calls = server.num_calls
        while server.num_calls == num_calls and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)  # the third step's first call
        server.is_down = True
        time.sleep(OUTAGE_S)
        num_steps_in_outage = len(lines(run / "ledger.jsonl"))
        server.is_down = False
        out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-4000:]
    assert num_steps_in_outage == 2, "the third step was not held up"
    assert err.count("the run is waiting for the judges") == 1, err[-4000:]
    assert "the run continues" in err

    ledger = lines(run / "ledger.jsonl")
    assert [entry["step"] for entry in ledger] == list(range(1, NUM_STEPS + 1))
    consumed = [uid for entry in ledger for uid in entry["samples"]]
    num_rows = len(Dataset.open(str(shapes["train"])))
    expected = PromptCursor(dataset=str(shapes["train"]), num_rows=num_rows, seed=0).take(len(consumed))
    assert consumed == [ref.uid for ref in expected]
    assert lines(run / "lost.jsonl") == []
    for entry in ledger:
        rows = pq.read_table(run / "episodes" / f"step-{entry['step']:06d}.parquet").to_pylist()
        assert {row["sample"] for row in rows} == set(entry["samples"])
        assert all(row["is_correct"] is not None for row in rows)

    metrics = {int(figures["step"]): figures for figures in lines(run / "metrics.jsonl") if "time/step_s" in figures}
    print({name: [round(metrics[step][name], 3) for step in metrics] for name in metrics[1] if "judge" in name})
    assert OUTAGE_S - 15 < metrics[3]["judge/paused_s"] < OUTAGE_S + 20
    for step in {*metrics} - {3}:
        assert metrics[step]["judge/paused_s"] == 0
        assert metrics[step]["time/judge_wait_s"] < 0.02 * metrics[step]["time/step_s"]
    summary = json.loads(out.splitlines()[-1])
    # A canary that was under way at the end has been asked about, but not counted.
    assert server.num_calls - 5 <= summary["judge"]["llm_calls"] <= server.num_calls
    assert summary["judge"]["cost_usd"] == pytest.approx(summary["judge"]["prompt_tokens"] / 1e6)
