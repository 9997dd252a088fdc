from pathlib import Path

import pytest

from configs.load import FOLDER, describe_fields, load_config, to_yaml
from configs.schema import Config

SECONDS = (
    *("timeout_s", "max_pause_s", "start_timeout_s", "llm.try_timeout_s", "cluster.start_timeout_s"),
    *("upscale_delay_s", "downscale_delay_s", "cluster.downscale_delay_s", "cluster.num_gpus"),
)
SHIPPED = sorted(file.stem for file in FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_loads_and_survives_a_round_trip(name, tmp_path):
    config = load_config(name)
    assert isinstance(config, Config)
    saved = tmp_path / "config.yaml"
    saved.write_text(to_yaml(config))
    assert load_config(str(saved)) == config


def test_the_default_is_the_tiny_run_and_equals_the_schema():
    assert load_config(None) == load_config("tiny") == Config()


def test_the_7b_config_has_the_papers_settings():
    config = load_config("visionthink_7b_4x8gpu")
    assert (config.train.prompts_per_step, config.learner.prompts_per_mini_batch) == (512, 32)
    assert (config.rollout.group_size, config.rollout.temperature) == (16, 1.0)
    assert (config.learner.learning_rate, config.learner.chosen_objective.kl_coefficient) == (1e-6, 0.001)
    assert config.learner.entropy_coefficient == 0.001
    assert (config.rollout.max_prompt_tokens, config.rollout.max_turn_tokens) == (8192, 8192)
    assert (config.model.min_pixels, config.model.max_pixels) == (512**2, 2048**2)
    assert (config.train.checkpoint_every, config.train.eval_every) == (5, 5)
    assert (config.model.dtype, config.learner.zero_stage) == ("bfloat16", 3)
    assert config.learner.gradient_checkpointing
    num_rollout_gpus = config.rollout.num_workers * config.rollout.num_gpus * config.rollout.tensor_parallel_size
    assert num_rollout_gpus + config.learner.ranks.maximum * config.learner.num_gpus == 32


def test_overrides_win_over_the_file_and_later_ones_over_earlier_ones():
    config = load_config("visionthink_7b_4x8gpu", ["train.num_steps=7", "reward.penalty=never", "train.num_steps=8"])
    assert (config.train.num_steps, config.reward.penalty) == (8, "never")
    assert config.train.prompts_per_step == 512


@pytest.mark.parametrize(
    ("override", "section", "name", "value"),
    [
        ("learner.learning_rate=1e-4", "learner", "learning_rate", 1e-4),
        ("learner.adam_betas=[0.8,0.9]", "learner", "adam_betas", (0.8, 0.9)),
        ("learner.adam_betas=0.8,0.9", "learner", "adam_betas", (0.8, 0.9)),
        ("judge.chain=rules", "judge", "chain", ("rules",)),
        ("judge.chain= rules ", "judge", "chain", ("rules",)),
        ("learner.gradient_checkpointing=true", "learner", "gradient_checkpointing", True),
        ("learner.zero_stage=3", "learner", "zero_stage", 3),
        ("run.name=007", "run", "name", "007"),
        ("run.name='x'", "run", "name", "x"),
        ("data.train=a=b/c d.parquet", "data", "train", "a=b/c d.parquet"),
    ],
)
def test_values_take_the_type_of_their_field(override, section, name, value):
    found = getattr(getattr(load_config("tiny", [override]), section), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rollout.groupsize=4", ["rollout.groupsize", "did you mean rollout.group_size", "--fields"]),
        ("rollot.group_size=4", ["rollot", "did you mean rollout.group_size?"]),
        ("num_steps=4", ["num_steps=4", "did you mean train.num_steps?"]),
        ("judge.model=x", ["judge.model", "did you mean judge.llm.model?"]),
        ("learner.lr=1", ["learner.lr", "did you mean learner.learning_rate?"]),
        ("zzz.qqq=1", ["no setting zzz.qqq; `"]),
        ("rollout.group_size=many", ["rollout.group_size", "many", "Integer"]),
        ("rollout.group_size=1.5", ["rollout.group_size", "1.5"]),
        ("rollout.group_size=", ["rollout.group_size", "None"]),
        ("rollout.mode=fast", ["rollout.mode", "fast", "efficient", "general"]),
        ("weights.in_flight=wait", ["weights.in_flight", "wait", "drain", "keep", "recompute"]),
        ("learner.adam_betas=[0.9]", ["adam_betas"]),
        ("rollout=3", ["rollout=3", "rollout.NAME"]),
        ("judge.chain=[rules,opnai]", ["judge.chain=['rules', 'opnai']", "'openai'"]),
        ("rollout.group_size", ["section.key=value"]),
        ("=3", ["section.key=value"]),
        ("rollout.group_size=[1", ["rollout.group_size"]),
        ("model.max_pixels=${nothing.here}", ["nothing"]),
    ],
)
def test_a_wrong_override_is_refused_with_its_key_and_a_remedy(override, words):
    with pytest.raises(ValueError, match=r".") as refused:
        load_config("tiny", [override])
    for word in words:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["rollout.group_size=1"], ["rollout.group_size=1", "at least 2"]),
        (["rollout.temperature=0"], ["rollout.temperature=0", "above 0"]),
        (["rollout.temperature=2.5"], ["rollout.temperature=2.5", "at most 2"]),
        (["train.prompts_per_step=33"], ["learner.prompts_per_mini_batch=32", "33"]),
        (["train.min_scored=9"], ["train.min_scored=9", "rollout.group_size=8"]),
        (["model.dtype=bfloat16"], ["model.dtype='bfloat16'", "rollout.num_gpus"]),
        (["learner.max_tokens_per_micro_batch=100"], ["learner.max_tokens_per_micro_batch=100", "at least"]),
        (["model.max_pixels=10"], ["model.max_pixels=10", "model.min_pixels=3136"]),
        (["judge.max_replicas=1", "judge.min_replicas=2"], ["judge.max_replicas=1", "judge.min_replicas=2"]),
        (["run.name=../x"], ["run.name='../x'", "letters"]),
        (["judge.llm.base_url=localhost:8000/v1"], ["judge.llm.base_url", "http://HOST"]),
        (["judge.canary_alarm=0.5", "judge.canary_stop=0.1"], ["judge.canary_alarm=0.5", "judge.canary_stop=0.1"]),
        (
            ["judge.chain=[rules,openai]", "judge.llm.model=x", "judge.timeout_s=20"],
            ["judge.timeout_s=20.0", "judge.llm.try_timeout_s=20"],
        ),
        *(([f"judge.{name}={value}"], [f"judge.{name}", "finite"]) for name in SECONDS for value in (".inf", ".nan")),
        (["judge.llm.base_url=http://host:port/v1"], ["judge.llm.base_url='http://host:port/v1'", "http://HOST"]),
        (["judge.llm.base_url=http://host:99999/v1"], ["judge.llm.base_url", "http://HOST"]),
        (["judge.llm.base_url=http://[host/v1"], ["judge.llm.base_url='http://[host/v1'", "http://HOST"]),
        (["judge.llm.base_url=http://ho st/v1"], ["judge.llm.base_url='http://ho st/v1'", "http://HOST"]),
        (["learner.offload_optimizer=true", "learner.zero_stage=0"], ["learner.offload_optimizer", "zero_stage"]),
        (["reward.theta=2"], ["reward.theta=2", "0 to 1"]),
        (["learner.importance_sampling_cap=0.5"], ["learner.importance_sampling_cap=0.5", "at least 1"]),
        (["weights.transport=nccl"], ["weights.transport='nccl'", "shared_memory on CPU"]),
        (["learner.stream=true", "rollout.num_gpus=0.5", "learner.num_gpus=0.5"], ["learner.stream=True", "sleep"]),
        (
            ["weights.transport=ipc", "rollout.num_gpus=1", "learner.num_gpus=1"],
            ["weights.transport='ipc'", "they take 2"],
        ),
    ],
)
def test_an_impossible_combination_is_refused_with_field_value_and_remedy(overrides, words):
    with pytest.raises(ValueError, match="is invalid") as refused:
        load_config("tiny", overrides)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize("where", ["https://me:s3cret@host/v1", "ftp://me:s3cret@host", "me:s3cret@host/v1"])
