"""Ranks of a learner in processes of their own, for tests: each runs the same script of calls, in step."""

from __future__ import annotations

import multiprocessing
import queue
import socket
from dataclasses import replace
from unittest import mock

from configs.schema import LearnerConfig, ModelConfig
from learner import scoring
from learner.batch import plan_mini_batches
from learner.engine import leave_process_group
from learner.worker import LearnerRank
from tests.learner.builders import images_of, without_pictures

DEADLINE_S = 240
CHUNK_LOGITS = 96 * 5
"""Of the small model's output layer: so few that ranks have different numbers of chunks."""


def run_script(folder, script, *, rank=0, world_size=1, port=0):
    """Play one rank: `script` is a list of (settings, [(method, argument)]), one learner after the other."""
    with mock.patch.object(scoring, "MAX_LOGITS", CHUNK_LOGITS):
        return list(_outcomes(folder, script, rank, world_size, port))


def _outcomes(folder, script, rank, world_size, port):
    for settings, calls in script:
        config = LearnerConfig(num_ranks=world_size, num_threads=1, update_timeout_s=60.0, **settings)
        learner = LearnerRank(
            config, ModelConfig(path=str(folder)), rank=rank, world_size=world_size, seed=0, temperature=1.0
        )
        learner.start("127.0.0.1", port or learner.rendezvous()[1])
        for method, argument in calls:
            yield perform(learner, config, rank, method, argument)


def report_script(folder, script, rank, world_size, port, results):
    results.put((rank, run_script(folder, script, rank=rank, world_size=world_size, port=port)))
    leave_process_group()


def update(learner, config, rank, groups, edit=None):
    """One rank's share of an update; `edit` changes each of its rows first."""
    plan = plan_mini_batches(
        groups,
        prompts_per_mini_batch=config.prompts_per_mini_batch,
        num_ranks=config.num_ranks,
        max_tokens_per_micro_batch=config.max_tokens_per_micro_batch,
    )[rank]
    if edit is not None:
        plan = replace(
            plan,
            mini_batches=tuple(
                tuple(tuple(edit(row) for row in rows) for rows in micro_batches) for micro_batches in plan.mini_batches
            ),
        )
    return learner.update(plan, images_of(plan, groups))


def perform(learner, config, rank, method, argument):
    match method:
        case "update":
            return update(learner, config, rank, argument)
        case "update_with_pictures_on_the_first_rank_only":
            return update(learner, config, rank, argument, edit=without_pictures if rank else None)
        case "shards":
            return {
                name: (p.ds_tensor.numel(), p.ds_numel, p.numel())
                for name, p in learner._engine.module.named_parameters()
                if hasattr(p, "ds_tensor")
            }
        case "state":
            return {key: tensor.numpy().copy() for key, tensor in learner._engine.state()}
        case _:
            return getattr(learner, method)(argument)


def play(world_size, folder, script):
    """Outcomes of every call, per rank, of ranks that are processes of their own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=report_script, args=(folder, script, rank, world_size, port, results))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    try:
        try:
            found = dict(results.get(timeout=DEADLINE_S) for _ in processes)
        except queue.Empty:
            raise AssertionError(f"no answer; exit codes {[process.exitcode for process in processes]}") from None
        for process in processes:
            process.join(timeout=DEADLINE_S)
        return [found[rank] for rank in range(world_size)]
    finally:
        for process in processes:
            process.kill()
