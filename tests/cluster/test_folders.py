import json

import pytest

from actors.errors import CheckpointError, RunError
from cluster.folders import resolve_run, runs_of
from configs.load import load_config, to_yaml


def choose(tmp_path, *overrides, config="tiny", **options):
    return resolve_run(config, [f"run.dir={tmp_path}", *overrides], **options)


def start(folder, *overrides, ended_at=None):
    """What a run leaves that has started, or ended."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(load_config("tiny", list(overrides))))
    if ended_at is not None:
        (folder / "summary.json").write_text(json.dumps({"steps": ended_at, "num_steps": ended_at}))
    return folder


def test_without_a_name_every_command_starts_a_new_run(tmp_path):
    names = []
    for _ in range(3):
        chosen = choose(tmp_path)
        assert (chosen.resumes, chosen.restarts, chosen.summary) == (False, False, None)
        names.append(chosen.config.run.name)
        start(tmp_path / names[-1])
    assert names == ["tiny", "tiny-2", "tiny-3"]
    (tmp_path / "tiny-9").mkdir()
    (tmp_path / "tiny-old").mkdir()
    assert choose(tmp_path).config.run.name == "tiny-10"
    assert [path.name for path in runs_of(tmp_path, "tiny")] == ["tiny", "tiny-2", "tiny-3", "tiny-9"]


def test_with_a_name_one_command_starts_resumes_and_ends_a_run(tmp_path):
    command = ("run.name=demo", "train.num_steps=7")
    first = choose(tmp_path, *command)
    assert (first.config.run.name, first.resumes) == ("demo", False)
    assert "starts" in first.line

    (tmp_path / "demo").mkdir()  # killed before it got under way
    assert not choose(tmp_path, *command).resumes

    (tmp_path / "demo").rmdir()
    start(tmp_path / "demo", *command)
    again = choose(tmp_path, *command)
    assert (again.config.run.name, again.resumes, again.summary) == ("demo", True, None)
    assert "resumes" in again.line

    (tmp_path / "demo" / "summary.json").write_text('{"steps": 7, "num_steps": 7}')
    done = choose(tmp_path, *command)
    assert done.summary == {"steps": 7, "num_steps": 7}
    assert "is complete (7 steps): nothing to do; set train.num_steps above 7" in done.line
    assert "--restart" in done.line

    longer = choose(tmp_path, "run.name=demo", "train.num_steps=8")
    assert (longer.resumes, longer.config.train.num_steps) == (True, 8)


def test_a_run_that_stopped_early_is_complete(tmp_path):
    start(tmp_path / "demo", "train.num_steps=9")
    (tmp_path / "demo" / "summary.json").write_text('{"steps": 4, "num_steps": 9}')
    assert choose(tmp_path, "run.name=demo").summary
    assert choose(tmp_path, "run.name=demo", "train.num_steps=12").resumes


@pytest.mark.parametrize("text", ["", '{"steps": 7', "[]", "{}"])
def test_a_damaged_summary_does_not_make_a_run_complete(tmp_path, text):
    start(tmp_path / "demo", "train.num_steps=7")
    (tmp_path / "demo" / "summary.json").write_text(text)
    assert choose(tmp_path, "run.name=demo").resumes


def test_a_complete_run_that_was_given_other_settings_is_refused(tmp_path):
    start(tmp_path / "demo", "reward.theta=0.3", ended_at=20)
    with pytest.raises(CheckpointError, match=r"reward\.theta=0\.3, this command has 0\.4: set reward\.theta=0\.3"):
        choose(tmp_path, "run.name=demo", "reward.theta=0.4")


def test_no_resume_takes_the_next_free_name(tmp_path):
    start(tmp_path / "demo")
    chosen = choose(tmp_path, "run.name=demo", resume=False)
    assert (chosen.config.run.name, chosen.resumes) == ("demo-2", False)


def test_restart_keeps_the_name_and_starts_from_the_command_s_settings(tmp_path):
    start(tmp_path / "demo", "reward.theta=0.3", ended_at=20)
    chosen = choose(tmp_path, "run.name=demo", restart=True)
    assert (chosen.config.run.name, chosen.restarts, chosen.resumes) == ("demo", True, False)
    assert chosen.config.reward.theta == load_config("tiny").reward.theta
    with pytest.raises(ValueError, match=r"without run\.name"):
        choose(tmp_path, restart=True)
    with pytest.raises(ValueError, match="--resume or --no-resume"):
        choose(tmp_path, "run.name=demo", restart=True, resume=True)


def test_resume_takes_the_newest_run_and_its_own_settings(tmp_path):
    start(tmp_path / "tiny", "train.num_steps=66")
    start(tmp_path / "tiny-2", "train.num_steps=77")
    (tmp_path / "tiny-3").mkdir()  # never got under way
    config = choose(tmp_path, "reward.theta=0.3", resume=True).config
    assert (config.run.name, config.train.num_steps, config.reward.theta) == ("tiny-2", 77, 0.3)
    older = choose(tmp_path, "run.name=tiny", resume=True).config
    assert (older.run.name, older.train.num_steps) == ("tiny", 66)


def test_a_config_that_is_given_counts_in_place_of_the_saved_settings(tmp_path):
    start(tmp_path / "demo", "train.num_steps=66")
    file = tmp_path / "mine.yaml"
    file.write_text("train: {num_steps: 99}\n")
    chosen = choose(tmp_path, "run.name=demo", config=str(file))
    assert (chosen.resumes, chosen.config.train.num_steps, chosen.config.run.name) == (True, 99, "demo")


def test_a_run_that_was_moved_goes_on_where_it_is(tmp_path):
    start(tmp_path / "tiny", "run.dir=/where/it/was")
    config = choose(tmp_path, resume=True).config
    assert (config.run.dir, config.run.name) == (str(tmp_path), "tiny")


def test_settings_that_were_removed_since_are_left_out_with_a_warning(tmp_path):
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "config.yaml").write_text("rollout: {num_engines: 3, group_size: 4}\nold: {x: 1}\n")
    chosen = choose(tmp_path, "run.name=demo", "train.num_steps=3")
    assert (chosen.config.rollout.group_size, chosen.config.train.num_steps) == (4, 3)
    assert [warning.partition(" has ")[2] for warning in chosen.warnings] == [
        "rollout.num_engines, which this version does not have: ignored",
        "old, which this version does not have: ignored",
    ]


def test_there_must_be_something_to_resume(tmp_path):
    with pytest.raises(RunError, match="start it without --resume"):
        choose(tmp_path, "run.name=demo", resume=True)


@pytest.mark.parametrize("name", ["../up", "a/b", "/root", "..", ".", "", "a b", "a\x00", "~", "run*"])
def test_a_name_cannot_leave_the_folder_of_runs(tmp_path, name):
    with pytest.raises(ValueError, match=r"run\.name"):
        choose(tmp_path, f"run.name={name}")