@pytest.mark.parametrize("query", ["", "?api-key=s3cret", "#s3cret"])
def test_an_address_with_a_secret_in_it_is_refused_and_not_shown(where, query):
    for url in (where + query, f"https://host/v1{query or '?key=s3cret'}"):
        with pytest.raises(ValueError, match="no user, password or query") as refused:
            load_config("tiny", [f"judge.llm.base_url={url}"])
        assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "override",
    [
        "judge.llm.api_key={}",
        "judge.llm.api_key {}",
        "judge.llm.api_key=[{}",
        "judge.llm.api_key_file={}",
        "judge.llm.api_key_file.x={}",
        "judge.llm.api_key_env={}",
        "judge.llm.base_url={}",
        "judge.llm.max_reply_tokens=[{}",
        "judge.llm={}",
        "judge.llm={{api_key: {}}}",
        "judge={{llm: {{api_key: {}}}}}",
        "judge={{llm: {{model: [{}",
        "judge: {}",
        "judge.llm.base_url=ftp://{}",
        "judge.api_key={}",
        "openai_key={}",
    ],
)
def test_a_key_in_a_wrong_override_is_not_shown(override):
    with pytest.raises(ValueError, match=r"key|judge") as error:
        load_config("tiny", [override.format("sk-proj-SECRET")])
    assert "SECRET" not in str(error.value)


