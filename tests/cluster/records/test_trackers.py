"""Trackers take what a run records, in their offline modes, and never stop it."""

import json
import sqlite3
import sys
import threading
import time
from importlib.util import find_spec

import pytest

from cluster.records.recorder import Recorder
from cluster.records.tracker_adapters import ADAPTERS
from cluster.records.trackers import COLUMNS, NEED_COLUMNS, Background, Trackers, open_trackers
from configs.load import load_config
from tests.cluster.records.test_recorder import collected

OFFLINE = ("WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_DIR", "TRACKIO_SPACE_ID", "MLFLOW_ALLOW_FILE_STORE")


class Scripted:
    def __init__(self, *, fails_at=None, waits=None):
        self.calls = []
        self._fails_at, self._waits = fails_at, waits

    def log_step(self, step, figures):
        if self._waits:
            self._waits.wait(30)
        if step == self._fails_at:
            raise ConnectionResetError("the server is gone\nsecond line")
        self.calls.append((step, dict(figures)))

    def log_table(self, step, name, columns, rows):
        self.calls.append((step, name, columns, rows))

    def finish(self):
        self.calls.append("finished")


def in_background(tracker, warnings):
    return Background("wandb", lambda: tracker, warn=warnings.append)


def test_all_calls_arrive_in_order(tmp_path):
    tracker, warnings = Scripted(), []
    recorder = Recorder(tmp_path, step=0, trackers=lambda: Trackers([in_background(tracker, warnings)]))
    for step in (1, 2):
        recorder.record_step(step, collected(f"0-{step}"), {"reward/mean": float(step)})
    recorder.close()
    kinds = [call if isinstance(call, str) else call[0] for call in tracker.calls]
    assert kinds == [1, 1, 2, 2, "finished"]
    assert tracker.calls[0] == (1, {"reward/mean": 1.0})
    _, name, columns, rows = tracker.calls[1]
    assert (name, columns) == ("episodes", COLUMNS)
    first = dict(zip(columns, rows[0], strict=True))
    assert first["sample"] == "0-0"
    assert first["asked"] is True
    assert first["text"] == "said\n\nsaid"
    assert warnings == []


def test_a_tracker_that_fails_is_told_once_and_the_run_goes_on(tmp_path):
    broken, sound, warnings = Scripted(fails_at=1), Scripted(), []
    trackers = [in_background(broken, warnings), in_background(sound, warnings)]
    recorder = Recorder(tmp_path, step=0, trackers=lambda: Trackers(trackers))
    for step in (1, 2, 3):
        recorder.record_step(step, collected(f"0-{step}"), {"reward/mean": 0.5})
    recorder.close()
    (warning,) = warnings
    assert warning.startswith(
        "wandb is no longer written to: ConnectionResetError: the server is gone; the run goes on"
    )
    assert broken.calls == []
    assert [call[0] for call in sound.calls if call != "finished"] == [1, 1, 2, 2, 3, 3]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_tracker_that_does_not_start_is_told_once():
    warnings = []

    def start():
        raise SystemExit("no login")

    tracker = Background("wandb", start, warn=warnings.append)
    tracker.log_step(1, {"a": 1.0})
    tracker.finish()
    assert warnings == [
        "wandb is no longer written to: SystemExit: no login; the run goes on, and its records have all"
    ]


def test_a_tracker_that_hangs_is_left_behind():
    never, warnings = threading.Event(), []
    tracker = in_background(Scripted(waits=never), warnings)
    started = time.monotonic()
    for step in range(2000):
        tracker.log_step(step, {})
    tracker.finish(timeout_s=0.1)
    assert time.monotonic() - started < 5
    assert len(warnings) == 1
    assert "1000 calls wait for it" in warnings[0]
    never.set()


def test_a_package_that_is_missing_is_told_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    warnings = []
    config = load_config("tiny", ["run.trackers=tensorboard,wandb"])
    trackers = open_trackers(tmp_path, config, run_id="0", warn=warnings.append)
    trackers.log_step(1, {"a": 1.0})
    trackers.finish()
    assert len(warnings) == 1
    assert "wandb is not installed: `uv sync --extra trackers`" in warnings[0]
    assert list((tmp_path / "tensorboard").iterdir())


def test_the_table_has_every_kind_of_episode_and_is_short():
    calls = []
    tracker = Scripted()
    tracker.log_table = lambda *call: calls.append(call)
    turn = {"num_visual_tokens": 4, "text": "x"}
    rows = [
        {"sample": str(n), "needs_full": n == 7999, "asked": n % 2 == 0, "is_correct": n != 5, "turns": [turn]}
        for n in range(8000)
    ]
    started = time.monotonic()
    Trackers([tracker]).log_episodes(3, "episodes", rows)
    assert time.monotonic() - started < 1
    ((_, _, columns, cells),) = calls
    found = [dict(zip(columns, row, strict=True)) for row in cells]
    assert len(found) == 32
    assert {"5", "7999"} <= {row["sample"] for row in found}, "the only wrong one, and the only one that needs it"
    assert len({row["sample"] for row in found}) == 32
    assert found[0]["visual_tokens"] == 4


