"""Chains of elementwise operations as single kernels on a GPU, by torch.compile.

On a CPU the functions run as they are written, and so they do on a GPU without a compiler (`allow_fusing`). Only
functions of tensors are compiled, no modules: nothing of DeepSpeed's hooks or of recomputation is in a graph.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])
logger = logging.getLogger(__name__)


def fuse(function: Function, *, tokens_at: Sequence[int]) -> Function:
    """The same function, compiled where its first argument is on a GPU.

    Args:
        tokens_at: the dimension of tokens in each of the first arguments. Their number differs from call to call; a
            change of any other size compiles anew.
    """

    @functools.wraps(function)
    def run(*given: Any) -> Any:
        if given[0].device.type != "cuda":
            return function(*given)
        return run_compiled(function, given, tokens_at)

    return run  # type: ignore[return-value]


def run_compiled(function: Callable[..., Any], given: Sequence[Any], tokens_at: Sequence[int]) -> Any:
    """Call a function compiled, on whatever device."""
    for tensor, dim in zip(given, tokens_at, strict=False):
        torch._dynamo.maybe_mark_dynamic(tensor, dim % tensor.ndim)
    return _compiled(function)(*given)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # The kernels are few: processes that compile beside each other would take longer to start.
    return torch.compile(function, dynamic=False, options={"compile_threads": 1})


def allow_fusing(allowed: bool) -> None:
    """Whether this process compiles; it does not where a compiler is missing."""
    if allowed and (missing := _missing()):
        logger.warning("learner.compile=true: %s is missing, elementwise operations run one by one", missing)
        allowed = False
    torch.compiler.set_stance("default" if allowed else "force_eager")


def _missing() -> str | None:
    """What Triton needs of the machine and does not find."""
    if not torch.utils._triton.has_triton():
        return "Triton"
    compilers = [os.environ.get("CC", ""), "gcc", "clang"]
    return None if any(map(shutil.which, filter(None, compilers))) else "a C compiler (gcc, clang or CC)"
