"""Settings of serving: the engine's, and the keys that clients may use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from configs.schema import Config


def serving_config(config: Config, *, max_running: int) -> Config:
    """The config of an engine that plays that many requests at a time: each counts as a group of its own."""
    rollout = replace(config.rollout, max_groups_in_flight=max_running, group_size=2)
    return replace(config, rollout=rollout, train=replace(config.train, min_scored=1))


def read_keys(file: Path) -> list[str]:
    """The API keys in a file, one a line; lines that start with # are not read.

    Raises:
        ValueError: it cannot be read, or has no key.
    """
    try:
        lines = [line.strip() for line in file.expanduser().read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--api-key-file {str(file)!r} cannot be read: {error}") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ValueError(f"--api-key-file {str(file)!r} has no key: write one per line")
    return keys
