"""math-verify in a process of its own: it may take seconds (`9^{9^{9^9}}`) and refuses to run in a thread.

The same file is both sides. `MathWorker` starts the process when it is first needed, keeps it, and starts another when
one has died. The process ends itself: by SIGALRM when one comparison takes too long, whatever it is computing, and
when its standard input closes, so it outlives its owner by one deadline at most.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import re
import select
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

DEADLINE_S = 2.0
START_S = 60.0
"""sympy takes seconds to import on a busy machine."""
MAX_CHARS = 120
MAX_MEMORY_BYTES = 2 * 2**30
_MATH = re.compile(r"\\[dt]?frac|\\sqrt|\\pi|[√π^]|\\(?:cdot|times)|[0-9)][A-Za-z(]|[A-Za-z)]\s*[-+*/]|!")
_NOT_ALONE = re.compile(
    r"[,;:%$€£'\"&|°]|\\[{}%]|\\(?:text|mathrm|circ|cup|cap|in|pm|infty|log|sum|int)\b|[∪∩±∞]|\b(?:or|and)\b|\d\.\d"
)
"""Lists, sets, intervals, units, percent and decimals: math-verify is generous with them."""


def looks_like_math(reference: str, prediction: str) -> bool:
    """Expressions that math-verify compares as strictly as we want: no lists, no brackets of intervals, no rounding."""
    sides = reference, prediction
    if any(len(side) > MAX_CHARS or _NOT_ALONE.search(side) or "[" in side for side in sides):
        return False
    # It reads `A` and `a` as the same letter, and takes `y = 5` for `5`.
    letters = [set(re.findall(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+|\b(?:sin|cos|tan)\b", "", side))) for side in sides]
    return (
        any(_MATH.search(side) for side in sides)
        and all(re.search(r"[\d√π\\]|[A-Za-z]\W", side) for side in sides)
        and not any(re.search(r"[A-Za-z]{4}", re.sub(r"\\[A-Za-z]+", "", side)) for side in sides)
        and letters[0] == letters[1]
        and ("=" in reference) == ("=" in prediction)
    )


class MathWorker:
    """Owner of the process. Mutable: it holds the process that it asks. Any thread and any event loop may ask."""

    def __init__(self, *, deadline_s: float = DEADLINE_S) -> None:
        self._deadline_s = deadline_s
        self._process: subprocess.Popen[str] | None = None
        self._turn = threading.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="math-worker")

    async def is_equal(self, reference: str, prediction: str) -> bool:
        """Whether math-verify calls them equal. False is no verdict: it may have run out of time."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.ask, reference, prediction)

    def ask(self, reference: str, prediction: str) -> bool:
        """Blocks, for the deadline at most, or until a new process is up."""
        with self._turn:
            process = self._running()
            if process is None:
                return False
            try:
                print(json.dumps([reference, prediction, self._deadline_s]), file=process.stdin, flush=True)
                return self._line(process, self._deadline_s + 1) == "equal"
            except OSError:
                self._stop()
                return False

    def close(self) -> None:
        with self._turn:
            self._stop()

    def _running(self) -> subprocess.Popen[str] | None:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()
        # -P: this file's folder must not come before the standard library.
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        return self._process if self._line(self._process, START_S) == "ready" else None

    def _line(self, process: subprocess.Popen[str], timeout_s: float) -> str:
        """Its next line; empty, and the process gone, where none comes in time."""
        assert process.stdout is not None
        is_there, _, _ = select.select([process.stdout], [], [], timeout_s)
        line = process.stdout.readline().strip() if is_there else ""
        if not line:
            self._stop()
        return line

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


WORKER = MathWorker()
"""One process for all judges of this process."""
atexit.register(WORKER.close)


def _serve() -> None:
    """Answer pairs from standard input, one JSON line each, with `equal` or `unequal`."""
    import logging
    import resource

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    print("ready", flush=True)
    for line in sys.stdin:
        reference, prediction, deadline_s = json.loads(line)
        # The default action of SIGALRM ends the process, also where it is deep in a multiplication.
        signal.setitimer(signal.ITIMER_REAL, deadline_s)
        sides = [parse(f"${side}$", parsing_timeout=None) for side in (reference, prediction)]
        is_equal = all(sides) and verify(*sides, float_rounding=12, timeout_seconds=None)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print("equal" if is_equal else "unequal", flush=True)


if __name__ == "__main__":
    _serve()