@pytest.mark.parametrize("setting", ["api_key_env: [{}]", "max_reply_tokens: {}", "api_key: {}", "api_key_file: {}"])
def test_a_key_in_a_wrong_place_of_a_file_is_not_shown(setting, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"judge: {{llm: {{{setting.format('sk-proj-SECRET')}}}}}")
    with pytest.raises(ValueError, match=r"judge\.llm|llm\.") as error:
        load_config(str(file))
    assert "SECRET" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rollout: {groupsize: 4}", ["groupsize", "group_size"]),
        ("rollout: [1, 2]", ["rollout.NAME"]),
        ("- 1\n- 2", ["sections"]),
        ("rollout: {", ["not YAML"]),
        ("just words", ["just words"]),
    ],
)
def test_a_wrong_file_is_refused_by_name(text, words, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"mine\.yaml") as refused:
        load_config(str(file))
    for word in words:
        assert word in str(refused.value)


def test_an_empty_file_is_the_defaults(tmp_path):
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing\n")
    assert load_config(str(file)) == Config()


def test_a_missing_file_is_refused_with_the_shipped_names():
    with pytest.raises(
        ValueError, match=r"one of tiny, tiny_crop, visionthink_3b_1gpu.*did you mean visionthink_7b_8gpu"
    ):
        load_config("visionthink_7b")


def test_a_list_needs_no_brackets():
    config = load_config("tiny", ["judge.chain=rules,openai", "judge.llm.model=x"])
    assert config.judge.chain == ("rules", "openai")


def test_a_config_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("tiny") == Config()
    assert not Path("configs").exists()


def test_every_setting_is_described():
    described = {field.key: field for field in describe_fields()}
    assert described["rollout.group_size"].type == "int"
    assert described["rollout.group_size"].default == "8"
    assert described["rollout.group_size"].doc == "Episodes per prompt (G in GRPO)."
    assert described["learner.kl_estimator"].type == "Literal['k1', 'k2', 'k3'] | None", "choices, not their name"
    assert len(described) > 60
    assert [key for key, field in described.items() if not field.doc] == []


@pytest.mark.parametrize(
    ("gpus", "transport"),
    [
        ("rollout 0, learner 0", "shared_memory"),
        ("rollout 1, learner 0", "shared_memory"),
        ("rollout 0.5, learner 0.5", "ipc"),
        ("rollout 0.25 x 2, learner 0.5", "ipc"),
        ("rollout 0.5 x 2, learner 0.5", "shared_memory"),  # one engine is on another GPU than the learner
        ("rollout 0.5 x 2, learner 1", "shared_memory"),  # both engines may be on one GPU
        ("rollout 0.6, learner 0.6", "nccl"),
        ("rollout 1, learner 1", "nccl"),
        ("rollout 1 x 4, learner 1", "nccl"),
    ],
)
def test_weights_take_the_way_that_the_gpus_allow(gpus, transport):
    rollout, learner = (part.split(" ", 1)[1] for part in gpus.split(", "))
    share, _, workers = rollout.partition(" x ")
    config = load_config(
        "tiny",
        [f"rollout.num_gpus={share}", f"rollout.num_workers={workers or 1}", f"learner.num_gpus={learner}"],
    )
    assert config.transport == transport
    assert config.engines_sleep == (transport == "ipc")
    ahead = load_config("tiny", [f"rollout.num_gpus={share}", f"learner.num_gpus={learner}", "train.max_staleness=1"])
    assert not ahead.engines_sleep, "they generate while the learner updates"


@pytest.mark.parametrize(("depth", "gpus"), [(0, 0), (0, 1), (1, 0), (1, 0.5)])
def test_updates_are_streamed_where_the_next_batch_is_waited_for(depth, gpus):
    shares = [f"rollout.num_gpus={gpus}", f"learner.num_gpus={gpus}", f"train.max_staleness={depth}"]
    assert load_config("tiny", [*shares, "learner.stream=true"]).streams_updates == (depth == 0)
    assert not load_config("tiny", shares).streams_updates


FLOATS = {each.key.rpartition(".")[0]: each.key for each in describe_fields() if each.type == "float"}
"""One of each section."""


@pytest.mark.parametrize("value", ["nan", "1e999"])
def test_a_number_that_is_not_finite_is_refused_by_its_name(value):
    assert len(FLOATS) > 5
    for key in FLOATS.values():
        with pytest.raises(ValueError, match=key):
            load_config("tiny", [f"{key}={value}"])


@pytest.mark.parametrize("key", ["run.trackers", "judge.chain", "learner.adam_betas"])
@pytest.mark.parametrize("value", ["{}", "a: b", "[[]]", "[{a: 1}]"])
def test_an_entry_of_a_list_that_is_no_single_value_is_refused_by_its_name(key, value):
    with pytest.raises(ValueError, match=rf"{key} is invalid: its entries must be single values"):
        load_config("tiny", [f"{key}={value}"])
