"""A planted key is nowhere in what a run writes or sends. What Ray shows of it: tests/ray/test_secrets.py."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cluster.cli import app
from cluster.display import Display
from cluster.identity import fixed_settings
from cluster.jobs import package
from cluster.records.events import Event, EventLog
from cluster.records.recorder import Recorder
from cluster.runs.lease import lease
from configs.load import load_config, to_yaml
from learner.state.checkpoint import CheckpointFolder, write_json

KEY = "sk-planted-9b41f7d2c0"
LLM = ["judge.chain=[rules,openai]", "judge.llm.model=m"]


@pytest.fixture(params=["api_key_file=./judge.key", "api_key_env=PLANTED_KEY"])
def config(request, tmp_path, monkeypatch):
    """A run whose judge has a key, in a file or in a variable."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLANTED_KEY", KEY)
    (tmp_path / "judge.key").write_text(KEY)
    return load_config("tiny", [*LLM, f"judge.llm.{request.param}", f"run.dir={tmp_path / 'runs'}"])


def run_folder(config, tmp_path):
    """Config, lease, events, records and a checkpoint, as their writers leave them."""
    folder = Path(config.run.dir) / config.run.name
    shown = io.StringIO()
    display = Display(config, Console(file=shown))
    with lease(folder, say=display.say):
        (folder / "config.yaml").write_text(to_yaml(config))
        EventLog(folder, say=display.say, warn=display.warn).add(Event(kind="join", who="judges"))
        recorder = Recorder(folder, step=0)
        recorder.record_figures(1, {"reward/mean": 1.0})
        recorder.close()
        state = {"identity": {"settings": fixed_settings(config)}}
        checkpoints = CheckpointFolder(str(folder / "checkpoints"))
        begun = checkpoints.begin(1)
        checkpoints.seal(1, {"state.json": write_json(checkpoints.storage, f"{begun}/state.json", state)})
        yield from (file.read_text(errors="replace") for file in folder.rglob("*") if file.is_file())
    yield shown.getvalue()


def job(config, tmp_path):
    """What a submission tells the cluster: command, settings, what is uploaded."""
    arguments = ["train", *LLM, "judge.llm.api_key_file=./judge.key"]
    yield package.entrypoint([*package.absolute_arguments(arguments, tmp_path)])
    yield repr(package.absolute_settings(config, tmp_path))


def manifests(config, tmp_path):
    """Rendered manifests, where this version has them."""
    overrides = [
        *LLM,
        f"judge.llm.api_key_file={config.judge.llm.api_key_file or './judge.key'}",
        "run.dir=/mnt/visionthink/runs",
    ]
    for kind in ("kuberay", "rayjob", "slurm"):
        done = CliRunner().invoke(app, ["cluster", "render", "--kind", kind, *overrides])
        if "No such command" in done.output:
            pytest.skip("this version renders no manifests")
        assert done.exit_code == 0, done.output
        yield done.output


PLACES = {"run folder": run_folder, "job": job, "manifests": manifests}


@pytest.mark.parametrize("place", PLACES)
def test_a_planted_key_is_found_nowhere(place, config, tmp_path):
    texts = list(PLACES[place](config, tmp_path))
    assert texts
    assert any(config.judge.llm.model in text or "train" in text for text in texts), "the texts are of this run"
    assert [text for text in texts if KEY in text or KEY[:12] in text] == []


def test_a_key_file_of_the_project_is_not_uploaded():
    assert "*.key" in package.EXCLUDES


@pytest.mark.parametrize(
    "override",
    [f"judge.llm.api_key_file={KEY}", f"judge.llm.api_key_env={KEY}", f"judge.llm.base_url=https://u:{KEY}@host/v1"],
)
def test_a_key_in_place_of_its_path_is_refused_without_showing_it(override):
    with pytest.raises(ValueError, match=r"judge\.llm") as refused:
        load_config("tiny", [*LLM, override])
    assert KEY not in str(refused.value)
