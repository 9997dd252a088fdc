from dataclasses import replace
from pathlib import Path

import pytest

from configs.judges import ClusterJudgeConfig, JudgeConfig, LLMJudgeConfig
from judge.llm.served_model import application_options, model_id, num_gpus_wanted
from judge.llm.version import judge_version


def write_model(folder: Path, *, weights: bytes = b"weights", template: str = '{"chat_template": "x"}') -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(template)
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def judge_config(folder: Path | str = "model", **cluster) -> JudgeConfig:
    settings = {"num_gpus": 0.0, **cluster}
    return JudgeConfig(
        chain=("rules", "cluster"),
        llm=LLMJudgeConfig(model=str(folder), api_key_env="OPENAI_KEY"),
        cluster=ClusterJudgeConfig(**settings),
    )


def engine_options_of(config: JudgeConfig, name: str) -> dict:
    (engine,) = application_options(config, name)["llm_configs"]
    return engine


def test_a_model_is_named_by_its_content_not_by_its_place(tmp_path):
    first = write_model(tmp_path / "my model.v2")
    (tmp_path / "elsewhere").mkdir()
    second = write_model(tmp_path / "elsewhere" / "my model.v2")
    name = model_id(first)
    assert name == model_id(second)
    assert name.startswith("my-model-v2-")
    (second / "model.safetensors").write_bytes(b"weighty")
    assert model_id(second) != name
    (first / "README.md").write_text("no part of the model")
    assert model_id(first) == name


@pytest.mark.parametrize("at", [0, 40 << 20, (80 << 20) - 1])
def test_any_byte_of_a_large_file_counts(tmp_path, at):
    folder = write_model(tmp_path / "model")
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(80 << 20)
    name = model_id(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(at)
        file.write(b"1")
    assert model_id(folder) != name


def test_a_judges_version_is_the_same_before_and_after_its_model_is_served(tmp_path):
    config = judge_config(write_model(tmp_path / "model"))
    served = replace(config, llm=replace(config.llm, base_url="http://h:1/v1", model=model_id(tmp_path / "model")))
    version = judge_version(config)
    assert judge_version(served) == version
    (tmp_path / "model" / "config.json").write_text('{"changed": true}')
    assert judge_version(config) != version


def test_an_engine_on_cpus_reserves_half_a_core_and_no_gpu():
    options = engine_options_of(judge_config(kv_cache_gib=3, max_model_len=512), "m-1")
    assert options["placement_group_config"] == {"bundles": [{"CPU": 0.5}]}
    assert options["runtime_env"]["env_vars"]["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert options["engine_kwargs"]["max_model_len"] == 512
    assert "gpu_memory_utilization" not in options["engine_kwargs"]
    assert Path(options["model_loading_config"]["model_source"]).is_absolute()


def test_gpus_become_bundles_and_a_share_of_one_bounds_the_memory():
    two = engine_options_of(judge_config(num_gpus=2.0), "m-1")
    assert two["placement_group_config"] == {"bundles": [{"GPU": 1.0, "CPU": 1.0}] * 2}
    assert two["engine_kwargs"]["tensor_parallel_size"] == 2
    half = engine_options_of(judge_config(num_gpus=0.5), "m-1")
    assert half["placement_group_config"] == {"bundles": [{"GPU": 0.5, "CPU": 1.0}]}
    assert half["engine_kwargs"]["gpu_memory_utilization"] == pytest.approx(0.45)
    with pytest.raises(ValueError, match=r"judge.cluster.num_gpus=1.5"):
        ClusterJudgeConfig(num_gpus=1.5)


def test_scaling_follows_the_config_and_the_http_side_never_goes():
    config = judge_config(min_replicas=0, max_replicas=3, target_ongoing_requests=5.0, downscale_delay_s=7.0)
    scaling = engine_options_of(config, "m-1")["deployment_config"]["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (0, 3)
    assert (scaling["target_ongoing_requests"], scaling["downscale_delay_s"]) == (5.0, 7.0)
    drain_s = engine_options_of(config, "m-1")["deployment_config"]["graceful_shutdown_timeout_s"]
    assert drain_s > config.llm.try_timeout_s
    ingress = application_options(config, "m-1")["ingress_deployment_config"]
    assert ingress["autoscaling_config"]["min_replicas"] == 1


def test_the_first_engine_has_to_fit_even_where_the_pool_may_shrink_to_none():
    assert num_gpus_wanted(judge_config(num_gpus=2.0, min_replicas=0)) == 2
    assert num_gpus_wanted(judge_config(num_gpus=0.5, min_replicas=3, max_replicas=3)) == 1.5
    assert num_gpus_wanted(replace(judge_config(num_gpus=2.0), chain=("rules",))) == 0
