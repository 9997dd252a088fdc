import pytest

from actors.errors import RunError
from cluster.folders import resolve_run, runs_of


def resolve(tmp_path, *, resume=False):
    return resolve_run("tiny", [f"run.dir={tmp_path}", "run.name=demo"], resume=resume).run.name


def test_every_new_run_gets_a_folder_of_its_own(tmp_path):
    assert resolve(tmp_path) == "demo"
    (tmp_path / "demo").mkdir()
    assert resolve(tmp_path) == "demo-2"
    (tmp_path / "demo-9").mkdir()
    (tmp_path / "demo-old").mkdir()
    assert resolve(tmp_path) == "demo-10"
    assert [path.name for path in runs_of(tmp_path, "demo")] == ["demo", "demo-9"]


def test_resume_takes_the_newest_run_and_its_own_settings(tmp_path):
    for name, num_steps in (("tiny", 66), ("tiny-2", 77)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"train: {{num_steps: {num_steps}}}\n")
    (tmp_path / "tiny-3").mkdir()  # never got under way
    config = resolve_run("tiny", [f"run.dir={tmp_path}", "reward.theta=0.3"], resume=True)
    assert (config.run.name, config.train.num_steps, config.reward.theta) == ("tiny-2", 77, 0.3)
    older = resolve_run("tiny", [f"run.dir={tmp_path}", "run.name=tiny"], resume=True)
    assert (older.run.name, older.train.num_steps) == ("tiny", 66)


def test_a_run_that_was_moved_goes_on_where_it_is(tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.yaml").write_text("run: {dir: /where/it/was}\n")
    config = resolve_run("tiny", [f"run.dir={tmp_path}"], resume=True)
    assert (config.run.dir, config.run.name) == (str(tmp_path), "tiny")


def test_there_must_be_something_to_resume(tmp_path):
    with pytest.raises(RunError, match="start it without --resume"):
        resolve(tmp_path, resume=True)
