"""What a rank saves, restores, exports and sends."""

import functools
from pathlib import Path

import numpy as np
import pytest

from actors.errors import CheckpointError
from actors.weights.buckets import slot_tensor
from learner.state.checkpoint import CheckpointFolder
from learner.sync.resident import find_resident
from tests.learner.builders import (
    save_model,
    small_model,
)
from tests.learner.one_rank import exported, started, update
from tests.learner.saved import save, seal

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def test_weights_are_sent_under_the_optimizer_step_in_the_models_dtype(folder):
    rank = started(folder)
    link = rank.open_weights(1)
    assert {slot.tensor.dtype for slot in link.layout.slots} == {"float32"}
    assert rank.send_weights().offer.version == 0
    update(rank)
    assert rank.send_weights().offer.version == 1
    rank.close_weights()
    assert not Path(link.settings["file"]).exists()


@pytest.mark.parametrize(("stage", "num_buckets"), [(0, None), (1, 1), (2, 1), (3, None)])
def test_deepspeeds_flat_buffer_can_be_read_in_place_after_every_step(folder, stage, num_buckets):
    rank = started(folder, zero_stage=stage)
    parameters = rank._engine.resident_parameters()
    if stage == 3:
        assert parameters is None
        return
    resident = find_resident(rank._sender._tensors, parameters, bucket_bytes=1 << 30)
    assert len(resident.buckets) == (num_buckets or len(parameters))
    for _ in range(2):
        update(rank)
        resident.check()
        assert exported(rank) == {
            slot.tensor.name: slot_tensor(resident.buckets[slot.bucket], slot).numpy().tobytes()
            for slot in resident.layout.slots
        }


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_resumed_learner_goes_on_bit_for_bit(folder, tmp_path, stage):
    straight = started(folder, zero_stage=stage)
    reports = [update(straight) for _ in range(4)]

    first = started(folder, zero_stage=stage)
    for _ in range(2):
        update(first)
    name = save(tmp_path, [first])
    second = started(folder, zero_stage=stage)
    assert second.load(str(tmp_path), name) == 2
    resumed = [update(second) for _ in range(2)]

    assert exported(second) == exported(straight)
    for ours, theirs in zip(resumed, reports[2:], strict=True):
        assert ours.optimizer_step == theirs.optimizer_step
        learned = {name: value for name, value in theirs.metrics.items() if name.startswith("learner/")}
        del learned["learner/peak_memory_gib"]
        assert {name: ours.metrics[name] for name in learned} == learned


def test_a_saved_state_is_json_and_safetensors_only(folder, tmp_path):
    name = save(tmp_path, [started(folder)])
    assert {path.suffix for path in (tmp_path / name).iterdir()} == {".json", ".safetensors"}


WRITERS = {"export_hf": "save_hf", "send_weights": "WeightSender.send"}


@pytest.mark.parametrize("method", WRITERS)
def test_a_rank_that_cannot_write_or_send_still_takes_part_in_what_the_others_gather(
    folder, tmp_path, monkeypatch, method
):
    rank = started(folder)
    rank.open_weights(1)
    gathered = []

    def items(of):
        for item in of():
            gathered.append(item[0])
            yield item

    def refuse(*_, **__):
        raise CheckpointError("no space left")

    everything = [name for name, _ in rank._engine.parameters()]
    monkeypatch.setattr(rank._engine, "parameters", functools.partial(items, rank._engine.parameters))
    monkeypatch.setattr(f"learner.worker.{WRITERS[method]}", refuse)
    with pytest.raises(CheckpointError, match="no space left"):
        getattr(rank, method)(*([] if method == "send_weights" else [tmp_path]))
    rank.close_weights()
    assert gathered == everything


def test_another_models_state_is_refused_by_name_and_shape(folder, tmp_path):
    name = save(tmp_path, [started(folder)])
    other = tmp_path / "other"
    save_model(other, small_model(width=48))
    with pytest.raises(CheckpointError, match=r"another model: .* \(.*\) there and \(.*\) here"):
        started(other).load(str(tmp_path), name)


def test_a_damaged_state_is_refused_before_anything_changes(folder, tmp_path):
    rank = started(folder)
    name = save(tmp_path, [rank])
    update(rank)
    before = exported(rank)
    (file,) = (tmp_path / name).glob("learner-00000-00000*")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"learner-00000-00000\.safetensors has hash"):
        rank.load(str(tmp_path), name)
    assert exported(rank) == before
    (tmp_path / name / "learner.json").unlink()
    with pytest.raises(CheckpointError, match=r"learner\.json cannot be read"):
        rank.load(str(tmp_path), name)


def test_what_is_saved_is_the_state_of_the_snapshot_whatever_was_learned_since(folder, tmp_path):
    rank = started(folder)
    update(rank)
    after_one = rank.snapshot().state_3N.copy()
    update(rank)
    rank.snapshot()
    rank.begin()  # an update in flight
    checkpoints = CheckpointFolder(tmp_path)
    place = checkpoints.begin(1)
    rank.begin_save(checkpoints.url, place, 1)
    name = seal(checkpoints, 1, place, [rank.finish_save(60)])
    other = started(folder)
    assert other.load(checkpoints.url, name) == 1
    assert np.array_equal(other.snapshot().state_3N, after_one)


def test_a_snapshot_that_is_gone_cannot_be_saved(folder, tmp_path):
    rank = started(folder)
    for _ in range(3):
        rank.snapshot()
        update(rank)
    with pytest.raises(CheckpointError, match=r"version 0 is not in memory, only of \[1, 2\]"):
        rank.begin_save(str(tmp_path), "somewhere", 0)


def test_without_a_step_the_snapshot_is_not_taken_again(folder):
    rank = started(folder)
    first = rank.snapshot()
    assert rank.snapshot() is first
    update(rank)
    assert rank.snapshot() is not first


def test_the_reference_of_a_resumed_run_is_still_the_initial_policy(folder, tmp_path):
    rank = started(folder)
    for _ in range(2):
        update(rank)
    name = save(tmp_path, [rank])
    resumed = started(folder)
    resumed.load(str(tmp_path), name)
    assert update(resumed).metrics["learner/reference_kl"] == update(rank).metrics["learner/reference_kl"] > 0


def test_an_exported_folder_starts_a_learner_with_the_same_weights(folder, tmp_path):
    rank = started(folder)
    update(rank)
    rank.export_hf(tmp_path)
    assert exported(started(tmp_path)) == exported(rank)
