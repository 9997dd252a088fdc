"""Calls that may never return, on a thread that a deadline can leave behind."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

from actors.errors import WeightSyncError

T = TypeVar("T")


class CallThread:
    """Runs calls one after the other. Unlike an executor's, its thread keeps no process from ending."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="send-weights", daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._calls.put((future, call))
        return future

    def stop(self) -> None:
        """End the thread after the calls that were submitted."""
        self._calls.put(None)

    def _run(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        while (item := self._calls.get()) is not None:
            future, call = item
            try:
                future.set_result(call())
            except (RuntimeError, OSError) as error:  # NCCL's and CUDA's are RuntimeErrors
                future.set_exception(error)
            finally:
                if not future.done():  # an error that nobody foresaw goes to the thread's own report
                    future.set_exception(RuntimeError("it ended without a result"))


def result_within(future: Future[T], seconds: float, what: str) -> T:
    """The result of a call.

    Raises:
        WeightSyncError: it failed, or is still under way after `seconds`.
    """
    try:
        return future.result(seconds)
    except TimeoutError as error:
        if future.done():
            raise WeightSyncError(f"{what}: {error}") from error
        raise WeightSyncError(f"{what} did not end within weights.timeout_s={seconds:g}") from error
    except (RuntimeError, OSError) as error:
        raise WeightSyncError(f"{what}: {error}") from error
