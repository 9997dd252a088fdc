"""What a run refuses before anything of it comes up."""

import time
from dataclasses import asdict, replace

import pytest
import ray

from actors.data.dataset import Dataset
from actors.data.shapes import make_shapes
from actors.errors import CheckpointError, JudgeError, RunError
from cluster import launch as launching
from cluster.display import Display
from cluster.identity import identify
from cluster.status.files import read_snapshot
from cluster.status.scaling import configured_sizes
from configs.load import load_config
from learner.state.checkpoint import CheckpointFolder, write_json

NO_WORDING = ["judge.chain=[rules,openai]", "judge.llm.model=m", "judge.llm.prompt=no-such-wording"]
NO_KEY = ["judge.chain=[openai]", "judge.llm.model=m", "judge.llm.api_key_env=UNSET_JUDGE_KEY"]
NO_ENDPOINT = ["judge.chain=[openai]", "judge.llm.model=m", "judge.llm.base_url=http://127.0.0.1:9/v1"]
NO_FOLDER = ["judge.chain=[rules,cluster]", "judge.llm.model=no-such-folder"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("shapes"), train_rows=4, heldout_rows=2, seed=0)


@pytest.fixture
def config(tmp_path, shapes, monkeypatch):
    """As `config("judge.chain=...")`. Nothing of Ray may come up, nor be looked for."""
    monkeypatch.setattr(launching, "connect", lambda: pytest.fail("Ray came up"))
    monkeypatch.setenv("RAY_ADDRESS", "local")
    paths = [f"run.dir={tmp_path}", f"data.train={shapes['train']}", f"data.heldout={shapes['heldout']}"]
    return lambda *overrides: load_config("tiny", [*paths, *overrides])


def launch(config, *, resume=False):
    return launching.launch(config, resume=resume, display=Display(config), started_at=time.monotonic())


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (NO_WORDING, ValueError, "judge.llm.prompt='no-such-wording'"),
        (NO_FOLDER, ValueError, "no-such-folder'"),
        (NO_KEY, JudgeError, "judge.llm.api_key_env='UNSET_JUDGE_KEY' is empty or not set"),
        (NO_ENDPOINT, JudgeError, "start it, or correct the address"),
    ],
)
@pytest.mark.parametrize("is_training", [True, False])
async def test_a_judge_that_cannot_be_asked_is_refused_before_ray_comes_up(
    overrides, error, words, is_training, config, tmp_path
):
    settings = config(*overrides)
    parts = launch(settings) if is_training else launching.launch_fleet(settings, display=Display(settings))
    with pytest.raises(error, match=words):
        async with parts:
            pytest.fail("everything came up")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dataset": "other"}, r"dataset='other'.*data\.train"),
        ({"model": "other"}, r"model='other'.*model\.path"),
        ({"settings": {"run.seed": 7}}, r"run\.seed=7.*this command has 0.*set run\.seed=7 again"),
    ],
)
async def test_a_checkpoint_of_another_run_is_refused_before_ray_comes_up(change, words, config, tmp_path, shapes):
    identity = replace(identify(config(), Dataset.open(str(shapes["train"]))), **change)
    folder = tmp_path / "tiny" / "checkpoints"
    checkpoints = CheckpointFolder(folder)
    for step in (5, 6):
        place = checkpoints.begin(step)
        written = write_json(checkpoints.storage, f"{place}/state.json", {"identity": asdict(identity)})
        checkpoints.seal(step, {"state.json": written})
    (folder / "step-00000006" / "state.json").write_text("{ cut short")
    unfinished = folder / ".tmp-00000007"
    unfinished.mkdir()
    with pytest.raises(CheckpointError, match=words):
        async with launch(config(), resume=True):
            pytest.fail("everything came up")
    assert unfinished.is_dir(), "another driver may be writing it: this one holds no lock yet"


async def test_a_run_that_does_not_come_up_says_why_to_whoever_asks(config, tmp_path, monkeypatch):
    def refuse():
        assert read_snapshot(tmp_path / "tiny").status.state == "starting"
        raise RunError("the Ray cluster could not be joined")

    monkeypatch.setattr(launching, "connect", refuse)
    with pytest.raises(RunError, match="could not be joined"):
        async with launch(config()):
            pytest.fail("everything came up")
    status = read_snapshot(tmp_path / "tiny").status
    assert (status.state, status.cause) == ("failed", "the Ray cluster could not be joined")


def test_what_sizes_lack_is_not_asked_of_a_ray_that_is_not_up(config):
    assert launching._lacking(config(), configured_sizes(config())) == ""
    assert not ray.is_initialized()
