"""Weights by name, each rank its own share: two ranks over gloo hold what one process loads, and no more."""

import multiprocessing
import os
import resource
import socket
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.learner import LearnerConfig
from learner.engine import construction, join_process_group, leave_process_group
from learner.model import load_policy
from learner.zero.sharding import learner_settings
from tests.learner.builders import save_model, small_model

SHARDED = learner_settings(LearnerConfig(zero_stage=3), torch.float32)
MIB = 2**20


def shares(folder, **settings):
    """{name: (this rank's flat share, elements of the whole)}."""
    model = load_policy(folder, construction=construction(SHARDED), **settings)
    return {name: (p.ds_tensor.clone(), p.ds_numel) for name, p in model.named_parameters()}


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def load_on_a_rank(rank, port, small, untied, large, results):
    join_process_group(rank=rank, world_size=2, address="127.0.0.1", port=port, timeout_s=60, on_gpu=False)
    found = {
        "weights": shares(small),
        "untied": shares(untied),
        "random": shares(small, load="random", seed=5),
    }
    before = peak_bytes()
    model = load_policy(large, load="random", construction=construction(SHARDED))
    growth = peak_bytes() - before
    whole = sum(4 * p.ds_numel for p in model.parameters())
    results.put((rank, {**{kind: plain(each) for kind, each in found.items()}, "growth": growth, "whole": whole}))
    leave_process_group()


def plain(found):
    return {name: (share.numpy(), numel) for name, (share, numel) in found.items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {name: tmp_path_factory.mktemp(name) for name in ("small", "untied", "large")}
    save_model(made["small"], small_model())
    save_model(made["untied"], small_model(tied=False))
    # No tensor of it is a large part of the whole.
    with torch.device("meta"):
        large = small_model(width=512, vision_width=512, layers=24, vocab_size=2000)
    large.config.save_pretrained(made["large"])
    return made


@pytest.fixture(scope="module")
def ranks(folders):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    paths = (folders["small"], folders["untied"], folders["large"])
    processes = [context.Process(target=load_on_a_rank, args=(rank, port, *paths, results)) for rank in range(2)]
    # Every tensor in pages of its own, so that what was freed does not count.
    with mock.patch.dict(os.environ, {"MALLOC_MMAP_THRESHOLD_": str(2**16)}):
        for process in processes:
            process.start()
    try:
        found = dict(results.get(timeout=200) for _ in processes)
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()
    return [found[0], found[1]]


@pytest.mark.parametrize(
    ("kind", "folder", "settings"),
    [
        ("weights", "small", {}),
        ("untied", "untied", {}),
        ("random", "small", {"load": "random", "seed": 5}),
    ],
)
def test_the_shares_of_two_ranks_are_the_weights_of_one(ranks, folders, kind, folder, settings):
    expected = dict(load_policy(folders[folder], **settings).named_parameters())
    first, second = (rank[kind] for rank in ranks)
    assert list(first) == list(second) == list(expected)
    for name, parameter in expected.items():
        (ours, numel), (theirs, _) = first[name], second[name]
        assert len(ours) == len(theirs) == -(-numel // 2), name
        whole = torch.cat([torch.from_numpy(ours), torch.from_numpy(theirs)])
        assert torch.equal(whole[:numel], parameter.detach().flatten()), name
        assert whole[numel:].count_nonzero() == 0, name


def test_no_rank_ever_holds_a_whole_model(ranks):
    for rank in ranks:
        assert rank["whole"] > 300 * MIB
        assert rank["growth"] < 0.75 * rank["whole"]


def rewritten(folder, tmp_path, edit):
    """A copy of the small model with other tensors in its file."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def test_the_librarys_own_names_are_read_as_well_as_those_of_the_checkpoints(folders, tmp_path):
    model = load_policy(folders["small"])
    named = {name: p.detach().clone() for name, p in model.named_parameters()}
    # And a tied output layer that the file repeats is no surprise.
    named["lm_head.weight"] = model.lm_head.weight.detach().clone()
    (tmp_path / "config.json").write_bytes((folders["small"] / "config.json").read_bytes())
    save_file(named, tmp_path / "model.safetensors")
    for (name, found), expected in zip(load_policy(tmp_path).named_parameters(), model.parameters(), strict=True):
        assert torch.equal(found, expected), name


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda tensors: tensors.pop("visual.merger.ln_q.weight"), r"lacks weights: visual\.merger\.ln_q\.weight"),
        (lambda tensors: tensors.update(extra=torch.zeros(2)), "has unexpected weights: extra"),
        (
            lambda tensors: tensors.update({"model.norm.weight": torch.zeros(3)}),
            r"model\.norm\.weight of shape \(3,\), the model's config\.json says \(32,\)",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(folders, tmp_path, edit, words):
    with pytest.raises(ValueError, match=words):
        load_policy(rewritten(folders["small"], tmp_path, edit))


def test_a_folder_without_weights_is_refused(folders, tmp_path):
    (tmp_path / "config.json").write_bytes((folders["small"] / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        load_policy(tmp_path)
