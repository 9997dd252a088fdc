"""How far the sender is with a version in shared memory, for receivers that read it meanwhile.

Two words behind the bytes of the version say which one it is and how many of its bytes are there. What a receiver reads
too early or too late has another digest than what was sent.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from actors.errors import WeightSyncError

PAGE_BYTES = 4096
"""Size of the page with the two words."""
NO_VERSION = -1
POLL_S = 1e-4
"""Between two looks at the words."""
SIGN_OF_LIFE_S = 0.05
"""Between two looks whether the sender's file is still there."""


class Progress:
    """The two words in a page of memory, uint8 [PAGE_BYTES], that sender and receivers share."""

    def __init__(self, page: Tensor) -> None:
        self._words = page.view(torch.int64).numpy()

    def begin(self, version: int) -> None:
        self._words[1] = 0  # first: nobody takes the bytes of an earlier version for this one's
        self._words[0] = version

    def advance(self, num_bytes: int) -> None:
        """So many bytes are there, from the beginning on."""
        self._words[1] = num_bytes

    def end(self) -> None:
        """Nobody may start to follow this version any more."""
        self._words[0] = NO_VERSION

    def written(self, version: int) -> int | None:
        """Bytes of this version that are there; None if it has not begun, or is over."""
        return int(self._words[1]) if int(self._words[0]) == version else None


class Follower:
    """Waits for the bytes of one version.

    Args:
        files: that it may come in, by path. They exist as long as the sender does.
        leave: set by another thread, it ends all waiting.
    """

    def __init__(
        self, files: Mapping[str, Progress], version: int, *, timeout_s: float, leave: threading.Event
    ) -> None:
        self._files = files
        self._version = version
        self._timeout_s = timeout_s
        self._give_up_at = time.monotonic() + timeout_s
        self._look_again_at = 0.0
        self._leave = leave

    def find(self) -> str:
        """The file that the version comes in, once it has begun.

        Raises:
            WeightSyncError: it did not begin in time, or the sender is gone.
        """
        while True:
            for path, progress in self._files.items():
                if progress.written(self._version) is not None:
                    return path
            self._pause("did not begin")

    def wait(self, path: str, num_bytes: int) -> None:
        """Return once the first `num_bytes` of the version are there.

        Raises:
            WeightSyncError: they did not come in time, or the sender is gone.
        """
        while (written := self._files[path].written(self._version)) is None or written < num_bytes:
            if written is None:
                raise WeightSyncError(f"version {self._version} of the weights in {path} was given up")
            self._pause(f"stopped at byte {written}")

    def _pause(self, what: str) -> None:
        if self._leave.wait(POLL_S):
            raise WeightSyncError(f"left the learner before version {self._version} was there")
        now = time.monotonic()
        if now >= self._give_up_at:
            raise WeightSyncError(f"version {self._version} {what} within weights.timeout_s={self._timeout_s:g}")
        if now >= self._look_again_at:
            self._look_again_at = now + SIGN_OF_LIFE_S
            for path in self._files:
                if not os.path.exists(path):
                    raise WeightSyncError(f"weights in {path} cannot be read: the learner is gone")
