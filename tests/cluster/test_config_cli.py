"""The command's reference of settings, and its version."""

import json
import subprocess
import sys
import tomllib

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from configs.load import describe_fields
from configs.paths import ROOT

runner = CliRunner()


def test_every_setting_is_one_whole_line_also_when_piped():
    command = [sys.executable, "-m", "cluster.cli", "config", "--fields"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env={"COLUMNS": "40"})
    lines = done.stdout.splitlines()
    assert lines == [f"{field.key}: {field.type} = {field.default}  # {field.doc}" for field in describe_fields()]
    assert "\u2026" not in done.stdout


def test_a_prefix_chooses_settings_and_json_holds_the_same():
    lines = runner.invoke(app, ["config", "--fields", "judge.llm", "run."]).stdout.splitlines()
    assert {line.split(".")[0] for line in lines} == {"judge", "run"}
    assert all(line.startswith(("judge.llm.", "run.")) for line in lines)
    found = json.loads(runner.invoke(app, ["config", "--fields", "judge.llm", "--json"]).stdout)["fields"]
    assert [field["key"] for field in found] == [line.split(":")[0] for line in lines if line.startswith("judge")]


@pytest.mark.parametrize(("prefix", "near"), [("judge.lm", "judge.llm"), ("train.num_step_", "train.num_steps")])
def test_a_prefix_of_nothing_is_refused_with_what_is_near(prefix, near):
    done = runner.invoke(app, ["config", "--fields", prefix])
    assert done.exit_code == 1
    assert f"did you mean {near}" in done.stderr


def test_the_version_is_the_projects():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert runner.invoke(app, ["--version"]).stdout == f"visionthink {version}\n"
