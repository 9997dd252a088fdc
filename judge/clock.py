"""The clock that waits are measured by."""

from __future__ import annotations

import asyncio


def loop_time() -> float:
    """Seconds on the running loop's clock, which its sleeps and deadlines go by as well. Monotonic."""
    return asyncio.get_running_loop().time()
