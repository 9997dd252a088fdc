"""Learner ranks on a real Ray that are killed and stopped: DeepSpeed over gloo, compared with an undisturbed run.

Recovery times are printed: `pytest -n 0 -s -m "slow or not slow" tests/faults/test_elastic_learner.py`.
"""

import asyncio
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import ray
from safetensors.numpy import load_file

from cluster.runtime.placement import place
from cluster.runtime.ranks import start_learner
from configs.learner import LearnerConfig
from configs.schema import Config, ModelConfig, RolloutConfig
from configs.seeds import derive_seed
from learner.batches.plan import plan_mini_batches
from learner.worker import LearnerRank
from tests.learner.builders import images_of, make_group, save_model, small_model

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400), pytest.mark.filterwarnings("default")]
SIZE = (112, 112)


@pytest.fixture(scope="module", autouse=True)
def connected(local_ray):
    """Every test of this module has a Ray."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, small_model())
    return ModelConfig(path=str(folder), min_pixels=SIZE[0] ** 2, max_pixels=SIZE[0] ** 2)


def groups_of(update):
    """Of one update: two mini-batches."""
    return [make_group(100 * update + seed, size=SIZE) for seed in range(8)]


def configured(model, **settings):
    learner = {"num_threads": 1, "prompts_per_mini_batch": 4, "max_tokens_per_micro_batch": 256, **settings}
    rollout = RolloutConfig(max_prompt_tokens=200, max_turn_tokens=50)
    return Config(
        model=model,
        rollout=rollout,
        learner=LearnerConfig(**{"update_timeout_s": 120, "stall_timeout_s": 6, **learner}),
    )


class Disturbed:
    """A learner, and what is done to its ranks."""

    def __init__(self, config, placement=None):
        self.events = []
        self.learner = start_learner(config, placement or place(config), on_event=self._seen)
        self._at = time.monotonic()

    def _seen(self, event):
        self.events.append(event)
        print(f"{time.monotonic() - self._at:6.2f} s  {event.line()}")

    @property
    def kinds(self):
        return [event.kind for event in self.events]

    async def update(self, number, *, strike=None, victim=None, act=None):
        """One update; with `strike`, that signal goes to a rank in the midst of it, or `act` is called."""
        groups = [replace(group, image=ray.put(group.image)) for group in groups_of(number)]
        started = time.monotonic()
        update = asyncio.create_task(self.learner.update(groups))
        if victim is not None:
            rank = self.learner._formation.serving[victim].rank
            pid = await rank._actor.__ray_call__.remote(lambda host: os.getpid())
            before = await rank.progress()
            while await rank.progress() < before + 4:
                await asyncio.sleep(0.005)
            act() if act is not None else os.kill(pid, strike)
            print(f"{time.monotonic() - self._at:6.2f} s  struck rank {victim} in update {number}")
        await update
        print(f"{time.monotonic() - self._at:6.2f} s  update {number} took {time.monotonic() - started:.2f} s")

    async def wait_until_up(self, number):
        give_up_at = time.monotonic() + 60
        while sum(member.state != "pending" for member in self.learner.members()) < number:
            assert time.monotonic() < give_up_at, "it did not come back"
            await asyncio.sleep(0.1)

    async def wait_until_copied(self):
        """The copies of the last update are in other processes."""
        copying = self.learner._formation._copying
        async with asyncio.timeout(60):
            await copying
        print(f"{time.monotonic() - self._at:6.2f} s  copies are in place")


def undisturbed(config, num_updates, folder):
    """The same updates by a rank of its own in this process; its weights."""
    seed = derive_seed(config.run.seed, "learner")
    rank = LearnerRank(config.learner, config.model, seed=seed, temperature=config.rollout.temperature)
    rank.form(0, 1, "127.0.0.1", rank.rendezvous()[1])
    for number in range(num_updates):
        groups = groups_of(number)
        (plan,) = plan_mini_batches(
            groups,
            prompts_per_mini_batch=config.learner.prompts_per_mini_batch,
            num_ranks=1,
            max_tokens_per_micro_batch=config.learner.max_tokens_per_micro_batch,
            max_tokens_per_vision_pass=config.learner.max_tokens_per_vision_pass,
        )
        rank.update(plan, images_of(plan, groups))
    rank.export_hf(folder)
    rank.shutdown()
    return load_file(folder / "model.safetensors")


def largest_difference(found, expected):
    assert found.keys() == expected.keys()
    return max(float(np.abs(found[name].astype(np.float64) - expected[name]).max()) for name in expected)


async def killed_and_grown_back(config, folder):
    """2 -> 1 -> 2 ranks by a kill in a backward pass; the weights, and the events."""
    run = Disturbed(config)
    await run.learner.start()
    await run.wait_until_up(2)
    await run.update(0)
    await run.update(1, strike=signal.SIGKILL, victim=1)
    assert run.learner.num_ranks == 1
    await run.wait_until_up(2)
    await run.update(2)
    assert run.learner.num_ranks == 2
    await run.learner.export_hf(folder)
    await run.learner.shutdown()
    return load_file(folder / "model.safetensors"), run.kinds


def check_killed_and_grown_back(tmp_path, config):
    found, kinds = asyncio.run(killed_and_grown_back(config, tmp_path / "disturbed"))
    difference = largest_difference(found, undisturbed(config, 3, tmp_path / "undisturbed"))
    print(f"largest difference of a weight: {difference:.2e}")
    assert difference <= 1e-6
    assert kinds.count("reform") >= 2
    assert "leave" in kinds
    assert "replay" in kinds


def test_a_kill_in_a_backward_pass_changes_no_weight(tmp_path, model):
    check_killed_and_grown_back(tmp_path, configured(model, num_ranks="1..2", zero_stage=1))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_nor_does_it_under_the_other_stages(tmp_path, model, stage):
    settings = {"param_persistence_threshold": 0} if stage == 3 else {}
    check_killed_and_grown_back(tmp_path, configured(model, num_ranks="1..2", zero_stage=stage, **settings))


@pytest.mark.slow
def test_a_stopped_rank_is_found_and_a_single_one_comes_back_from_a_holder(tmp_path, model):
    async def stopped():
        run = Disturbed(config)
        await run.learner.start()
        await run.update(0)
        await run.update(1, strike=signal.SIGSTOP, victim=0)
        await run.update(2)
        await run.learner.export_hf(tmp_path / "disturbed")
        await run.learner.shutdown()
        return run.kinds

    config = configured(model, num_ranks=1)
    assert "wedged" in asyncio.run(stopped())
    found = load_file(tmp_path / "disturbed" / "model.safetensors")
    assert largest_difference(found, undisturbed(config, 3, tmp_path / "undisturbed")) <= 1e-6


@pytest.mark.slow
def test_a_stopped_rank_of_two_is_found_and_the_other_is_freed(tmp_path, model):
    async def stopped():
        run = Disturbed(config)
        await run.learner.start()
        await run.wait_until_up(2)
        await run.update(0)
        started = time.monotonic()
        await run.update(1, strike=signal.SIGSTOP, victim=1)
        assert time.monotonic() - started < 30, "seconds, where the process group's own time-out is 120 s"
        await run.learner.export_hf(tmp_path / "disturbed")
        await run.learner.shutdown()
        return run.kinds

    config = configured(model, num_ranks="1..2")
    kinds = asyncio.run(stopped())
    assert "wedged" in kinds
    found = load_file(tmp_path / "disturbed" / "model.safetensors")
    assert largest_difference(found, undisturbed(config, 2, tmp_path / "undisturbed")) <= 1e-6
