"""A run that would fail is refused before Ray comes up, with all that is wrong with it at once."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from actors.data.shapes import make_shapes
from actors.errors import DataError, JudgeError, RunError
from cluster.preflight import checks as preflight
from cluster.preflight.checks import check_judge, check_run, raise_all
from cluster.preflight.machine import SharedMemory
from configs.load import load_config
from configs.paths import ROOT, resolve_paths

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 1234\n"
ROOMY = SharedMemory(size=8 << 30, free=8 << 30)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("shapes"), train_rows=4, heldout_rows=2, seed=0)


@pytest.fixture
def config(tmp_path, shapes, monkeypatch):
    """As `config("model.path=...")`: the settings of a run that would work but for the overrides."""
    monkeypatch.setenv("RAY_ADDRESS", "local")  # whatever other cluster is on this machine
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    monkeypatch.setattr(SharedMemory, "look_up", lambda: ROOMY)

    def make(*overrides):
        paths = [f"run.dir={tmp_path}/runs", f"data.train={shapes['train']}", f"data.heldout={shapes['heldout']}"]
        return resolve_paths(load_config("tiny", [*paths, *overrides]))

    return make


def refusal(config, **settings):
    with pytest.raises((ValueError, RunError, DataError, JudgeError)) as failure:
        check_run(config, **settings)
    return str(failure.value)


def test_a_run_that_can_work_is_let_through_and_nothing_is_made(config, tmp_path):
    check_run(config())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["run.dir=/proc/runs"], "run.dir='/proc/runs'"),
        (["model.path=Qwen/Qwen2.5-VL-3B-Instruct"], "hf download Qwen/Qwen2.5-VL-3B-Instruct"),
        (["model.path=/nowhere"], "model.path='/nowhere' does not exist"),
        (["model.prompt=nope"], "model.prompt='nope'"),
        (["data.train=/nowhere.parquet"], "/nowhere.parquet does not exist"),
        (["data.heldout=/nowhere.parquet"], "data.heldout"),
        (["data.train=owner/set"], "Hugging Face Hub: hf://owner/set"),
        (
            ["rollout.max_prompt_tokens=40000", "learner.max_tokens_per_micro_batch=50000"],
            "rollout.max_prompt_tokens=40000 + rollout.max_turn_tokens=48 is invalid: must be at most 2048",
        ),
        (["judge.chain=[rules,openai]", "judge.llm.model=m", "judge.llm.prompt=nope"], "judge.llm.prompt='nope'"),
        (["judge.chain=[rules,cluster]", "judge.llm.model=/nowhere"], "judge.llm.model='/nowhere'"),
        (["judge.chain=[rules,cluster]", "judge.llm.model=org/judge"], "hf download org/judge"),
        (
            ["judge.chain=[rules,cluster]", "judge.llm.model=configs/tiny", "judge.cluster.max_model_len=4096"],
            "judge.cluster.max_model_len=4096 is invalid: must be at most 2048",
        ),
    ],
)
def test_each_problem_is_one_line_with_the_setting_and_its_value(config, overrides, words):
    told = refusal(config(*overrides))
    assert words in told
    assert "\n" not in told


def test_a_model_of_another_family_is_refused_with_the_supported_ones(config, tmp_path):
    folder = tmp_path / "experts"
    shutil.copytree(ROOT / "configs" / "tiny", folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"model_type": "qwen3_vl_moe"}))
    told = refusal(config(f"model.path={folder}"))
    assert told == (
        f"model.path={str(folder)!r} is invalid: model_type must be one of qwen2_5_vl (Qwen2.5-VL), "
        "qwen3_vl (Qwen3-VL), not 'qwen3_vl_moe'"
    )


def test_all_problems_are_told_at_once(config):
    told = refusal(
        config(
            "model.path=/nowhere", "model.prompt=nope", "data.train=/a", "data.heldout=/b", "run.dir=/proc/runs",
            "judge.chain=[rules,openai]", "judge.llm.model=m", "judge.llm.prompt=none",
        )
    )  # fmt: skip
    lines = told.splitlines()
    assert len(lines) == 6
    for name in ("run.dir", "model.path", "model.prompt", "data.train", "data.heldout", "judge.llm.prompt"):
        assert any(name in line for line in lines), name


def test_too_little_shared_memory_is_told_with_the_remedy(config, monkeypatch, tmp_path):
    monkeypatch.setattr(SharedMemory, "look_up", lambda: SharedMemory(size=64 << 20, free=64 << 20))
    assert "--shm-size=1g" in refusal(config())
    note = tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    note.write_text("127.0.0.1:6379")
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    check_run(config())  # the memory of this machine says nothing about the others of that cluster


def test_a_learner_that_no_gpu_of_this_machine_holds_is_told_with_the_remedy(config, monkeypatch):
    monkeypatch.setattr(preflight, "gpu_bytes", lambda: 3 << 30)
    wanted = ["learner.num_gpus=1", "learner.max_tokens_per_micro_batch=65536"]
    told = refusal(config(*wanted))
    assert "learner.max_tokens_per_micro_batch=65536 needs about" in told
    assert "set learner.gradient_checkpointing=true" in told
    check_run(config(*wanted), learns=False)
    check_run(config())  # on the CPU
    monkeypatch.setattr(preflight, "gpu_bytes", lambda: None)
    check_run(config(*wanted))  # the ranks look at their own


def test_a_machine_on_which_ray_cannot_start_is_told_unless_a_cluster_is_up(config, monkeypatch):
    monkeypatch.setattr(preflight.sys, "executable", "/tmp/Mein Projekt/p/.venv/bin/python")
    assert "contains a space" in refusal(config())
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_run(config())
    monkeypatch.setenv("RAY_ADDRESS", "ray://10.0.0.1:10001")
    assert "Ray Client" in refusal(config())


def test_a_long_temporary_folder_is_told(config, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "a" * 60)
    assert "too long for sockets" in refusal(config())


@pytest.mark.parametrize("key", ["model.path", "data.train", "data.heldout"])
def test_pointers_of_git_lfs_are_told_apart_from_damage(config, key, tmp_path):
    model = Path(shutil.copytree(ROOT / "configs" / "tiny", tmp_path / "model"))
    (model / "model.safetensors").write_text(POINTER)
    (tmp_path / "rows.parquet").write_text(POINTER)
    path = model if key == "model.path" else tmp_path / "rows.parquet"
    told = refusal(config(f"{key}={path}"))
    assert key in told
    assert "git lfs pull" in told


def test_further_checks_join_in_but_not_over_what_is_broken(config):
    def refuse():
        raise JudgeError("judge.llm.api_key_env='KEY' is not set")

    for settings in ({"more": [refuse]}, {"then": [refuse]}):
        assert "'KEY' is not set" in refusal(config(), **settings)
    assert "'KEY' is not set" in refusal(config("model.path=/nowhere"), more=[refuse])
    assert "KEY" not in refusal(config("model.path=/nowhere"), then=[refuse])


def test_what_cannot_be_read_is_one_line_too(config):
    def refuse():
        raise PermissionError(13, "Permission denied", "/secret/key")

    assert refusal(config(), more=[refuse]) == "/secret/key cannot be read: Permission denied"


def test_without_a_learner_neither_training_data_nor_a_run_folder_is_wanted(config):
    check_run(config("data.train=/nowhere", "run.dir=/proc/runs"), learns=False)


def test_a_command_that_needs_judges_alone_is_checked_for_them_alone(config):
    check_judge(config("model.path=/nowhere").judge)
    broken = config("judge.chain=[cluster]", "judge.llm.model=/nowhere").judge
    with pytest.raises((JudgeError, ValueError), match="/nowhere"):
        check_judge(dataclasses.replace(broken))


def test_one_problem_keeps_its_type_several_become_one_error():
    raise_all([])
    with pytest.raises(JudgeError, match="one"):
        raise_all([JudgeError("one")])
    with pytest.raises(RunError, match="one\ntwo"):
        raise_all([JudgeError("one"), ValueError("two"), ValueError("one")])
    with pytest.raises(JudgeError, match=r"^one$"):
        raise_all([JudgeError("one"), ValueError("one")])
