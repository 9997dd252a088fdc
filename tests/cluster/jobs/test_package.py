"""What a job takes along, and how it starts."""

import subprocess
from pathlib import Path

import pytest

from cluster.jobs.package import (
    EXCLUDES,
    Package,
    absolute_arguments,
    absolute_settings,
    entrypoint,
    is_not_uploaded,
    key_patterns,
    size_problem,
)
from cluster.jobs.submit import command_config, job_settings, measure_package
from configs.load import FOLDER, load_config
from configs.paths import ROOT

MIB = 1 << 20


def settings_of(arguments: list[str], folder: Path) -> list[str]:
    return job_settings(arguments, folder, command_config(arguments))


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * 1000)


def test_folders_that_configs_name_environments_and_keys_are_not_uploaded(tmp_path):
    code = ("cluster/cli.py", "configs/tiny/model.safetensors", "actors/data/tables.py", "judge/models.py")
    bulk = ("models/X/model.safetensors", "runs/a/e.parquet", "data/d.parquet", ".venv/bin/python", ".git/objects/1")
    secret = ("judge.key", "secrets/openai.key", ".env", ".env.local", "certs/a.pem", "my.secret", "other.secret")
    secret += ("id_rsa", "actors/id_ed25519.pub", "auth_token", "cluster/.netrc", "third.secret")
    fill(tmp_path, *code, *bulk, *secret, "cluster/__pycache__/cli.pyc", "big/ignored.bin")
    (tmp_path / ".gitignore").write_text("/big/\n")
    config = load_config("tiny", [f"judge.llm.api_key_file={tmp_path}/a/../third.secret"])
    patterns = key_patterns(["check", "judge.llm.api_key_file=./my.secret"], config, tmp_path)
    patterns += key_patterns(["check", "judge.llm.api_key_file=other.secret"], None, tmp_path)
    package = measure_package(tmp_path, [*EXCLUDES, *patterns])
    assert dict(package.entries).keys() == {"cluster", "configs", "actors", "judge", ".gitignore"}
    assert package.num_bytes == 1000 * len(code) + 6


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_whatever_a_shipped_config_names_is_uploaded_or_named_by_an_absolute_path(file):
    config = load_config(str(file))
    named = dict(setting.split("=", 1) for setting in absolute_settings(config, Path("/home/me/project")))
    for key, value in (
        ("run.dir", config.run.dir),
        ("model.path", config.model.path),
        ("data.train", config.data.train),
        ("data.heldout", config.data.heldout),
        ("judge.cache", config.judge.cache),
    ):
        if key in named:
            assert named[key] == f"/home/me/project/{value}"
        else:
            assert value.startswith(("configs/", "~", "/")), (
                f"{key}={value} would be missing, or go with the job's folder"
            )


def test_a_result_never_lies_in_the_folder_of_the_job(tmp_path):
    for override in ("run.dir=out", "run.dir=./a/b", "run.dir=../there"):
        (setting,) = [s for s in settings_of(["train", override], tmp_path) if s.startswith("run.dir=")]
        assert Path(setting.removeprefix("run.dir=")).is_absolute()
    for override in ("run.dir=/shared/runs", "run.dir=~/there"):
        settings = settings_of(["train", override, "judge.cache="], tmp_path)
        assert not [s for s in settings if s.startswith(("run.dir=", "judge.cache="))]


def test_settings_come_from_the_config_that_the_command_names(tmp_path):
    for arguments in (["train", "--config", "visionthink_3b_2gpu"], ["train", "-c", "visionthink_3b_2gpu"]):
        assert f"model.path={tmp_path}/models/Qwen2.5-VL-3B-Instruct" in settings_of(arguments, tmp_path)
    assert settings_of(["config"], tmp_path) == []


@pytest.mark.parametrize(
    ("path", "stays"),
    [
        ("models/X", True),
        ("runs", True),
        ("../up", True),
        ("~/m", False),
        ("configs/tiny", False),
        ("/abs/models", False),
    ],
)
def test_what_is_not_uploaded_is_known_by_its_path(path, stays):
    assert is_not_uploaded(path) == stays


def test_a_folder_that_ray_would_not_take_names_the_largest_of_its_entries(tmp_path):
    package = Package(entries=(("weights", 620 * MIB), ("videos", 30 * MIB), ("a", MIB), ("b", 1)))
    assert size_problem(package, tmp_path, 700 * MIB) is None
    problem = size_problem(package, tmp_path, 100 * MIB)
    assert problem is not None
    largest = "weights (620 MiB), videos (30 MiB), a (1 MiB)"
    assert f"651 MiB to upload, more than Ray's limit of 100 MiB: the largest are {largest}" in problem


def test_the_command_starts_with_the_interpreter_of_its_parent_whatever_the_path_holds():
    """As on a cluster: the parent is a process of Ray, and its environment is not on the PATH."""
    import ray._raylet  # noqa: F401 (maps Ray's library, as each of its processes does)

    started = subprocess.run(
        entrypoint(["config", "run.name=a b"]),
        shell=True, cwd=ROOT, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "run.name='a b' is invalid" in started.stderr
    started = subprocess.run(
        entrypoint(["config", "run.name=ab"]),
        shell=True, cwd=ROOT, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "name: ab" in started.stdout


def test_what_a_command_names_but_a_job_has_not_is_named_by_its_absolute_path(tmp_path):
    fill(tmp_path, "runs/tiny/config.yaml", "configs/tiny/config.json", "my.key")
    for given, named in (
        ("runs/tiny", f"{tmp_path}/runs/tiny"),
        ("--policy=runs/tiny", f"--policy={tmp_path}/runs/tiny"),
        ("judge.llm.api_key_file=./my.key", f"judge.llm.api_key_file={tmp_path}/my.key"),
        ("runs", f"{tmp_path}/runs"),
    ):
        assert absolute_arguments(["judge", given], tmp_path) == ["judge", named]
    kept = ["train", "data", "configs/tiny", "run.name=runs", "train.num_steps=3", "--json", "/abs/runs"]
    assert absolute_arguments(kept, tmp_path) == kept


def test_a_command_that_goes_on_with_a_run_keeps_that_runs_settings(tmp_path):
    assert settings_of(["train", "--resume"], tmp_path) == [f"run.dir={tmp_path}/runs"]
    assert settings_of(["train", "--resume", "run.dir=/shared"], tmp_path) == []
    assert settings_of(["eval", "--policy", "runs/tiny"], tmp_path) == []
    given = settings_of(["eval", "--policy=runs/tiny", "data.heldout=data/new.parquet"], tmp_path)
    assert given == [f"data.heldout={tmp_path}/data/new.parquet"]
