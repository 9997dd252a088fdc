"""The whole state of a learner as DeepSpeed itself gathers it: what shares are compared with."""

from __future__ import annotations

from collections.abc import Iterator

from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import Tensor

from learner.engine import LearnerEngine
from learner.state.partition import MOMENTS


def whole_state(engine: LearnerEngine) -> Iterator[tuple[str, Tensor]]:
    """(`weight|exp_avg|exp_avg_sq` / name, whole float32 tensor) of trained parameters. A collective."""
    for name, parameter in engine._trained():
        if engine._stage == 0:
            yield f"weight/{name}", parameter.detach()
            for moment in MOMENTS:
                yield f"{moment}/{name}", engine._engine.optimizer.state[parameter][moment]
        else:
            yield f"weight/{name}", safe_get_full_fp32_param(parameter)
            for moment in MOMENTS:
                yield f"{moment}/{name}", safe_get_full_optimizer_state(parameter, moment)
