"""The command from its options to its results, with episodes that are recorded already: nothing has to be started."""

import asyncio
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.evaluation.cli import _identity
from cluster.evaluation.suites import open_suites
from cluster.evaluation.transcript import Transcript
from cluster.serving.card import write_card
from configs.load import load_config, to_yaml
from configs.paths import resolve_paths
from judge.pool import JudgePool
from tests.actors.data.benchmarks.layouts import ROWS, picture, write_suite
from tests.cluster.evaluation.test_play import Rollouts, mme_rows, played


@pytest.fixture
def recorded(tmp_path):
    """ChartQA and MME with all episodes in `out`: the policy is right, always-quarter never answers."""
    settings = resolve_paths(load_config("tiny"))
    for name, rows in (("chartqa", ROWS["chartqa"] * 5), ("mme", mme_rows(8))):
        write_suite(name, tmp_path / "sets", rows)
        suite = open_suites([name], tmp_path / "sets", settings, None)[0]
        transcript = Transcript(tmp_path / "out" / name, _identity(settings, suite))
        right = {row["question"]: row["answer"] for row in rows}

        def answer(request, suite=suite, right=right):
            row = suite.row_at(request.ref.row, "", "")
            return None if request.kind == "always_quarter" else right[row.question.partition("\n")[0]]

        asyncio.run(played(suite, transcript, Rollouts(answer), config=settings))
    return tmp_path


def run(folder, *options):
    where = ["--suite-dir", str(folder / "sets"), "--out", str(folder / "out")]
    return CliRunner().invoke(app, ["eval", "--suite", "chartqa,mme", *where, *options])


def test_complete_suites_are_reported_without_starting_anything(recorded, monkeypatch):
    monkeypatch.setattr("cluster.evaluation.cli._play_all", lambda *_: pytest.fail("a fleet was started"))
    result = run(recorded, "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout.splitlines()[-1])
    assert printed == json.loads((recorded / "out" / "results.json").read_text())
    chart, mme = printed["suites"]["chartqa"], printed["suites"]["mme"]
    assert (chart["score"], chart["score_quarter"], chart["share_of_full"], chart["n"]) == (100, 0, 1, 10)
    assert (mme["score"], mme["parts"]["policy"]["cognition"]["score"], mme["n"]) == (200, 200, 8)
    assert chart["intervals"]["score"][0] < 100
    assert printed["average"]["share_of_full"]["value"] == 1
    assert (recorded / "out" / "results.png").read_bytes().startswith(b"\x89PNG")
    assert "54 episodes already" in result.stderr
    for shown in ("Table 2", "Fig. 4", "relaxed accuracy", "acc + acc+", "average"):
        assert shown in result.stderr


def test_another_view_size_is_refused_and_restart_forgets(recorded, monkeypatch):
    result = run(recorded, "model.max_pixels=12544")
    assert result.exit_code == 1
    assert "another model.max_pixels" in result.stderr
    started = []

    def launch(settings, *_):
        started.append(settings)
        raise ValueError("a fleet would start")

    monkeypatch.setattr("cluster.evaluation.cli._play_all", launch)
    result = run(recorded, "--restart")
    assert "a fleet would start" in result.stderr
    assert list((recorded / "out" / "mme").glob("part-*")) == []
    assert started[0].data.heldout.startswith("chartqa:/")


@pytest.mark.parametrize(
    ("options", "prompt", "num_tokens"), [((), "prompt.yaml", 40), (("--config", "tiny"), "tiny", 48)]
)
def test_an_export_is_evaluated_with_its_settings_or_with_those_that_are_named(
    options, prompt, num_tokens, tmp_path, monkeypatch
):
    export, started = tmp_path / "run" / "export", []
    shutil.copytree("configs/tiny", export)
    write_card(export, load_config("tiny", ["rollout.max_turn_tokens=40"]), step=1)
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(load_config("tiny", ["rollout.max_turn_tokens=33"])))
    (tmp_path / "run" / "summary.json").write_text('{"steps": 1}')

    async def launch(settings, *_):
        started.append(settings)
        raise ValueError("a fleet would start")

    monkeypatch.setattr("cluster.evaluation.cli._play_all", launch)
    write_suite("chartqa", tmp_path / "sets", ROWS["chartqa"])
    for policy, own in ((export, num_tokens), (tmp_path / "run", 48 if options else 33)):
        where = ["--suite-dir", str(tmp_path / "sets"), "--out", str(tmp_path / f"out-{policy.name}")]
        result = CliRunner().invoke(app, ["eval", "--suite", "chartqa", "--policy", str(policy), *where, *options])
        assert "a fleet would start" in result.stderr, result.stderr
        assert (started[-1].model.path, started[-1].rollout.max_turn_tokens) == (str(export), own)
    assert Path(started[0].model.prompt).name == prompt


def test_a_suite_that_is_not_there_ends_in_one_line(tmp_path):
    result = run(tmp_path)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "hf download lmms-lab/ChartQA" in result.stderr


async def test_the_heldout_split_is_a_suite_like_the_others(tmp_path):
    row = {"problem": "what colour is the shape?", "images": [{"bytes": picture()}], "original_answer": "red"}
    pq.write_table(pa.Table.from_pylist([row] * 9), tmp_path / "heldout.parquet")
    settings = load_config("tiny", [f"data.heldout={tmp_path}/heldout.parquet", "eval.num_samples=7"])
    suite = open_suites(["heldout"], None, settings, None)[0]
    assert [ref.uid for ref in suite.refs] == [f"heldout-{at}" for at in range(7)]
    assert len(open_suites(["heldout"], None, settings, 3)[0].refs) == 3
    transcript, judges = Transcript(tmp_path / "out", {}), JudgePool(None, settings.judge)
    await played(suite, transcript, Rollouts(lambda request: "red" if request.ref.row else "blue"), judges)
    assert {key: play.score for key, play in transcript.plays.items() if key[0] == "policy"} == {
        ("policy", f"heldout-{at}"): float(at > 0) for at in range(7)
    }
