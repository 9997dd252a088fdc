"""Ray's LLM server as a judge runs it. Loaded by its dotted name, in processes that serve: it imports vLLM."""

from __future__ import annotations

from typing import Any

from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.serve.llm.deployment import LLMServer

from actors.engine.owner import own_engines


class LocalModel(CallbackBase):  # type: ignore[misc]
    """The model lies on every node: none is fetched, which spares each start a process that imports vLLM to do so."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.ctx.run_init_node = False


class JudgeLLMServer(LLMServer):  # type: ignore[misc]
    """Owns its engine, which ends with it whatever happens (see `actors.engine.owned_worker`).

    Reports to nobody: the server's telemetry is an actor that imports vLLM too and outlives the application.
    """

    async def _start_engine(self) -> None:
        own_engines()
        assert self.engine is not None
        await self.engine.start()
