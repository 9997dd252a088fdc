"""A run's checkpoints with a learner of two scripted ranks that write real files."""

import asyncio
import threading

import numpy as np
import pytest

from actors.data.dataset import CursorState, PromptCursor
from actors.errors import CheckpointError, LearnerError, RunError
from cluster.checkpoints import Checkpoints, DriverParts, read_state
from cluster.identity import Identity
from configs.learner import LearnerConfig
from configs.schema import Config, RunConfig, TrainConfig
from learner.state.checkpoint import CheckpointFolder
from learner.state.share_files import SavedLearner, write_share
from learner.state.snapshot import Counters, Piece, Share


def identity(dataset):
    return Identity(
        dataset=dataset,
        chat_template="c",
        model="m",
        prompt="p",
        judge="j",
        packages={"ray": "2"},
        settings={},
        revisions={},
    )


IDENTITY = identity("d")
SHAPES = {"w": (8,)}


class ScriptedLearner:
    """As `learner.group.LearnerGroup`: two ranks, the weights of which are the version."""

    def __init__(self):
        self.version = 0
        self.snapshots = []
        self.loaded = None
        self.may_write = threading.Event()
        self.may_write.set()
        self.fails = {}
        """Error of a rank, by rank."""
        self.num_writing = 0

    async def snapshot(self):
        self.snapshots = [*self.snapshots[-1:], self.version]

    async def begin_save(self, url, folder, version):
        assert version in self.snapshots
        storage = CheckpointFolder(url).storage
        self.writes = [asyncio.to_thread(self._write, rank, storage, folder, version) for rank in range(2)]

    def _write(self, rank, storage, folder, version):
        self.num_writing += 1
        assert self.may_write.wait(30)
        self.num_writing -= 1
        if rank in self.fails:
            raise self.fails[rank]
        counters = Counters(optimizer_step=version, num_skipped=0, num_skipped_in_a_row=0)
        share = Share(
            rank=rank,
            counters=counters,
            shapes=SHAPES,
            pieces=(Piece(name="w", start=4 * rank, stop=4 * rank + 4, offset=0),),
            state_3N=np.full((3, 4), version, np.float32),
            rng={"cpu": np.zeros(1, np.uint8)},
        )
        return write_share(share, storage, folder)

    async def finish_save(self, timeout_s):
        found = await asyncio.gather(*self.writes, return_exceptions=True)
        for each in found:
            if isinstance(each, BaseException):
                raise each
        return found

    async def load(self, url, folder):
        saved = SavedLearner.open(CheckpointFolder(url).storage, folder)
        weights = np.zeros((3, 8), np.float32)
        saved.fill(weights, [Piece(name="w", start=0, stop=8, offset=0)], SHAPES)
        self.loaded = set(weights.ravel().tolist())


class Watch:
    def __init__(self):
        self.amounts = {"calls": 3.0}

    def totals(self):
        return self.amounts

    def restore(self, totals):
        self.restored = totals


class World:
    """Checkpoints with everything around them."""

    def __init__(self, url, *, identity=IDENTITY, before_save=lambda: None, copy_state=True, **settings):
        self.learner, self.watch, self.events = ScriptedLearner(), Watch(), []
        self.said, self.warnings = [], []
        self.prompts = PromptCursor(dataset="d", num_rows=100, seed=0)
        self.folder = CheckpointFolder(f"{url}/run")
        settings = {"num_steps": 100, "checkpoint_every": 2, "keep_checkpoints": 10, **settings}
        config = Config(
            train=TrainConfig(**settings, checkpoint_dir=url),
            run=RunConfig(name="run"),
            learner=LearnerConfig(copy_state=copy_state),
        )
        self.checkpoints = Checkpoints(
            config,
            self.learner,
            DriverParts(identity=identity, prompts=self.prompts, judge_watch=self.watch),
            on_event=self.events.append,
            say=self.said.append,
            warn=self.warnings.append,
            before_save=before_save,
        )

    async def step(self, step):
        """A step that draws three rows."""
        self.learner.version = step
        self.prompts.take(3)
        await self.checkpoints.reached(step, self.prompts.state())

    async def steps(self, *steps):
        for step in steps:
            await self.step(step)

    def kinds(self):
        return [event.kind for event in self.events]


