"""Files as users see them: shipped ones, headers, names, secrets, and the commands."""

import json
import re
import shlex
from typing import get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cluster.cli import app
from cluster.manifests.launcher import HOME
from cluster.manifests.pods import UID
from cluster.manifests.render import Kind, Request, command_line, default_target, plan_for, render
from cluster.manifests.shipped import FOLDER, SHIPPED, shipped_text
from cluster.manifests.target import MAX_NAME, Target, cluster_name
from configs.load import load_config
from configs.paths import ROOT
from tests.cluster.manifests.cases import CASES, request

KINDS = get_args(Kind)
run = CliRunner()


@pytest.mark.parametrize("file", SHIPPED)
def test_a_shipped_file_is_what_the_command_writes(file):
    again = "`python -m cluster.manifests.shipped` writes it again"
    assert (FOLDER / file).read_text(encoding="utf-8") == shipped_text(file), again


@pytest.mark.parametrize("file", ["kuberay-cpu.yaml", "slurm.sh"])
def test_the_command_in_the_head_of_a_file_writes_that_file(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (line,) = [line for line in shipped_text(file).splitlines() if line.startswith("# Written by: ")]
    done = run.invoke(app, shlex.split(line.removeprefix("# Written by: visionthink ")))
    assert done.exit_code == 0, done.output
    assert (tmp_path / file).read_text() == shipped_text(file)


def test_options_that_differ_from_their_defaults_are_in_the_command():
    config = CASES["tiny"]
    target = Target(name="mine", image="registry/vt:1", queue="q", spot=True, nfs="h:/p")
    line = command_line(
        Request(kind="aws", config_name="tiny", overrides=("run.seed=1",), target=target, from_zero=True), config, "f"
    )
    options = "--name mine --image registry/vt:1 --queue q --nfs h:/p --spot --from-zero --out f run.seed=1"
    assert line == f"visionthink cluster render --kind aws --config tiny {options}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["tiny-judge-key", "7b"])
def test_no_secret_is_rendered(kind, name, tmp_path, monkeypatch):
    planted = "sk-planted-0123456789"
    for variable in ("OPENAI_API_KEY", "RAY_AUTH_TOKEN", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, planted)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".ray").mkdir()
    for file in (tmp_path / "judge.key", tmp_path / ".ray" / "auth_token"):
        file.write_text(planted)
    text = render(request(kind, CASES[name]), CASES[name], None)
    assert planted not in text
    assert str(tmp_path) not in text
    assert str(ROOT) not in text


@pytest.mark.parametrize("kind", KINDS)
def test_a_rendered_file_is_the_same_on_every_machine(kind, monkeypatch, tmp_path):
    before = render(request(kind, CASES["tiny"]), CASES["tiny"], None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert render(request(kind, CASES["tiny"]), CASES["tiny"], None) == before


@pytest.mark.parametrize("kind", ["kuberay", "rayjob"])
def test_nothing_hides_behind_an_alias(kind):
    assert not re.search(r"[&*]id\d", render(request(kind, CASES["7b"]), CASES["7b"], None))


@given(st.text(min_size=1, max_size=80))
def test_every_run_name_becomes_a_name_that_kubernetes_takes(name):
    found = cluster_name(name)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", found)
    assert len(found) <= MAX_NAME


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"name": "Upper"}, "--name"),
        ({"name": "a" * 48}, "--name"),
        ({"mount": "relative"}, "--mount"),
        ({"image": "a b"}, "--image"),
        ({"namespace": "x; rm"}, "--namespace"),
        ({"nfs": "h:/p; rm"}, "--nfs"),
        ({"storage_gib": 0}, "--storage-gib"),
        ({"retries": -1}, "--retries"),
    ],
)
def test_a_setting_that_cannot_be_is_named(setting, named):
    with pytest.raises(ValueError, match=named):
        Target(**{"name": "x", "image": "x", **setting})


def test_the_command_prints_the_plan_that_manifests_are_made_from():
    done = run.invoke(app, ["cluster", "plan", "--config", "visionthink_7b_4x8gpu", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    config = load_config("visionthink_7b_4x8gpu", [])
    plan = plan_for(Request(kind="rayjob", config_name="", overrides=(), target=default_target(config)), config, None)
    assert [(g["name"], g["max_nodes"], g["node"]["num_gpus"]) for g in found["groups"]] == [
        (g.name, g.max_nodes, g.node.num_gpus) for g in plan.groups
    ]


def test_plan_shows_machine_types_of_a_cloud():
    done = run.invoke(app, ["cluster", "plan", "--kind", "gcp"])
    assert done.exit_code == 0, done.output
    assert "n2-standard-" in done.stdout


def test_render_writes_a_file_and_says_where(tmp_path):
    out = tmp_path / "new" / "job.yaml"
    done = run.invoke(
        app, ["cluster", "render", "--kind", "rayjob", "--out", str(out), "run.name=My run".replace(" ", "_")]
    )
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(out)
    assert [one["kind"] for one in yaml.safe_load_all(out.read_text())][-1] == "RayJob"
    assert "name: my-run" in out.read_text()


def test_an_error_is_one_line_with_the_remedy():
    done = run.invoke(app, ["cluster", "render", "--kind", "gcp"])
    assert done.exit_code == 1
    assert "--project" in done.stderr
    assert "Traceback" not in done.output


def test_the_image_has_the_user_that_pods_run_as_and_copies_no_secret():
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    code = [line for line in lines if line and not line.startswith("#")]
    assert code[0].startswith("ARG BASE=")
    assert [line for line in code if line.startswith("FROM")] == ["FROM ${BASE} AS build", "FROM ${BASE}"]
    users = [line for line in code if line.startswith("USER")]
    assert users == [f"USER {UID}:{UID}"]
    assert code.index(users[-1]) > max(i for i, line in enumerate(code) if line.startswith("RUN"))
    assert f"HOME={HOME}" in " ".join(code)
    assert sum("uv sync --locked" in line for line in code) == 2
    copied = {word for line in code if line.startswith("COPY") and "--from" not in line for word in line.split()[1:-1]}
    assert copied == {
        "pyproject.toml",
        "uv.lock",
        "README.md",
        "LICENSE",
        "configs",
        "actors",
        "judge",
        "learner",
        "cluster",
    }
    assert not re.search(r"(?i)(token|secret|password|api_key)\s*=", "\n".join(code))


def test_the_image_takes_only_what_it_copies_and_no_keys():
    rules = [
        line for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] not in ("#", "")
    ]
    assert rules[0] == "*"
    taken = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert all((ROOT / name).exists() for name in taken)
    assert {"**/*.key", "**/*.pem", "**/.env"} <= set(rules[rules.index("!cluster") :]), "the last rule wins"
