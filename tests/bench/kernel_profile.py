"""Where the time of an update goes on a GPU: kernels by class and by stage, and when the device is idle.

    with staged(engine), recorded(path):
        ...
    print(table(json.loads(path.read_text())))

A kernel belongs to the innermost `stage` during which it was launched, by whatever thread: the caller of a backward
pass waits for the thread that launches its kernels. Idle time belongs to the stage of the kernel that ends it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from learner.batches.collate import VisionPass
from learner.engine import LearnerEngine
from learner.scoring import _ChunkedScores

STAGE = "stage: "
CLASSES = {
    "attention": r"flash|fmha|attention|convert_d[kq]",
    "matmul": r"gemm|cutlass|nvjet|xmma|splitK|cublas",
    "optimizer": r"adam|FusedOptimizer",
    "compiled": r"^triton_",
    "norm": r"norm|GammaBeta|RowwiseMoments",
    "reduction": r"reduce_kernel|softmax|logsumexp",
    "index": r"index|gather|scatter|embedding|radix|Sort|sort",
    "nccl": r"nccl",
    "copy": r"Mem(cpy|set)|copy_kernel|CatArray|FillFunctor|unrolled_elementwise.*Copy|LoadWithCast",
    "elementwise": r"elementwise|multi_tensor_apply",
}
"""Class of a kernel: the first whose pattern is in its name."""
IDLE = "idle"


def stage(name: str) -> record_function:
    """Kernels that the body launches belong to this stage."""
    return record_function(STAGE + name)


@contextmanager
def recorded(path: Path) -> Iterator[None]:
    """Record the body, which ends with the device idle, as a Chrome trace."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        yield
        torch.cuda.synchronize()
    profiler.export_chrome_trace(str(path))


@contextmanager
def staged(engine: LearnerEngine) -> Iterator[None]:
    """Within the body, the passes and steps of this engine are stages."""
    forward, deepspeed = LearnerEngine.__call__, engine._engine
    open_stages: list[record_function] = []

    def enter_tower(gradient: Tensor) -> Tensor:
        open_stages.append(stage("tower backward"))
        open_stages[-1].__enter__()
        return gradient

    def call(self: LearnerEngine, *inputs: Any) -> Any:
        is_tower = isinstance(inputs[0], VisionPass)
        with stage("tower forward" if is_tower else "language forward"):
            outputs = forward(self, *inputs)
            if is_tower and outputs.requires_grad:
                outputs.register_hook(enter_tower)
            return outputs

    def in_stage(name: str, work: Callable[..., Any], *, ends_tower: bool = False) -> Callable[..., Any]:
        def inside(*given: Any, **named: Any) -> Any:
            while ends_tower and open_stages:
                open_stages.pop().__exit__(None, None, None)
            with stage(name):
                return work(*given, **named)

        return inside

    model: Any = engine.module.model
    head, head_backward = model.lm_head, _ChunkedScores.backward
    with (
        mock.patch.object(LearnerEngine, "__call__", call),
        mock.patch.object(engine, "backward", in_stage("backward", engine.backward)),
        mock.patch.object(engine, "backward_through", in_stage("tower backward", engine.backward_through)),
        mock.patch.object(engine, "step", in_stage("optimizer", engine.step)),
        mock.patch.object(head, "forward", in_stage("head", head.forward)),
        mock.patch.object(_ChunkedScores, "backward", staticmethod(in_stage("head", head_backward))),
        mock.patch.object(
            deepspeed,
            "_backward_epilogue",
            in_stage("sum of gradients", deepspeed._backward_epilogue, ends_tower=True),
        ),
    ):
        yield


def kernel_class(name: str) -> str:
    return next((each for each, pattern in CLASSES.items() if re.search(pattern, name)), "other")


def device_times(events: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, float, float]]:
    """(stage, name, microseconds, idle microseconds before it) of each kernel and copy, in order."""
    stages = sorted(
        (event["ts"], event["ts"] + event["dur"], event["name"].removeprefix(STAGE))
        for event in events
        if event.get("cat") == "user_annotation" and event["name"].startswith(STAGE)
    )
    starts = [start for start, _, _ in stages]
    launched = {
        event["args"]["correlation"]: event["ts"]
        for event in events
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get("args", {})
    }

    def stage_at(at: float) -> str:
        before = stages[: bisect_right(starts, at)]
        return next((name for _, stop, name in reversed(before) if at <= stop), "outside")

    found, free_at = [], None
    kernels = (event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"))
    for event in sorted(kernels, key=lambda event: event["ts"]):
        start, stop = event["ts"], event["ts"] + event["dur"]
        idle = 0.0 if free_at is None else max(0.0, start - free_at)
        busy = stop - start if free_at is None else max(0.0, stop - max(start, free_at))
        free_at = stop if free_at is None else max(free_at, stop)
        at = launched.get(event["args"].get("correlation"))
        found.append(("outside" if at is None else stage_at(at), event["name"], busy, idle))
    return found


def table(trace: Mapping[str, Any], *, most: int = 40) -> str:
    """Milliseconds by stage and class, then the kernels that take longest."""
    cells: defaultdict[tuple[str, str], float] = defaultdict(float)
    kernels: defaultdict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    order: dict[str, None] = {}
    for of, name, busy, idle in device_times(trace["traceEvents"]):
        order[of] = None
        counts[of] += 1
        cells[of, kernel_class(name)] += busy / 1e3
        cells[of, IDLE] += idle / 1e3
        kernels[name] += busy / 1e3
        counts[name] += 1
    columns = [*CLASSES, "other", IDLE]
    rows = [[*(cells[of, column] for column in columns)] for of in order]
    rows.append([sum(row[i] for row in rows) for i in range(len(columns))])
    lines = [f"{'ms':<24}" + "".join(f"{column:>12}" for column in [*columns, "all", "launches"])]
    for of, row in zip([*order, "all"], rows, strict=True):
        launches = counts[of] if of in order else sum(counts[each] for each in order)
        lines.append(f"{of:<24}" + "".join(f"{value:12.1f}" for value in [*row, sum(row)]) + f"{launches:12d}")
    longest = sorted(kernels.items(), key=lambda item: -item[1])[:most]
    lines += [
        f"{spent:9.1f} ms {counts[name]:7d} x  {kernel_class(name):<12} {_short(name)}" for name, spent in longest
    ]
    return "\n".join(lines)


def _short(name: str) -> str:
    return re.sub(r"\s+|at::native::|void |c10::", "", name)[:150]