@pytest.fixture(params=["local", "memory"])
def url(request, tmp_path):
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"


async def test_every_kth_step_is_saved_and_a_new_process_goes_on_from_the_newest(url):
    world = World(url)
    await world.steps(1, 2, 3, 4, 5)
    await world.checkpoints.close()
    assert world.folder.list() == ["step-00000002", "step-00000004"]
    assert world.kinds() == ["save", "save"]
    later = World(url)
    assert await later.checkpoints.restore() == 4
    assert later.learner.loaded == {4.0}
    assert later.said == ["resumed from step-00000004"]
    assert later.prompts.state() == CursorState(seed=0, epoch=0, position=12)
    assert later.watch.restored == {"calls": 3.0}
    await later.steps(5, 6)
    await later.checkpoints.close()
    assert read_state(later.folder, "step-00000006")["cursor"] == {"seed": 0, "epoch": 0, "position": 18}


async def test_the_last_step_of_a_run_is_saved(url):
    world = World(url, num_steps=3)
    await world.steps(1, 2, 3)
    assert await world.checkpoints.save_last() == 3
    assert world.folder.list()[-1] == "step-00000003"


async def test_the_last_finished_step_is_saved_in_the_midst_of_the_next(url):
    world = World(url)
    await world.steps(1, 2, 3)
    world.learner.version = 4  # an update has moved the weights, the step is not finished
    await world.learner.snapshot()
    assert await world.checkpoints.save_last() == 3
    later = World(url)
    assert await later.checkpoints.restore() == 3
    assert later.learner.loaded == {3.0}
    assert await later.checkpoints.save_last() == 3, "nothing new"


async def test_without_a_finished_step_there_is_nothing_to_save(url):
    assert await World(url).checkpoints.save_last() is None


async def test_a_step_that_is_being_saved_is_not_saved_twice(url):
    world = World(url)
    await world.steps(1, 2)
    assert await asyncio.gather(world.checkpoints.save_last(), world.checkpoints.save_last()) == [2, 2]
    assert world.kinds() == ["save"]


async def test_the_loop_goes_on_while_a_checkpoint_is_written_and_the_next_one_waits_for_it(url):
    world = World(url)
    world.learner.may_write.clear()
    await asyncio.wait_for(world.steps(1, 2, 3), 10)
    assert world.folder.list() == []
    next_one = asyncio.create_task(world.step(4))
    await asyncio.sleep(0.1)
    assert not next_one.done()
    assert world.learner.num_writing == 2, "the first one's, of two ranks"
    world.learner.may_write.set()
    await asyncio.wait_for(next_one, 10)
    await world.checkpoints.close()
    assert world.folder.list() == ["step-00000002", "step-00000004"]


@pytest.mark.parametrize(
    "error", [CheckpointError("No space left on device"), LearnerError("learner rank 1: ActorDiedError")]
)
async def test_a_rank_that_cannot_write_costs_that_checkpoint_alone(url, error):
    world = World(url)
    await world.steps(1, 2)
    await world.checkpoints.save_last()
    world.learner.fails = {1: error}
    await world.steps(3, 4, 5)
    await world.checkpoints.close()
    assert world.kinds() == ["save", "save_failed"]
    assert str(error) in world.events[-1].detail
    assert world.folder.storage.folders() == ["step-00000002"]
    world.learner.fails = {}
    assert await world.checkpoints.save_last() == 5
    assert world.folder.list() == ["step-00000002", "step-00000005"]


async def test_a_disk_that_is_full_for_the_driver_costs_that_checkpoint_alone(tmp_path, monkeypatch):
    world = World(str(tmp_path))
    create = world.checkpoints._folder.storage.create

    def full(path):
        if path.endswith("manifest.json"):
            raise OSError(28, "No space left on device")
        return create(path)

    with monkeypatch.context() as patch:
        patch.setattr(world.checkpoints._folder.storage, "create", full)
        await world.steps(1, 2)
        assert await world.checkpoints.save_last() is None
    assert world.kinds() == ["save_failed"] * 2
    assert list((tmp_path / "run").iterdir()) == []
    assert await world.checkpoints.save_last() == 2


