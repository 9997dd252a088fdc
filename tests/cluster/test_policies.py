"""Finding a policy in a run, in a checkpoint or in a model folder, and exporting it from a real learner's state."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actors.errors import CheckpointError, RunError
from cluster.policies import find_policy, materialize
from configs.load import load_config, to_yaml
from learner.model import load_policy
from learner.state.checkpoint import CheckpointFolder
from learner.state.share_files import write_share
from learner.state.snapshot import Counters, Piece, Share
from tests.learner.builders import TINY
from tests.learner.saved import seal


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(load_config("tiny")))
    return folder


def save_checkpoint(run, step, scale=1.0, leave_out=()):
    """A checkpoint with the shipped weights times `scale`, as two ranks write it."""
    weights = load_policy(TINY).state_dict()
    named = {
        f"model.{name}": tensor.numpy() * scale
        for name, tensor in weights.items()
        if name != "lm_head.weight" and not name.startswith(leave_out or "nothing")
    }
    counters = Counters(optimizer_step=step, num_skipped=0, num_skipped_in_a_row=0)
    checkpoints = CheckpointFolder(run / "checkpoints")
    folder = checkpoints.begin(step)
    shares = []
    for rank in range(2):
        pieces, rows, offset = [], [], 0
        for name, array in named.items():
            start, stop = (array.size * r // 2 for r in (rank, rank + 1))
            pieces.append(Piece(name=name, start=start, stop=stop, offset=offset))
            rows.append(np.stack([array.ravel()[start:stop]] * 3))
            offset += stop - start
        share = Share(
            rank=rank,
            counters=counters,
            shapes={name: array.shape for name, array in named.items()},
            pieces=tuple(pieces),
            state_3N=np.concatenate(rows, axis=1),
            rng={"cpu": np.zeros(8, np.uint8)},
        )
        shares.append(write_share(share, checkpoints.storage, folder))
    return run / "checkpoints" / seal(checkpoints, step, folder, shares, saved_at=0.0)


def finish(run, steps):
    (run / "export").mkdir(exist_ok=True)
    (run / "export" / "model.safetensors").write_bytes((TINY / "model.safetensors").read_bytes())
    (run / "summary.json").write_text(json.dumps({"steps": steps}))


def test_a_model_folder_is_taken_as_it_is():
    assert materialize(find_policy(TINY)) == TINY


def test_a_finished_run_gives_its_export(run):
    save_checkpoint(run, 10)
    finish(run, 10)
    source = find_policy(run)
    assert (source.step, materialize(source)) == (10, run / "export")


def test_a_run_that_went_on_after_its_export_gives_its_newest_checkpoint(run):
    finish(run, 10)
    save_checkpoint(run, 15)
    assert find_policy(run).step == 15


def test_a_checkpoint_becomes_a_model_folder_with_its_weights(run):
    checkpoint = save_checkpoint(run, 5, scale=2.0)
    folder = materialize(find_policy(checkpoint))
    assert folder == run / "exports" / "step-00000005"
    shipped, exported = load_file(TINY / "model.safetensors"), load_file(folder / "model.safetensors")
    assert exported.keys() == shipped.keys()
    assert all(torch.equal(exported[name], shipped[name] * 2.0) for name in shipped)
    assert (folder / "config.json").is_file()
    assert "step: 5" in (folder / "README.md").read_text()
    assert {"client.py", "prompt.yaml", "visionthink.yaml"} <= {file.name for file in folder.iterdir()}
    for file in folder.iterdir():
        assert not file.is_symlink()
        assert file.stat().st_mode & 0o444 == 0o444, f"others can read {file.name}"


def test_a_damaged_checkpoint_is_refused(run):
    checkpoint = save_checkpoint(run, 5)
    (checkpoint / "learner.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"learner\.json"):
        find_policy(checkpoint)


def test_a_run_without_anything_says_so(run):
    with pytest.raises(RunError, match="neither finished nor written a valid checkpoint"):
        find_policy(run)


def test_a_folder_of_something_else_says_what_is_wanted(tmp_path):
    with pytest.raises(RunError, match="RUN/checkpoints/step-N"):
        find_policy(tmp_path)


def test_a_frozen_tower_is_exported_as_the_initial_model_has_it(run):
    folder = materialize(find_policy(save_checkpoint(run, 5, scale=2.0, leave_out="model.visual.")))
    shipped, exported = load_file(TINY / "model.safetensors"), load_file(folder / "model.safetensors")
    assert exported.keys() == shipped.keys()
    for name, tensor in shipped.items():
        assert torch.equal(exported[name], tensor if name.startswith("visual.") else tensor * 2.0), name


def test_a_step_of_a_run_is_exported_from_where_its_checkpoints_lie(run, tmp_path):
    checkpoint = save_checkpoint(run, 5, scale=2.0)
    elsewhere = tmp_path / "elsewhere"
    (run / "config.yaml").write_text(to_yaml(load_config("tiny", [f"train.checkpoint_dir={elsewhere}"])))
    elsewhere.mkdir()
    checkpoint.parent.rename(elsewhere / run.name)
    source = find_policy(run, step=5)
    assert (source.step, materialize(source)) == (5, run / "exports" / "step-00000005")
