"""Makes every path of a config absolute, once, in the driver: other processes have other working directories."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from configs.judges import JudgeConfig
from configs.run import RunConfig
from configs.schema import Config

ROOT = Path(__file__).resolve().parent.parent
"""The project's folder, with the shipped model and configs."""
PROMPTS = ROOT / "configs" / "prompts"


def resolve_paths(config: Config, *, base: Path | None = None) -> Config:
    """The config with absolute paths, `~` expanded.

    Shipped files are found from any working directory. A model or prompt that does not exist stays as written, so that
    `cluster.preflight.checks` can name it in its error.

    Args:
        base: folder of relative paths; the working directory by default.
    """
    base = base or Path.cwd()
    return replace(
        config,
        run=replace(config.run, dir=absolute(config.run.dir, base)),
        model=replace(
            config.model, path=find_folder(config.model.path, base), prompt=find_wording(config.model.prompt, base)
        ),
        train=replace(config.train, checkpoint_dir=absolute_or_url(config.train.checkpoint_dir, base)),
        data=replace(
            config.data,
            train=absolute_or_url(config.data.train, base),
            heldout=absolute_or_url(config.data.heldout, base),
        ),
        judge=resolve_judge_paths(config.judge, base=base),
    )


def resolve_judge_paths(config: JudgeConfig, *, base: Path | None = None) -> JudgeConfig:
    """As `resolve_paths`, for the judge section only."""
    base = base or Path.cwd()
    llm = config.llm
    model = find_folder(llm.model, base) if "cluster" in config.chain else llm.model
    key_file = absolute(llm.api_key_file, base) if llm.api_key_file else ""
    cache = absolute(config.cache, base) if config.cache else ""
    llm = replace(llm, model=model, api_key_file=key_file, prompt=find_wording(llm.prompt, base))
    return replace(config, cache=cache, llm=llm)


def absolute(path: str, base: Path) -> str:
    """The absolute path, `~` expanded; symbolic links are kept.

    Raises:
        ValueError: `~NAME` of an unknown user.
    """
    try:
        return str(base / Path(path).expanduser())
    except RuntimeError as error:
        raise ValueError(f"{path!r} is invalid: {error}; write the path without `~`") from error


def absolute_or_url(place: str, base: Path) -> str:
    """The absolute path; a URL, or nothing at all, stays as it is."""
    return absolute(place, base) if place and "://" not in place else place


def find_folder(path: str, base: Path) -> str:
    """The absolute path where it exists, there or inside the project; unchanged where it does not."""
    if not path:
        return path
    candidates = (absolute(path, base), str(ROOT / path))
    return next((candidate for candidate in candidates if Path(candidate).exists()), path)


def find_wording(name: str, base: Path) -> str:
    """The name of a shipped prompt unchanged, or the absolute path of a file."""
    is_shipped = "/" not in name and (PROMPTS / f"{name}.yaml").is_file()
    return name if is_shipped else find_folder(name, base)


def maybe_meant(folder: Path) -> str:
    """The end of a message about a run that is not there: where one of this name is, by default. Empty if nowhere."""
    there = Path(RunConfig().dir) / folder
    return f"; did you mean {there}?" if not folder.exists() and there.is_dir() else ""
