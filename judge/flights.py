"""One call for one question: whoever asks what somebody is asking already waits for that outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

from judge.verdict import FINAL, Outcome, Verdict

Key = TypeVar("Key")


class Flights(Generic[Key]):
    """Questions under way. What another try cannot change is shared: verdicts, and failures of the question itself.

    Any other failure, or an asker that left, is nobody else's outcome.
    """

    def __init__(self) -> None:
        self._under_way: dict[Key, asyncio.Future[Outcome | None]] = {}

    async def share(
        self, keys: Sequence[Key], ask: Callable[[Sequence[Key]], Awaitable[Mapping[Key, Outcome]]]
    ) -> dict[Key, Outcome]:
        """An outcome per key. `ask` is called for those that nobody asks about; it answers all it is given.

        Own questions come first and end without anybody else's, so two askers never wait for each other.
        """
        found: dict[Key, Outcome] = {}
        while missing := [key for key in keys if key not in found]:
            others = {key: self._under_way[key] for key in missing if key in self._under_way}
            if mine := [key for key in missing if key not in others]:
                found |= await self._ask(mine, ask)
            for key, under_way in others.items():
                outcome = await asyncio.shield(under_way)
                if isinstance(outcome, Verdict) or (outcome is not None and outcome.failure in FINAL):
                    found[key] = outcome
        return found

    async def _ask(
        self, keys: Sequence[Key], ask: Callable[[Sequence[Key]], Awaitable[Mapping[Key, Outcome]]]
    ) -> Mapping[Key, Outcome]:
        loop = asyncio.get_running_loop()
        self._under_way.update((key, loop.create_future()) for key in keys)
        outcomes: Mapping[Key, Outcome] = {}
        try:
            outcomes = await ask(keys)
        finally:
            for key in keys:
                self._under_way.pop(key).set_result(outcomes.get(key))
        return outcomes