async def test_failures_stop_the_run_only_where_it_is_configured(url):
    world = World(url, max_failed_saves=2)
    world.learner.fails = {0: CheckpointError("disk quota exceeded")}
    await world.steps(1, 2, 3, 4, 5)
    with pytest.raises(CheckpointError, match=r"2 checkpoints in a row .*train\.max_failed_saves=2"):
        await world.step(6)


async def test_a_write_that_hangs_ends_at_its_deadline(url):
    world = World(url, save_timeout_s=0.2)
    world.learner.may_write.clear()
    await world.steps(1, 2)
    assert await asyncio.wait_for(world.checkpoints.save_last(), 10) is None
    assert "train.save_timeout_s=0.2" in world.events[0].detail
    world.learner.may_write.set()


async def test_a_damaged_checkpoint_is_passed_over_and_the_reason_said(tmp_path):
    world = World(str(tmp_path))
    await world.steps(1, 2, 3, 4)
    await world.checkpoints.close()
    file = tmp_path / "run" / "step-00000004" / "learner-00001-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    later = World(str(tmp_path))
    assert await later.checkpoints.restore() == 2
    assert "step-00000004 fails verification: learner-00001-00000.safetensors has hash" in later.warnings[0]
    (tmp_path / "run" / "step-00000002" / "manifest.json").write_text("")
    with pytest.raises(CheckpointError, match="no valid checkpoint: give --restart"):
        await World(str(tmp_path)).checkpoints.restore()


async def test_a_missing_share_is_passed_over(tmp_path):
    world = World(str(tmp_path))
    await world.steps(1, 2, 3, 4)
    await world.checkpoints.close()
    (tmp_path / "run" / "step-00000004" / "learner-00000-00000.safetensors").unlink()
    later = World(str(tmp_path))
    assert await later.checkpoints.restore() == 2
    assert "its files are" in later.warnings[0]


async def test_a_checkpoint_of_another_run_is_refused(url):
    world = World(url)
    await world.steps(1, 2)
    await world.checkpoints.close()
    later = World(url, identity=identity("other"))
    with pytest.raises(CheckpointError, match="dataset='d', this run has 'other'"):
        await later.checkpoints.restore()
    assert later.learner.loaded is None


async def test_the_newest_and_every_kth_are_kept(url):
    world = World(url, keep_checkpoints=1, keep_checkpoint_every=4)
    await world.steps(*range(1, 11))
    await world.checkpoints.close()
    assert world.folder.list() == ["step-00000004", "step-00000008", "step-00000010"]


async def test_between_checkpoints_nothing_is_copied_where_it_is_configured(url):
    world = World(url, copy_state=False)
    await world.steps(1, 2, 3)
    assert world.learner.snapshots == [2]
    assert await world.checkpoints.save_last() == 2


async def test_a_driver_that_lost_the_run_writes_nothing(url):
    def fenced():
        raise RunError("driven by another driver")

    world = World(url, before_save=fenced)
    with pytest.raises(RunError, match="driven by another driver"):
        await world.steps(1, 2)
    assert world.folder.storage.folders() == []


async def test_a_driver_that_loses_the_run_while_it_writes_does_not_seal(url):
    checks = iter([None, RunError("driven by another driver")])

    def check():
        if error := next(checks):
            raise error

    world = World(url, before_save=check)
    await world.steps(1, 2)
    await world.checkpoints.close()
    assert (world.kinds(), world.folder.list()) == (["save_failed"], [])


async def test_a_bug_while_saving_stops_the_run(url):
    world = World(url)

    async def broken(timeout_s):
        raise KeyError("a bug")

    world.learner.finish_save = broken
    await world.steps(1, 2, 3)
    with pytest.raises(KeyError, match="a bug"):
        await world.step(4)
    await asyncio.gather(*world.learner.writes)
