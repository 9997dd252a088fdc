"""Hooks on the model in vLLM's own process, for `engine_counters`."""

from __future__ import annotations

import time
from typing import Any

import torch

from actors.engine.vllm_extension import WeightExtension


class CountingExtension(WeightExtension):
    model_runner: Any
    _clocks: dict[str, _Clock] | None = None

    def start_counting(self) -> None:
        """Count from now on; eager mode only, as a captured graph runs no hooks."""
        if self._clocks is None:
            model = self.model_runner.get_model()
            self._clocks = {"encoder": _Clock(model.visual), "language": _Clock(model)}
            model.visual.register_forward_pre_hook(self._count_pictures, with_kwargs=True)
        self._num_pictures = 0
        for clock in self._clocks.values():
            clock.spans.clear()

    def counted(self) -> dict[str, float]:
        """Pictures that the tower encoded, and the device's seconds in it and in the language model."""
        assert self._clocks is not None, "start_counting comes first"
        seconds = {f"{name}_s": clock.seconds() for name, clock in self._clocks.items()}
        return {"pictures": self._num_pictures, **seconds}

    def _count_pictures(self, module: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        grids = named["grid_thw"] if "grid_thw" in named else positional[1]
        self._num_pictures += len(grids)


class _Clock:
    """Seconds between the start and the end of a module's calls, by events on the device where there is one."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.spans: list[tuple[Any, Any]] = []
        self._started: Any = None
        module.register_forward_pre_hook(self._start)
        module.register_forward_hook(self._stop)

    def seconds(self) -> float:
        if not torch.cuda.is_available():
            return sum(stop - start for start, stop in self.spans)
        torch.cuda.synchronize()
        return sum(start.elapsed_time(stop) for start, stop in self.spans) / 1000

    def _start(self, *_: Any) -> None:
        self._started = _now()

    def _stop(self, *_: Any) -> None:
        self.spans.append((self._started, _now()))


def _now() -> Any:
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
