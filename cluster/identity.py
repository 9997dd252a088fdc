"""Identity of a run: what must be equal when resuming from a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from actors.data.dataset import Dataset
from actors.errors import CheckpointError
from configs.schema import Config

MAX_HASHED_BYTES = 64 << 20
"""Larger files of the initial model are identified by name and size."""
PACKAGES = ("ray", "torch", "transformers", "deepspeed")
REMEDIES = {
    "dataset": "set data.train to the data set that the run was started with",
    "model": "set model.path to the model that the run was started with",
    "seed": "set run.seed to the seed of that run",
    "packages": "install the versions that wrote it (`uv sync --locked` at that commit)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    dataset: str
    model: str
    seed: int
    packages: dict[str, str]


def identify(config: Config, train_set: Dataset) -> Identity:
    """Identity of a run: its data, initial model, seed and package versions."""
    files = sorted(path for path in Path(config.model.path).iterdir() if path.suffix in (".json", ".safetensors"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        if path.stat().st_size <= MAX_HASHED_BYTES:
            digest.update(path.read_bytes())
    return Identity(
        dataset=train_set.identity(),
        model=digest.hexdigest(),
        seed=config.run.seed,
        packages={name: metadata.version(name) for name in PACKAGES},
    )


def check_identity(saved: Mapping[str, Any], current: Identity) -> None:
    """Reject a checkpoint with another data set, model, seed or package versions, with both values and the remedy.

    Raises:
        CheckpointError: they differ.
    """
    for name, value in asdict(current).items():
        if saved.get(name) != value:
            raise CheckpointError(
                f"the checkpoint was written with {name}={saved.get(name)!r}, this run has {value!r}: "
                f"{REMEDIES[name]}, or start a new run without --resume"
            )
