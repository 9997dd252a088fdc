"""`visionthink eval` as a person runs it: real engine, judges behind Ray Serve, killed on the way and continued.

Run it with `pytest -n 0 -s -m slow tests/ray/test_benchmarks.py`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from actors.data.shapes import make_shapes
from tests.actors.data.benchmarks.layouts import ROWS, write_suite
from tests.judge.openai_server import Answer, Call, OpenAIServer, choice, completion

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(560)]
ROOT = Path(__file__).resolve().parents[2]
NUM_ROWS = 200


UNREADABLE = "across"
"""Whoever grades against this reference says nothing that can be read."""


def replies(call: Call) -> Answer:
    """What the schema asks for."""
    asked = call.body["response_format"]["json_schema"]["name"]
    reply = {"grade": '{"grade": 0.7}', "answer": '{"answer": "B"}', "verdict": '{"verdict": 0}'}[asked]
    return completion([choice("I would rather not say" if call.fields["reference"] == UNREADABLE else reply)])


def write_sets(folder: Path) -> None:
    """Benchmarks in their layout, with questions and pictures of the shapes task."""
    shapes = make_shapes(folder / "shapes", train_rows=8, heldout_rows=NUM_ROWS, seed=3)
    drawn = pq.read_table(shapes["heldout"]).to_pylist()
    rows = [{"question": row["problem"], "answer": row["original_answer"], "image": row["images"][0]} for row in drawn]
    write_suite("chartqa", folder, [{**ROWS["chartqa"][0], **row} for row in rows])
    assert any(row["answer"] == UNREADABLE for row in rows[:30])
    write_suite("mmvet", folder, [{**ROWS["mmvet"][0], **row} for row in rows[:30]])


def test_a_killed_evaluation_goes_on_and_failed_judgements_are_in_no_score(tmp_path):
    write_sets(tmp_path / "sets")
    out = tmp_path / "out"
    with OpenAIServer(replies) as server:
        options = ["--suite", "chartqa,mmvet", "--suite-dir", str(tmp_path / "sets"), "--out", str(out), "--json"]
        judge = ["judge.chain=[rules,openai]", "judge.llm.model=m", f"judge.llm.base_url={server.url}", "judge.cache="]
        command = [sys.executable, "-m", "cluster.cli", "eval", *options, *judge, "judge.max_tries=1"]
        first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
        deadline = time.monotonic() + 240
        while not list(out.glob("chartqa/part-*.parquet")):
            assert time.monotonic() < deadline
            assert first.poll() is None, first.communicate()[1][-3000:]
            time.sleep(0.05)
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
        kept = [row["sample"] for part in out.glob("chartqa/part-*.parquet") for row in pq.read_table(part).to_pylist()]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"{len(kept)} episodes already" in done.stderr
    rows = [row for part in sorted(out.glob("chartqa/part-*.parquet")) for row in pq.read_table(part).to_pylist()]
    assert len(rows) == len({(row["kind"], row["sample"]) for row in rows}) == 3 * NUM_ROWS
    results = json.loads(done.stdout.splitlines()[-1])["suites"]
    print(json.dumps({name: {k: v for k, v in suite.items() if k != "parts"} for name, suite in results.items()}))
    chart, vet = results["chartqa"], results["mmvet"]
    assert chart["n"] == NUM_ROWS
    assert chart["num_lost"] == chart["num_unscored"] == vet["num_lost"] == 0
    assert 0 < vet["num_unscored"] < vet["num_samples"]
    graded = [row for part in out.glob("mmvet/part-*.parquet") for row in pq.read_table(part).to_pylist()]
    unscored = [row for row in graded if row["is_correct"] is None]
    assert len(unscored) == vet["num_unscored"]
    assert all("not a grade" in row["reason"] and row["scores"] == [] for row in unscored)
    assert {score for row in graded for score in row["scores"]} <= {0.7, 0.0}  # 0 without an answer
