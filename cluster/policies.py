"""Finds a policy, in a run, in one of its checkpoints or in a model folder, and the settings that belong to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.errors import CheckpointError, RunError
from actors.hub import local_copy, model_name
from actors.prompts import load_prompt_style
from actors.tools.registry import toolbox_of
from cluster.folders import CONFIG, checkpoints_url, read_summary
from cluster.hub import fetch_named
from cluster.preflight.checks import raise_all
from cluster.preflight.model_files import model_folder_problems
from cluster.serving.card import SETTINGS, write_card
from cluster.shell import warn_user
from configs.load import load_config, load_saved
from configs.paths import maybe_meant, resolve_paths
from configs.schema import Config
from learner.state.checkpoint import CHECKPOINT_NAME, CheckpointFolder, checkpoint_name, step_of

EXPORT = "export"
EXPORTS = "exports"
"""Exports of single checkpoints; `export` is the one of a finished run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySource:
    """Location of a policy."""

    model: Path | None
    """Hugging Face folder, if it exists already."""
    checkpoint: str | None = None
    """Name of the verified checkpoint to export from."""
    run: Path | None = None
    """The run it belongs to."""
    step: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenPolicy:
    """A policy that a command was given, ready to be loaded from `config.model.path`."""

    config: Config
    source: PolicySource | None
    """None: `model.path` of the config itself."""

    @property
    def name(self) -> str:
        """That of its run, or of its model."""
        run = self.source.run if self.source else None
        return run.absolute().name if run else model_name(self.config.model.path)


def policy_config(
    policy: Path | None, config: str | None, overrides: Sequence[str], *, keys: Collection[str] = ("model.path",)
) -> ChosenPolicy:
    """A policy with its settings.

    They are those of its run, or those in its export, with overrides on top. `config` names others, and is needed for
    a model folder that has none. Without a policy it is `model.path` of the config, which may name one of the hub.

    Args:
        keys: settings that may name something of the hub, which is then fetched.

    Raises:
        ValueError, RunError, CheckpointError, DataError: there is no such policy, or its settings are invalid.
    """
    source = find_policy(policy.expanduser()) if policy else None
    folder = materialize(source).absolute() if source else None
    chosen = [*overrides, *([f"model.path={folder}", "model.load=weights"] if folder else [])]
    settings = folder / SETTINGS if folder else None
    if config is None and source and source.run:
        loaded = load_saved(source.run / CONFIG, chosen)[0]
    elif config is None and folder and settings and settings.is_file():
        prompt = load_config(str(settings)).model.prompt
        loaded = load_config(str(settings), [f"model.prompt={folder / prompt}", *chosen])
    else:
        loaded = load_config(config, chosen)
    resolved = fetch_named(resolve_paths(loaded), keys=keys, say=warn_user)
    model = resolved.model
    flaws = model_folder_problems("model.path", model.path, needs_weights=model.load == "weights")
    raise_all([ValueError(flaw) for flaw in flaws])
    load_prompt_style(model.prompt).check(toolbox_of(resolved.rollout.tools))
    return ChosenPolicy(config=resolved, source=source)


def config_of(run: Path) -> Config:
    """The settings of a run, wherever its folder lies now.

    Raises:
        RunError: it is no run folder.
    """
    if not (run / CONFIG).is_file():
        raise RunError(f"{run} is no run: it has no {CONFIG}{maybe_meant(run)}")
    saved = resolve_paths(load_saved(run / CONFIG)[0])
    place = run.absolute()
    return dataclasses.replace(saved, run=dataclasses.replace(saved.run, dir=str(place.parent), name=place.name))


def checkpoints_of(run: Path) -> CheckpointFolder:
    """The checkpoints of a run, where `train.checkpoint_dir` of its settings says.

    Raises:
        RunError: it is no run folder.
        CheckpointError: their storage cannot be opened.
    """
    return CheckpointFolder(checkpoints_url(config_of(run)))


def find_policy(path: Path, *, step: int | None = None) -> PolicySource:
    """The policy of a run (its final export, or else its latest checkpoint), of a checkpoint, or of a model folder.

    Args:
        step: of a run's checkpoint, instead of the latest.

    Raises:
        CheckpointError: the given checkpoint fails verification.
        RunError: there is no policy.
    """
    if match := CHECKPOINT_NAME.fullmatch(path.name):
        path, step = path.parent.parent, int(match[1])
    if (path / CONFIG).is_file():
        return _newest_policy(path) if step is None else _policy_at(path, step)
    if any(path.glob("*.safetensors")):
        return PolicySource(model=path)
    wanted = "give a run, RUN/checkpoints/step-N, or a Hugging Face folder with safetensors"
    raise RunError(f"{path} holds no policy: {wanted}{maybe_meant(path)}")


def _policy_at(run: Path, step: int) -> PolicySource:
    checkpoints, name = checkpoints_of(run), checkpoint_name(step)
    if flaw := checkpoints.find_flaw(name):
        raise CheckpointError(f"{checkpoints.url}/{name} fails verification: {flaw}")
    return PolicySource(model=None, checkpoint=name, run=run, step=step)


def _newest_policy(run: Path) -> PolicySource:
    checkpoints = checkpoints_of(run)
    newest = next((name for name in reversed(checkpoints.list()) if checkpoints.find_flaw(name) is None), None)
    step = None if newest is None else step_of(newest)
    summary = read_summary(run)
    ended_at = summary["steps"] if summary else None
    if ended_at is not None and any((run / EXPORT).glob("*.safetensors")) and (step is None or ended_at >= step):
        return PolicySource(model=run / EXPORT, run=run, step=ended_at)
    if newest is None:
        raise RunError(f"{run} has neither finished nor written a valid checkpoint")
    return PolicySource(model=None, checkpoint=newest, run=run, step=step)


def materialize(source: PolicySource, out: Path | None = None) -> Path:
    """The policy as a Hugging Face folder; a checkpoint is exported to `out`, or else into the run folder.

    Raises:
        CheckpointError: the checkpoint has no learner state.
    """
    if source.model is not None and out is None:
        return source.model
    from learner.export import export_checkpoint  # imports PyTorch

    if source.checkpoint is None:
        raise RunError(f"{source.model} is exported already: copy the folder")
    assert source.run is not None
    config = config_of(source.run)
    target = out or source.run / EXPORTS / source.checkpoint
    if out is None and any(target.glob("*.safetensors")):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    model = Path(local_copy(config.model.path))
    export_checkpoint(
        checkpoints_of(source.run),
        source.checkpoint,
        target,
        model=model,
        dtype=config.model.dtype,
        lora=config.learner.lora,
    )
    write_card(target, config, step=source.step)
    return target
