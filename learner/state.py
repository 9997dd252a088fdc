"""The learner's state on disk: JSON and safetensors, by parameter name, free of ranks and shards.

learner.json                 counters, and the names of the tensor files
learner-00000.safetensors    weight/NAME, exp_avg/NAME, exp_avg_sq/NAME in float32, and rng/DEVICE in uint8
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from actors.errors import CheckpointError
from learner.shards import write_shards

STATE, FORMAT = "learner.json", 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What the learner counts."""

    optimizer_step: int
    """Steps applied: the version of the weights."""
    num_skipped: int
    """Steps skipped for a loss or gradient that was not finite."""
    num_skipped_in_a_row: int


def write_state(folder: Path, counters: Counters, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write counters and named tensors into a folder, tensor by tensor.

    Raises:
        CheckpointError: a file could not be written.
    """
    files = list(dict.fromkeys(write_shards(tensors, folder, "learner").values()))
    state = {"format": FORMAT, "counters": asdict(counters), "files": files}
    (folder / STATE).write_text(json.dumps(state, indent=1))


def read_counters(folder: Path) -> Counters:
    """The counters of a saved state.

    Raises:
        CheckpointError: there is none, or it is of another format.
    """
    return Counters(**_read_state(folder)["counters"])


def read_tensors(folder: Path, prefix: str | tuple[str, ...] = "") -> Iterator[tuple[str, Tensor]]:
    """Saved tensors whose key starts so, one at a time."""
    for name in _read_state(folder)["files"]:
        with safe_open(folder / name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - no mapping
                if key.startswith(prefix):
                    yield key, file.get_tensor(key)


def check_shapes(folder: Path, expected: dict[str, tuple[int, ...]]) -> None:
    """Refuse a state whose weights are not those of this model, naming the first that differs."""
    found: dict[str, tuple[int, ...]] = {}
    for name in _read_state(folder)["files"]:
        with safe_open(folder / name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - no mapping
                if key.startswith("weight/"):
                    found[key.removeprefix("weight/")] = tuple(file.get_slice(key).get_shape())
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise CheckpointError(
                f"the checkpoint is of another model: {name} is {found.get(name)} there and {expected.get(name)} here"
            )


def rng_states() -> Iterator[tuple[str, Tensor]]:
    """The random generators of this process."""
    yield "rng/cpu", torch.get_rng_state()
    if torch.cuda.is_available():
        yield "rng/cuda", torch.cuda.get_rng_state()


def restore_rng(states: Iterable[tuple[str, Tensor]]) -> None:
    for key, state in states:
        if key == "rng/cpu":
            torch.set_rng_state(state)
        elif torch.cuda.is_available():
            torch.cuda.set_rng_state(state)


def _read_state(folder: Path) -> dict[str, Any]:
    if not (folder / STATE).is_file():
        raise CheckpointError(f"{folder} holds no learner state ({STATE})")
    state: dict[str, Any] = json.loads((folder / STATE).read_text())
    if state["format"] != FORMAT:
        raise CheckpointError(f"{STATE} has format {state['format']}, this program reads {FORMAT}")
    return state
