"""Where a run starts, and what becomes of what it had recorded."""

import io
import json

import pytest
from rich.console import Console

from actors.data.dataset import PromptCursor
from actors.errors import CheckpointError, RunError
from cluster.display import Display
from cluster.runs.attempts import set_aside
from cluster.runs.resuming import find_start, recall
from configs.load import load_config
from learner.state.checkpoint import CheckpointFolder, write_json


@pytest.fixture
def shown():
    return io.StringIO()


@pytest.fixture
def display(shown):
    return Display(load_config("tiny"), Console(file=shown, width=300))


def record(run, step=1):
    """What a run leaves before its first checkpoint."""
    (run / "lease").mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text("{}")
    (run / "ledger.jsonl").write_text(f'{{"step": {step}, "samples": []}}\n')
    (run / "episodes").mkdir()
    (run / "episodes" / "step-000001.parquet").write_bytes(b"x")


def save(checkpoints, step):
    checkpoints = CheckpointFolder(checkpoints)
    folder = checkpoints.begin(step)
    checkpoints.seal(step, {"state.json": write_json(checkpoints.storage, f"{folder}/state.json", {})})


def start(run, display, *overrides, resume=False, restart=False):
    config = load_config("tiny", [f"run.dir={run.parent}", f"run.name={run.name}", *overrides])
    return find_start(config, resume=resume, restart=restart, display=display)


def test_a_run_with_a_valid_checkpoint_is_resumed(tmp_path, display):
    record(tmp_path)
    for step in (5, 10):
        save(tmp_path / "checkpoints", step)
    (tmp_path / "checkpoints" / "step-00000010" / "state.json").write_text("flipped")
    assert start(tmp_path, display, resume=True)
    assert (tmp_path / "ledger.jsonl").exists()


def test_a_new_run_does_not_write_among_the_checkpoints_of_another(tmp_path, display):
    elsewhere = tmp_path / "elsewhere"
    save(elsewhere / "x", 5)
    where = (tmp_path / "x", display, f"train.checkpoint_dir={elsewhere}")
    assert start(*where, resume=True)
    for given in ({}, {"restart": True}):
        with pytest.raises(CheckpointError, match=r"holds checkpoints of an earlier run, up to step-00000005: remove"):
            start(*where, **given)


@pytest.mark.parametrize("has_partial", [False, True])
def test_before_the_first_checkpoint_recorded_steps_are_set_aside_not_deleted(tmp_path, display, shown, has_partial):
    """Killed before its first checkpoint, or while it wrote it; twice."""
    for attempt in (1, 2):
        record(tmp_path, step=attempt)
        if has_partial:
            (tmp_path / "checkpoints" / ".tmp-00000005").mkdir(parents=True)
        assert not start(tmp_path, display, resume=True)
        kept = tmp_path / "attempts" / str(attempt)
        assert json.loads((kept / "ledger.jsonl").read_text())["step"] == attempt
        assert (kept / "episodes" / "step-000001.parquet").read_bytes() == b"x"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["attempts", "lease"]
    assert "starts over" in shown.getvalue()


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_over_by_itself(tmp_path, display):
    record(tmp_path)
    save(tmp_path / "checkpoints", 5)
    (tmp_path / "checkpoints" / "step-00000005" / "state.json").write_text("flipped")
    with pytest.raises(CheckpointError, match="give --restart"):
        start(tmp_path, display, resume=True)
    assert (tmp_path / "ledger.jsonl").exists()


def test_restart_sets_everything_aside_and_a_new_run_overwrites_nothing(tmp_path, display):
    record(tmp_path)
    save(tmp_path / "checkpoints", 5)
    with pytest.raises(RunError, match="has a run already: give --resume or --restart"):
        start(tmp_path, display)
    assert not start(tmp_path, display, restart=True)
    assert (tmp_path / "attempts" / "1" / "checkpoints" / "step-00000005" / "state.json").exists()
    assert not (tmp_path / "checkpoints").exists()


def test_files_that_are_no_records_are_never_moved(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert set_aside(tmp_path) is None
    record(tmp_path)
    set_aside(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_resumed_run_counts_its_unusable_rows_on_and_tells_of_lost_lines(tmp_path, display, shown):
    config = load_config("tiny")
    prompts = PromptCursor(dataset="d", num_rows=50, seed=0)
    uids = [ref.uid for ref in prompts.take(6)]
    (tmp_path / "ledger.jsonl").write_text(json.dumps({"step": 1, "samples": uids[:3]}) + '\n{"step": 2, "sam')
    (tmp_path / "lost.jsonl").write_text(
        json.dumps({"step": 1, "sample": "0-4", "row": 4, "reason": "no image"}) + "\n"
    )
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "groups/drawn": 3, "groups/skipped": 1}\n')
    skips = recall(tmp_path, config, 2, prompts, display)
    assert (skips.num_usable, [reason for _, reason in skips.skipped]) == (2, ["no image"])
    assert "no line for step 2: it is restored" in shown.getvalue()
    ledger = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert ledger == [{"step": 1, "samples": uids[:3]}, {"step": 2, "samples": uids[3:]}]
