import json

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from tests.cluster.test_policies import run, save_checkpoint

__all__ = ["run"]


@pytest.fixture
def call(run):
    for step in (5, 10, 15):
        save_checkpoint(run, step)

    def call(*arguments, exit_code=0):
        result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
        assert result.exit_code == exit_code, result.output
        return json.loads(result.stdout.splitlines()[-1])

    return call


def flip_a_byte(run, step):
    (file,) = (run / "checkpoints" / f"step-{step:08d}").glob("learner-00001-00000.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_checkpoints_are_listed_oldest_first(run, call):
    rows = call("checkpoint", "list", run)["checkpoints"]
    assert [row["step"] for row in rows] == [5, 10, 15]
    assert {(row["num_ranks"], row["num_files"], row["state"]) for row in rows} == {(2, 7, "complete")}
    assert all(row["bytes"] > 1e6 for row in rows)
    (run / "checkpoints" / "step-00000010" / "state.json").write_text("{}")
    assert "state.json has" in call("checkpoint", "list", run)["checkpoints"][1]["state"]


def test_a_damaged_checkpoint_is_found_and_is_exit_code_1(run, call):
    assert set(call("checkpoint", "verify", run)["flaws"].values()) == {None}
    flip_a_byte(run, 10)
    flaws = call("checkpoint", "verify", run, exit_code=1)["flaws"]
    assert [name for name, flaw in flaws.items() if flaw] == ["step-00000010"]
    assert call("checkpoint", "verify", run, "--step", 15)["flaws"] == {"step-00000015": None}


def test_both_export_commands_are_one(run, call, tmp_path):
    found = call("checkpoint", "export", run, "--step", 10)
    assert found == {"export": str(run / "exports" / "step-00000010"), "step": 10}
    found = call("export", run / "checkpoints" / "step-00000010", "--out", tmp_path / "out")
    assert found == {"export": str(tmp_path / "out"), "step": 10}


def test_old_checkpoints_are_removed(run, call):
    found = call("checkpoint", "prune", run, "--keep", 1, "--keep-every", 10)
    assert found == {"removed": ["step-00000005"], "left": ["step-00000010", "step-00000015"]}


def test_a_folder_that_is_no_run_is_refused_in_one_line(tmp_path):
    result = CliRunner().invoke(app, ["checkpoint", "list", str(tmp_path)])
    assert result.exit_code == 1
    assert "is no run: it has no config.yaml" in result.output.replace("\n", " ")
