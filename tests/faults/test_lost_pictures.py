"""A learner rank on a real Ray whose pictures are lost before it has taken them."""

import asyncio
import hashlib
import time
from dataclasses import replace

import numpy as np
import pytest
import ray

from actors.data.dataset import Dataset
from actors.data.shapes import make_shapes
from actors.episode import SampleRef
from actors.errors import LearnerError
from actors.images import ViewSpec, check_and_decode, full_view
from cluster.runtime.placement import place
from cluster.runtime.ranks import start_learner
from configs.learner import LearnerConfig
from configs.schema import Config, DataConfig, ModelConfig
from learner.state.checkpoint import CheckpointFolder
from tests.learner.builders import make_group, save_model, small_model
from tests.learner.saved import seal
from tests.local_ray import ray_on_this_machine

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]
SIZE = (224, 224)


class PictureOwner:
    """Cuts full views as a rollout worker does, and owns them: they are lost with it."""

    def cut(self, path, row):
        encoded = Dataset.open(path).read(SampleRef(dataset=path, row=row, uid="")).image
        image = check_and_decode(encoded, max_pixels=10**7, max_side_ratio=200)
        spec = ViewSpec(patch_size=14, merge_size=2, min_pixels=SIZE[0] ** 2, max_pixels=SIZE[0] ** 2)
        return [ray.put(full_view(image, spec))], hashlib.sha256(encoded).hexdigest()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    paths = make_shapes(tmp_path_factory.mktemp("shapes"), train_rows=4, heldout_rows=4, seed=5)
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, small_model())
    return Config(
        model=ModelConfig(path=str(folder), min_pixels=SIZE[0] ** 2, max_pixels=SIZE[0] ** 2),
        data=DataConfig(train=str(paths["train"]), heldout=str(paths["heldout"])),
        learner=LearnerConfig(num_threads=1, prompts_per_mini_batch=4, update_timeout_s=120),
    )


@pytest.fixture(scope="module")
def loop():
    with ray_on_this_machine(), asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def learner(loop, config):
    group = start_learner(config, place(config))
    loop.run(group.start())
    yield group
    loop.run(group.shutdown())


@pytest.fixture
def owner(loop):
    return ray.remote(PictureOwner).options(num_cpus=0).remote()


def played(owner, config, row):
    """A group about a row's picture, the handle of which only the owner keeps alive."""
    path = config.data.train
    (handle,), sha256 = ray.get(owner.cut.remote(path, row), timeout=60)
    group = make_group(row, size=SIZE)
    ref = SampleRef(dataset=path, row=row, uid=f"0-{row}")
    return replace(group, played=replace(group.played, ref=ref, image_sha256=sha256), image=handle)


def kill(actor, handle):
    """Kill the owner, and wait until its node has dropped the copy that it held for it."""
    ray.kill(actor)
    give_up_at = time.monotonic() + 60
    while is_there(handle):
        assert time.monotonic() < give_up_at, "the picture outlived its owner"
        time.sleep(0.2)


def is_there(handle):
    try:
        ray.get(handle, timeout=10)
    except ray.exceptions.ObjectLostError:
        return False
    return True


def grad_norm(loop, learner, groups):
    return loop.run(learner.update(groups)).metrics["learner/grad_norm"]


async def saved(learner, checkpoints):
    await learner.snapshot()
    folder = checkpoints.begin(1)
    await learner.begin_save(checkpoints.url, folder, learner.version)
    return seal(checkpoints, 1, folder, await learner.finish_save(60.0))


def test_an_update_reads_the_pictures_of_a_dead_worker_from_the_data_set(loop, learner, config, owner, tmp_path):
    checkpoints = CheckpointFolder(tmp_path)
    name = loop.run(saved(learner, checkpoints))
    groups = [played(owner, config, row) for row in range(4)]
    expected = grad_norm(loop, learner, groups)
    loop.run(learner.load(checkpoints.url, name))
    groups = [played(owner, config, row) for row in range(4)]
    kill(owner, groups[0].image)
    assert grad_norm(loop, learner, groups) == pytest.approx(expected, rel=1e-6)


def test_a_row_that_changed_meanwhile_is_refused(loop, learner, config, owner):
    group = played(owner, config, 0)
    kill(owner, group.image)
    other = replace(group, played=replace(group.played, ref=replace(group.played.ref, row=1)))
    with pytest.raises(LearnerError, match=r"row 1 of .* has changed since it was played"):
        loop.run(learner.update([other]))


def test_a_picture_that_is_still_there_is_taken_from_its_worker_and_not_from_the_data_set(loop, learner, owner, config):
    group = played(owner, config, 0)
    nowhere = replace(group.played.ref, dataset="/nowhere/train.parquet")
    report = loop.run(learner.update([replace(group, played=replace(group.played, ref=nowhere))]))
    assert np.isfinite(report.metrics["learner/grad_norm"])
