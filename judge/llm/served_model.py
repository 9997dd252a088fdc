"""A local model folder as something that can be served: whether it can, what names it, how its engine is set up."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from blake3 import blake3

from configs.judges import JudgeConfig


def model_id(folder: Path) -> str:
    """`NAME-DIGEST` of the content of a model folder: the same wherever it lies, another after any training step.

    Kept verdicts go by this name. Every byte of the weights is read, since training may leave the ends of a file as
    they were: no slower than the engine loads them.
    """
    digest = blake3(max_threads=blake3.AUTO)
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jinja", ".safetensors", ".model", ".txt"):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            digest.update_mmap(path)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.resolve().name).strip("-") or "model"
    return f"{name}-{digest.hexdigest()[:12]}"


def num_gpus_wanted(config: JudgeConfig) -> float:
    """GPUs that engines hold for the whole run; the first one has to fit even where the pool may shrink to none."""
    return config.cluster.num_gpus * max(1, config.cluster.min_replicas) if "cluster" in config.chain else 0.0


def application_options(config: JudgeConfig, name: str) -> dict[str, Any]:
    """Of `ray.serve.llm.build_openai_app`: the engines, which serve the model under this name, and their HTTP side."""
    ingress = {
        "ray_actor_options": {"num_cpus": 0, "runtime_env": {"env_vars": engine_environment(config)}},
        "autoscaling_config": {
            "min_replicas": 1,  # stays up while engines are scaled to none
            "max_replicas": config.cluster.max_replicas,
            "target_ongoing_requests": 4 * config.cluster.target_ongoing_requests,
        },
    }
    return {"llm_configs": [_engine_options(config, name)], "ingress_deployment_config": ingress}


def _engine_options(config: JudgeConfig, name: str) -> dict[str, Any]:
    cluster = config.cluster
    engine: dict[str, Any] = {
        "max_model_len": cluster.max_model_len,
        # Else the model's own file of sampling settings would add to what the judge asks for.
        "generation_config": "vllm",
        "disable_log_stats": True,
        "worker_extension_cls": "actors.engine.owned_worker.OwnedWorker",
    }
    # Bundles without a GPU are how Ray's LLM server learns that vLLM runs on CPUs. As rollouts do, such an engine takes
    # turns on the cores with the rest of the run.
    bundle, num_bundles = {"CPU": 0.5}, max(1, int(cluster.num_gpus))
    if cluster.num_gpus:
        share = min(1.0, cluster.num_gpus)
        bundle = {"GPU": share, "CPU": 1.0}
        engine |= {"tensor_parallel_size": num_bundles, "gpu_memory_utilization": 0.9 * share}
    else:
        engine |= {"enforce_eager": True}
    return {
        "model_loading_config": {"model_id": name, "model_source": str(Path(config.llm.model).resolve())},
        "engine_kwargs": engine,
        "placement_group_config": {"bundles": [dict(bundle) for _ in range(num_bundles)]},
        "server_cls": "judge.llm.server_engine.JudgeLLMServer",
        "callback_config": {"callback_class": "judge.llm.server_engine.LocalModel"},
        "log_engine_metrics": False,
        "runtime_env": {"env_vars": engine_environment(config)},
        "deployment_config": {
            "ray_actor_options": {"num_cpus": 0},
            "autoscaling_config": {
                "min_replicas": cluster.min_replicas,
                "max_replicas": cluster.max_replicas,
                "target_ongoing_requests": cluster.target_ongoing_requests,
                "upscale_delay_s": config.upscale_delay_s,
                "downscale_delay_s": cluster.downscale_delay_s,
            },
            # An engine that goes first answers what it was asked.
            "graceful_shutdown_timeout_s": config.llm.try_timeout_s + 5.0,
            "max_constructor_retry_count": 2,  # one that dies twice on its way up would die again
        },
    }


def engine_environment(config: JudgeConfig) -> dict[str, str]:
    """Process environment that vLLM reads when it is imported. GPU engines take no notice of what is for CPUs."""
    return {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(config.cluster.kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(config.cluster.num_threads),
    }
