"""Finding a policy in a run, in a checkpoint or in a model folder, and exporting it from a real learner's state."""

import json

import pytest
import torch
from safetensors.torch import load_file

from actors.errors import CheckpointError, RunError
from cluster.policies import find_policy, materialize
from configs.load import load_config, to_yaml
from learner.checkpoint import write_checkpoint
from learner.model import load_policy
from learner.state import Counters, write_state
from tests.learner.builders import TINY


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(load_config("tiny")))
    return folder


def save_checkpoint(run, step, scale=1.0):
    """A checkpoint with the shipped weights times `scale`, as the learner writes it."""
    weights = load_policy(TINY).state_dict()
    named = ((f"weight/model.{name}", tensor * scale) for name, tensor in weights.items() if name != "lm_head.weight")
    counters = Counters(optimizer_step=step, num_skipped=0, num_skipped_in_a_row=0)
    return write_checkpoint(run / "checkpoints", step, lambda folder: write_state(folder, counters, named), keep=5)


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
