"""Ranks of a learner in processes of their own, for tests: each runs the same script of calls, in step.

A script is a list of ({"learner": fields of LearnerConfig, "model": fields of ModelConfig}, [(method, argument)]), one
learner after the other. Its settings may hold {"zero": fields of DeepSpeed's zero_optimization}, over the derived ones.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import socket
import time
from dataclasses import replace
from unittest import mock

import pytest
import torch

from actors.errors import CheckpointError
from configs.learner import LearnerConfig, WeightsConfig
from configs.schema import ModelConfig
from learner import engine, scoring
from learner.batches.plan import plan_mini_batches
from learner.engine import leave_process_group
from learner.worker import LearnerRank
from learner.zero.sharding import learner_settings
from tests.learner.builders import collated, images_of, piece_without_pictures, plan_of
from tests.learner.whole_state import whole_state

CHUNK_LOGITS = 96 * 5
"""Of the small model's output layer: so few that ranks have different numbers of chunks."""


def run_script(script, *, rank=0, world_size=1, port=0, chunk_logits=CHUNK_LOGITS):
    """Play one rank; the outcome of every call."""
    outcomes = []
    with mock.patch.object(scoring, "MAX_LOGITS", chunk_logits or scoring.MAX_LOGITS):
        for settings, calls in script:
            config = LearnerConfig(**{"num_ranks": world_size, "update_timeout_s": 60.0, **settings["learner"]})
            model = ModelConfig(**settings["model"])
            learner = LearnerRank(
                config,
                model,
                rank=rank,
                world_size=world_size,
                seed=0,
                temperature=1.0,
                weights=WeightsConfig(),
                transport="nccl" if config.num_gpus else "shared_memory",
            )
            with mock.patch.object(engine, "learner_settings", changed_settings(settings.get("zero", {}))):
                learner.start("127.0.0.1", port or learner.rendezvous()[1])
            outcomes += [perform(learner, config, rank, method, argument) for method, argument in calls]
    return outcomes


def changed_settings(changes):
    def settings(*given):
        found = learner_settings(*given)
        return {**found, "zero_optimization": {**found["zero_optimization"], **changes}}

    return settings


def report_script(script, rank, world_size, port, chunk_logits, results):
    results.put((rank, run_script(script, rank=rank, world_size=world_size, port=port, chunk_logits=chunk_logits)))
    leave_process_group()


def planned(config, rank, groups, num_before=0):
    """One rank's share of an update, or of a part of one."""
    return plan_mini_batches(
        groups,
        prompts_per_mini_batch=config.prompts_per_mini_batch,
        num_ranks=config.ranks.maximum,
        max_tokens_per_micro_batch=config.max_tokens_per_micro_batch,
        max_tokens_per_vision_pass=config.max_tokens_per_vision_pass,
        num_before=num_before,
    )[rank]


def begin_in_parts(learner, config, rank, parts):
    """One rank's share of the parts of an update."""
    learner.begin()
    num_before = 0
    for groups in parts:
        plan = planned(config, rank, groups, num_before)
        learner.learn(plan, images_of(plan, groups))
        num_before = (num_before + len(groups)) % config.prompts_per_mini_batch


def update(learner, config, rank, groups, edit=None):
    """One rank's share of an update; `edit` changes each of its pieces first."""
    plan = planned(config, rank, groups)
    if edit is not None:
        plan = replace(plan, mini_batches=tuple(map(edit, plan.mini_batches)))
    return learner.update(plan, images_of(plan, groups))


def restore(learner, shares):
    return learner.restore([share.header for share in shares], lambda index: shares[index].state_3N)


def perform(learner, config, rank, method, argument):
    match method:
        case "update":
            return update(learner, config, rank, argument)
        case "begin_in_parts":
            return begin_in_parts(learner, config, rank, argument)
        case "update_in_parts":
            begin_in_parts(learner, config, rank, argument)
            return learner.finish()
        case "update_with_pictures_on_the_first_rank_only":
            return update(learner, config, rank, argument, edit=piece_without_pictures if rank else None)
        case "shards":
            return {
                name: (p.ds_tensor.numel(), p.ds_numel, p.numel())
                for name, p in learner._engine.module.named_parameters()
                if hasattr(p, "ds_tensor")
            }
        case "reference":
            (plan,) = plan_of(argument)
            (shown,), (batch,) = collated(plan.mini_batches[0], images_of(plan, argument))
            reference = learner._trainer._reference
            with torch.no_grad():
                return [reference(batch, reference(shown))[0].numpy().copy() for _ in range(3)]
        case "exported":
            return {name: tensor.float().numpy().copy() for name, tensor in learner._parameters()}
        case "state":
            return {key: tensor.numpy().copy() for key, tensor in whole_state(learner._engine)}
        case "restore":
            return restore(learner, argument)
        case "restore_is_refused":
            with pytest.raises(CheckpointError) as refused:
                restore(learner, argument)
            return str(refused.value)
        case "save":
            url, folder = argument
            learner.begin_save(url, folder, learner.snapshot().counters.optimizer_step)
            return learner.finish_save(120)
        case "snapshot":
            return learner.snapshot()
        case _:
            return getattr(learner, method)(argument)


def play(world_size, script, *, chunk_logits=CHUNK_LOGITS, on_gpus=False, deadline_s=240):
    """Outcomes of every call, per rank, of ranks that are processes of their own, each with its own GPU if it has one.

    Raises:
        AssertionError: a rank died, or the deadline passed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=report_script, args=(script, rank, world_size, port, chunk_logits, results))
        for rank in range(world_size)
    ]
    for rank, process in enumerate(processes):
        with mock.patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": str(rank)} if on_gpus else {}):
            process.start()
    found = {}
    give_up_at = time.monotonic() + deadline_s
    try:
        while len(found) < world_size:
            with contextlib.suppress(queue.Empty):
                found.update([results.get(timeout=1)])
            codes = [process.exitcode for process in processes]
            assert not any(codes), f"a rank died: exit codes {codes}"
            assert time.monotonic() < give_up_at, f"no answer from {sorted(set(range(world_size)) - set(found))}"
        return [found[rank] for rank in range(world_size)]
    finally:
        for process in processes:
            process.join(timeout=10 if len(found) == world_size else 0)
            process.kill()
