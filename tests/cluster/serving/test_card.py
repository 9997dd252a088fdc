"""What an export carries, and the settings that a policy is asked and served with."""

import ast
import shutil
import stat

import pytest
import yaml

from actors.prompts import load_prompt_style
from cluster.policies import policy_config
from cluster.serving.card import write_card
from cluster.serving.settings import read_keys, serving_config
from configs.load import FOLDER, load_config, to_yaml

TINY = "configs/tiny"


@pytest.fixture
def export(tmp_path):
    """An export of the shipped model, as a run leaves it."""
    folder = tmp_path / "run" / "export"
    shutil.copytree(TINY, folder)
    write_card(folder, load_config("tiny", ["run.name=run", "rollout.max_turn_tokens=40"]), step=7)
    return folder


def test_an_export_explains_itself(export):
    card = (export / "README.md").read_text()
    assert "optimizer\nstep: 7" in card
    assert "$" not in card.replace("$base", ""), "every place is filled in"
    assert "visionthink serve --policy ." in card
    front = card.split("---")[1]
    assert yaml.safe_load(front)["pipeline_tag"] == "image-text-to-text"
    client = (export / "client.py").read_text()
    ast.parse(client)
    assert len([line for line in client.splitlines() if line.strip()]) <= 20
    for file in export.iterdir():
        assert file.is_file()
        assert not file.is_symlink()
        assert stat.S_IMODE(file.stat().st_mode) & 0o444 == 0o444, f"{file.name} is readable for all"


def test_an_export_is_served_with_the_settings_it_was_trained_with(export, tmp_path, monkeypatch):
    moved = tmp_path / "elsewhere"
    export.rename(moved)
    monkeypatch.chdir(tmp_path)
    chosen = policy_config(moved, None, ["rollout.temperature=0.5"])
    config = chosen.config
    assert (config.model.path, chosen.name) == (str(moved), "elsewhere")
    assert config.rollout.max_turn_tokens == 40
    assert config.rollout.temperature == 0.5
    assert load_prompt_style(config.model.prompt) == load_prompt_style("tiny")
    assert config.model.prompt == str(moved / "prompt.yaml")


@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("visionthink_*.yaml")))
def test_the_settings_of_a_large_policy_are_valid_by_themselves(name, export):
    trained = load_config(name)
    write_card(export, trained, step=None)
    config = policy_config(export, None, []).config
    for field in ("dtype", "min_pixels", "max_pixels"):
        assert getattr(config.model, field) == getattr(trained.model, field)
    for field in ("mode", "max_turn_tokens", "max_prompt_tokens", "num_gpus", "tensor_parallel_size"):
        assert getattr(config.rollout, field) == getattr(trained.rollout, field)
    assert load_prompt_style(config.model.prompt) == load_prompt_style("qwen")
    on_cpu = ["model.dtype=float32", "rollout.num_gpus=0", "learner.num_gpus=0"]
    assert policy_config(export, None, on_cpu).config.rollout.num_gpus == 0


def test_a_run_is_served_with_its_own_settings(export):
    run = export.parent
    saved = load_config("tiny", ["rollout.max_turn_tokens=33"])
    (run / "config.yaml").write_text(to_yaml(saved))
    (run / "summary.json").write_text('{"steps": 7}')
    chosen = policy_config(run, None, [])
    config = chosen.config
    assert (config.rollout.max_turn_tokens, config.model.path, chosen.name) == (33, str(export), "run")


def test_without_a_policy_the_shipped_model_is_served_and_a_missing_one_is_told():
    chosen = policy_config(None, None, [])
    assert chosen.name == "tiny"
    assert serving_config(chosen.config, max_running=9).rollout.max_groups_in_flight == 9
    with pytest.raises(ValueError, match=r"model\.path"):
        policy_config(None, None, ["model.path=nowhere"])


def test_a_model_of_the_hub_is_served_and_described_by_its_name(export, tmp_path):
    snapshot = tmp_path / "models--Qwen--Small-VL" / "snapshots" / ("a" * 40)
    shutil.copytree(TINY, snapshot)
    assert policy_config(snapshot, None, []).name == "Qwen/Small-VL"
    write_card(export, load_config("tiny", [f"model.path={snapshot}"]), step=1)
    assert "Trained from `Qwen/Small-VL`" in (export / "README.md").read_text()


def test_keys(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# for the team\n first \n\nsecond\n")
    assert read_keys(file) == ["first", "second"]
    file.write_text("# none\n")
    with pytest.raises(ValueError, match="no key"):
        read_keys(file)
    with pytest.raises(ValueError, match="cannot be read"):
        read_keys(tmp_path / "missing")
