"""What vLLM's own worker process runs for us: taking versions of the weights while the engine goes on generating.

vLLM loads this module inside its engine process (`worker_extension_cls`) and mixes `WeightExtension` into its worker;
`vllm_engine.py` calls the methods by name through `collective_rpc`, and vLLM runs them between two of its steps. What
waits for another process has a thread of its own instead, which a deadline can leave behind.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from vllm.platforms import current_platform

from actors.engine.owner import end_with_owner
from actors.engine.transfer import RECEIVERS, BucketReceiver, BucketUpdate, backend
from actors.errors import WeightSyncError
from actors.weights.layout import WeightLayout

if current_platform.is_cpu():
    # oneDNN packs every linear weight into a copy of its own and drops the original, so that new weights could not be
    # written in place. The plain path multiplies with the parameter itself.
    from vllm import _custom_ops

    _custom_ops._supports_onednn = False

BRIEFLY_S = 0.002
"""For which a call that was started is waited for: what ends within it needs no other question. Digests of parameters
that are read in place are started in less."""

end_with_owner()
for _transport in RECEIVERS:  # vLLM looks its engine up by name
    backend(_transport)


class WeightExtension:
    """Mixed into vLLM's worker, whose `weight_transfer_engine` it uses."""

    weight_transfer_engine: BucketReceiver
    model_config: Any
    device: torch.device
    _waiting: _Background | None = None

    def connect_weights(self, plain_layout: dict[str, Any], settings: dict[str, Any]) -> tuple[bool, str]:
        """Start to join the learner; `weights_arrived` says when that is done."""
        layout, may_move = WeightLayout.from_plain(plain_layout), bool(self.model_config.enforce_eager)
        return self._start(lambda: self.weight_transfer_engine.connect(layout, settings, may_move=may_move))

    def receive_weights(self, delivery: dict[str, Any]) -> tuple[bool, str]:
        """Start to receive a version; `weights_arrived` says when that is done."""

        def receive() -> None:
            self.weight_transfer_engine.start_weight_update()
            self.weight_transfer_engine.receive_weights(BucketUpdate(delivery=delivery))

        return self._start(receive)

    def weights_arrived(self) -> tuple[bool, str]:
        """(whether what was started last has ended, why it failed or an empty text)."""
        assert self._waiting is not None, "nothing was started"
        return self._waiting.has_ended, self._waiting.failure

    def commit_weights(self, digests: list[int]) -> str:
        """Use the version that arrived.

        Returns what is wrong, or an empty text: the parameters may then hold anything.
        """
        try:
            found = self.weight_transfer_engine.digests()
        except WeightSyncError as error:
            return str(error)
        wrong = [index for index, (sent, got) in enumerate(zip(digests, found, strict=True)) if sent != got]
        if wrong:
            return f"the checksum of bucket {wrong[0]} differs from what the learner sent"
        self.weight_transfer_engine.finish_weight_update()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # the learner uses its memory again from here on
        return ""

    def disconnect_weights(self) -> None:
        """Leave the learner, also in the middle of a transfer that never ends."""
        self.weight_transfer_engine.shutdown()

    def weights_are_staged(self) -> bool:
        """Whether a version can arrive while the engine generates."""
        return self.weight_transfer_engine.is_staged

    def _start(self, call: Callable[[], None]) -> tuple[bool, str]:
        self._waiting = _Background(call, self.device, after=self._waiting)
        self._waiting.thread.join(BRIEFLY_S)
        return self.weights_arrived()


class _Background:
    """One call on a daemon thread, which starts when an earlier one has ended: it may have been left behind."""

    def __init__(self, call: Callable[[], None], device: torch.device, *, after: _Background | None) -> None:
        self.failure = ""
        # All of it goes to the thread, which lets go of it at its end: a chain of calls would hold all of them.
        self.thread = threading.Thread(target=self._run, args=(call, device, after), name="weights", daemon=True)
        self.thread.start()

    @property
    def has_ended(self) -> bool:
        return not self.thread.is_alive()

    def _run(self, call: Callable[[], None], device: torch.device, after: _Background | None) -> None:
        self.failure = "it ended without a result"
        if after is not None:
            after.thread.join()
        try:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            call()
            self.failure = ""
        except (WeightSyncError, RuntimeError, ValueError, OSError) as error:  # NCCL's and CUDA's are RuntimeErrors
            self.failure = f"{type(error).__name__}: {error}"
