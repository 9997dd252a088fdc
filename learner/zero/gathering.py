"""Gathering the shards of ZeRO-3: its order, remembered per kind of call, and taking part in it for other ranks.

DeepSpeed 0.19.8 looks ahead in the order of modules that it saw in the calls before, and forgets it at the first module
that comes in another. A learner alternates between vision passes and micro-batches, which have different orders.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Hashable, Iterable
from typing import Any


class GatherOrders:
    """Lets DeepSpeed's coordinator of gathers follow the order of one kind of call at a time.

    Switch between calls alone, after the backward pass of one that has any: nothing is gathered then.
    """

    def __init__(self, optimizer: Any) -> None:
        """`optimizer` is a DeepSpeed engine's, before its first forward pass."""
        self._offload = getattr(optimizer, "parameter_offload", optimizer)
        self._unused = self._offload.param_coordinator
        self._by_kind: dict[Hashable, Any] = {}

    def follow(self, kind: Hashable) -> None:
        if kind not in self._by_kind:
            # A copy shares the streams and the register of gathers in flight; the order must be its own.
            self._by_kind[kind] = copy.copy(self._unused)
            self._by_kind[kind]._clear_trace_structures()
        self._offload.param_coordinator = self._by_kind[kind]


def join_collective(items: Iterable[object]) -> None:
    """Iterate to the end, to take part in the collectives behind it, and discard the items: another rank uses them."""
    deque(items, maxlen=0)
