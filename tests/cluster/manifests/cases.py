"""Configs for which every kind of manifest is rendered and checked."""

import json
from copy import copy
from dataclasses import replace

from cluster.manifests.render import Request, default_target
from configs.learner import LearnerConfig
from configs.load import load_config
from configs.paths import ROOT
from configs.schema import Config, RolloutConfig
from learner.families.lookup import PUBLISHED, read_shape
from learner.memory import ModelShape

TINY = read_shape(json.loads((ROOT / "configs" / "tiny" / "config.json").read_text()))
NFS = {"nfs": "fs.internal:/vt", "project": "some-project"}


def published_shape(size: str) -> ModelShape:
    return read_shape(PUBLISHED[f"qwen2.5-vl-{size}"])


def with_sizes(config: Config, workers: int | str, ranks: int | str) -> Config:
    """The config with these sizes, whatever its other settings say of them."""
    rollout, learner, sized = copy(config.rollout), copy(config.learner), copy(config)
    object.__setattr__(rollout, "num_workers", workers)
    object.__setattr__(learner, "num_ranks", ranks)
    object.__setattr__(sized, "rollout", rollout)
    object.__setattr__(sized, "learner", learner)
    return sized


LLM = ("judge.chain=[rules,cluster]", "judge.llm.model=models/judge", "judge.llm.reply=choice")
KEY = ("judge.chain=[rules,openai]", "judge.llm.model=gpt-4o", "judge.llm.api_key_file=./judge.key")
CASES: dict[str, Config] = {
    "tiny": load_config("tiny", []),
    "tiny-judge-key": load_config("tiny", [*KEY, "run.name=Über_3.x"]),
    "3b-2gpu": load_config("visionthink_3b_2gpu", []),
    "3b-one-gpu": load_config("visionthink_3b_1gpu", []),
    "7b-8gpu": load_config("visionthink_7b_8gpu", []),
    "7b": load_config("visionthink_7b_4x8gpu", ["run.name=7B"]),
    "7b-gpu-judges": load_config(
        "visionthink_7b_4x8gpu",
        [*LLM, "judge.llm.api_key_env=", "judge.cluster.num_gpus=2", "judge.cluster.max_replicas=3"],
    ),
}
RANGES = {
    "tiny-ranges": ("tiny", ("rollout.num_workers=2..6", "learner.num_ranks=1..4")),
    "7b-ranges": (
        "visionthink_7b_4x8gpu",
        ("rollout.num_workers=2..6", "rollout.tensor_parallel_size=2", "learner.num_ranks=8..16"),
    ),
}
if "str" in LearnerConfig.__annotations__["num_ranks"] and "str" in RolloutConfig.__annotations__["num_workers"]:
    CASES |= {name: load_config(config, overrides) for name, (config, overrides) in RANGES.items()}


def request(kind: str, config: Config, *, from_zero: bool = False, **settings: object) -> Request:
    target = replace(default_target(config), **{**NFS, **settings})
    return Request(kind=kind, config_name="tiny", overrides=(), target=target, from_zero=from_zero)
