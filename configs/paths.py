"""Every path of a config made absolute, once, by the driver: other processes work in folders of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from configs.judges import JudgeConfig
from configs.schema import Config

ROOT = Path(__file__).resolve().parent.parent
"""The project's folder, where the shipped model and configs lie."""
PROMPTS = ROOT / "configs" / "prompts"


def resolve_paths(config: Config, *, base: Path | None = None) -> Config:
    """The config with absolute paths, `~` expanded.

    What is shipped is found from any working directory. A model or wording that is nowhere stays as it was written, so
    that an error can name it: `cluster.preflight` refuses it.

    Args:
        base: what relative paths start from; the working directory by default.
    """
    base = base or Path.cwd()
    return replace(
        config,
        run=replace(config.run, dir=absolute(config.run.dir, base)),
        model=replace(
            config.model, path=find_folder(config.model.path, base), prompt=find_wording(config.model.prompt, base)
        ),
        data=replace(config.data, train=absolute(config.data.train, base), heldout=absolute(config.data.heldout, base)),
        judge=resolve_judge_paths(config.judge, base=base),
    )


def resolve_judge_paths(config: JudgeConfig, *, base: Path | None = None) -> JudgeConfig:
    """As `resolve_paths`, of the judge's section alone."""
    base = base or Path.cwd()
    llm = config.llm
    model = find_folder(llm.model, base) if "cluster" in config.chain else llm.model
    key_file = absolute(llm.api_key_file, base) if llm.api_key_file else ""
    cache = absolute(config.cache, base) if config.cache else ""
    llm = replace(llm, model=model, api_key_file=key_file, prompt=find_wording(llm.prompt, base))
    return replace(config, cache=cache, llm=llm)


def absolute(path: str, base: Path) -> str:
    """The path from the root of the file system, `~` expanded; links in it stay.

    Raises:
        ValueError: `~NAME` of a user that is not known here.
    """
    try:
        return str(base / Path(path).expanduser())
    except RuntimeError as error:
        raise ValueError(f"{path!r} is invalid: {error}; write the path without `~`") from error


def find_folder(path: str, base: Path) -> str:
    """The absolute path of what is there, or else in the project; as it was written where it is nowhere."""
    if not path:
        return path
    candidates = (absolute(path, base), str(ROOT / path))
    return next((candidate for candidate in candidates if Path(candidate).exists()), path)


def find_wording(name: str, base: Path) -> str:
    """The name of a shipped wording as it is, or the absolute path of a file."""
    is_shipped = "/" not in name and (PROMPTS / f"{name}.yaml").is_file()
    return name if is_shipped else find_folder(name, base)