def needing(needed, *, is_right, **columns):
    turn = {"num_visual_tokens": 4, "text": "x"}
    row = {"kind": "policy", "needs_full": None, "asked": False, "is_correct": True, "turns": [turn]}
    return row | {"needed_view": needed, "is_right_tool": is_right, "least_visual_tokens": 5} | columns


@pytest.mark.parametrize("has_tool_choice", [True, False])
def test_the_table_tells_what_was_needed_where_there_is_a_choice_of_tools(has_tool_choice):
    """By the tools on offer, or by rows that need a region; always-full, which has no choice, is in it as well."""
    tracker, plain = Scripted(), Scripted()
    full = [needing("full", is_right=n != 700, sample=f"full {n}") for n in range(900)]
    regions = [needing(f"crop:0,0,{n},56", is_right=n > 3, sample=f"region {n}") for n in range(1, 99)]
    (baseline,) = [needing("full", is_right=None, kind="always_full")]
    del baseline["is_right_tool"]
    Trackers([tracker], has_tool_choice=has_tool_choice).log_episodes(3, "heldout", [*full, *regions, baseline])
    ((_, _, columns, cells),) = tracker.calls
    assert columns == COLUMNS + NEED_COLUMNS
    found = {row[columns.index("sample")]: dict(zip(columns, row, strict=True)) for row in cells}
    assert {"full 0", "full 700", "region 1", "region 4", None} <= set(found), "each kind of need, right and wrong"
    assert (found["region 4"]["needed_view"], found["region 4"]["is_right_tool"]) == ("crop:0,0,4,56", True)
    assert (found[None]["kind"], found[None]["is_right_tool"]) == ("always_full", None)
    Trackers([plain], has_tool_choice=has_tool_choice).log_episodes(3, "heldout", full)
    ((_, _, columns, cells),) = plain.calls
    assert columns == (COLUMNS + NEED_COLUMNS if has_tool_choice else COLUMNS)


def test_the_tools_on_offer_decide_on_the_columns(tmp_path):
    for config, has_tool_choice in (("tiny", False), ("tiny_crop", True)):
        trackers = open_trackers(tmp_path, load_config(config, ["run.trackers=[]"]), run_id="0", warn=print)
        assert trackers.has_tool_choice is has_tool_choice


def test_a_tracker_is_named_once():
    with pytest.raises(ValueError, match="name each tracker once"):
        load_config("tiny", ["run.trackers=[wandb,wandb]"])
    assert load_config("tiny", ["run.trackers=[]"]).run.trackers == ()


@pytest.fixture
def record(tmp_path, monkeypatch):
    """Two drivers of one run, the second resumed from step 1, with one tracker."""
    for name in OFFLINE:
        monkeypatch.delenv(name, raising=False)

    def play(name, **environment):
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        warnings = []
        for steps in ((1, 2), (2, 3)):
            settings = {"run": {"name": "tiny", "seed": 0}, "judge": {"llm": {"model": "é"}}}
            tracker = ADAPTERS[name](tmp_path, "tiny", "abc", settings)
            trackers = Trackers([Background(name, lambda made=tracker: made, warn=warnings.append)])
            recorder = Recorder(tmp_path, step=steps[0] - 1, trackers=lambda made=trackers: made)
            for step in steps:
                recorder.record_step(step, collected(f"0-{step}"), {"reward/mean": step / 2})
            recorder.close()
        assert warnings == []
        return tmp_path

    return play


def test_mlflow_keeps_one_run_in_a_folder(record):
    mlflow = pytest.importorskip("mlflow", reason="the extra `trackers` is not installed")
    folder = record("mlflow")
    client = mlflow.MlflowClient(tracking_uri=(folder / "mlflow").as_uri())
    (experiment,) = [each for each in client.search_experiments() if each.name == "visionthink"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.metrics["reward/mean"]) == ("FINISHED", 1.5)
    assert run.data.params["judge.llm.model"] == "é"
    (table,) = (folder / "mlflow").rglob("episodes/step-000003.json")
    assert json.loads(table.read_text())["columns"] == list(COLUMNS)


def test_wandb_writes_an_offline_run_with_tables(record):
    pytest.importorskip("wandb", reason="the extra `trackers` is not installed")
    folder = record("wandb")
    assert list((folder / "wandb").glob("offline-run-*-abc/run-abc.wandb"))
    tables = [json.loads(file.read_text()) for file in (folder / "wandb").rglob("*.table.json")]
    assert {table["data"][0][0] for table in tables} == {1, 2, 3}
    assert tables[0]["columns"] == list(COLUMNS)


def test_trackio_keeps_one_run_in_a_folder(record, tmp_path, capsys):
    if find_spec("trackio") is None:
        pytest.skip("the extra `trackers` is not installed")  # not imported here: it reads TRACKIO_DIR when it is
    record("trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    with sqlite3.connect(tmp_path / "trackio" / "visionthink.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert {name for name, _, _ in rows} == {"tiny-abc"}
    logged = [json.loads(text) for _, _, text in rows]
    assert [each["reward/mean"] for each in logged if "reward/mean" in each] == [0.5, 1.0, 1.0, 1.5]
    assert sum("episodes" in each for each in logged) == 4
    assert capsys.readouterr().out == "", "stdout is for results"
