"""The random generators of a rank, as arrays of bytes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray


def rng_states() -> dict[str, NDArray[np.uint8]]:
    """The random generators of this process, by device."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {device: state.numpy().copy() for device, state in states.items()}


def restore_rng(states: Mapping[str, NDArray[np.uint8]]) -> None:
    """Take over what `rng_states` returned; the state of a device that this process lacks is left out."""
    torch.set_rng_state(torch.from_numpy(states["cpu"].copy()))
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state(torch.from_numpy(states["cuda"].copy()))
