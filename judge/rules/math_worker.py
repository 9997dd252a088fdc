"""math-verify in a process of its own: it may take seconds (`9^{9^{9^9}}`) and refuses to run in a thread.

The same file is both sides. The process ends itself, by a signal when one comparison has used up its time, whatever it
is computing, and when its standard input closes: it outlives its owner by one deadline at most.
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

CPU_DEADLINE_S = 2.0
WALL_DEADLINE_S = 10.0
START_S = 60.0
"""sympy takes seconds to import on a busy machine."""
MAX_CHARS = 120
MAX_MEMORY_BYTES = 2 * 2**30
_COMMAND = re.compile(r"\\(?:[dt]?frac|sqrt|pi|cdot|times|left|right|sin|cos|tan|[ !,])(?![A-Za-z])")
_EXPRESSION = re.compile(r"[A-Za-z0-9\s+\-*/^(){}!√π×·]+")
_MATH = re.compile(r"\\[a-z]|[√π^!]|[A-Za-z0-9)] ?[-+*/] ?[A-Za-z(]|\d[A-Za-z]\b|\d\(")
_UNCLEAR = re.compile(
    # Powers and factorials that take long; chemistry; `3 1/2`; `1/2x`; words.
    r"\^[^+\-*/]*\^|\^\s*\{?-?\d{3}|\d{3}!|!!|[A-Za-z]\d|\d\s+\d|/ ?\w+ ?[A-Za-z(√π]|[A-Za-z]{4}|[A-Za-z]{2,} [A-Za-z]{2,}"
)


def looks_like_math(reference: str, prediction: str) -> bool:
    """Expressions that math-verify compares as strictly as we want: no lists, intervals, units, percent, decimals."""
    plain = [_COMMAND.sub(" ", side) for side in (reference, prediction)]
    if any(len(side) > MAX_CHARS or not _EXPRESSION.fullmatch(side) or _UNCLEAR.search(side) for side in plain):
        return False
    # It reads `A` and `a` as the same letter, and takes `y = 5` for `5`. Numbers by themselves may be dates, or scores.
    letters = [set(re.findall("[A-Za-z]", side)) for side in plain]
    # `24 * 17` is no answer where 408 is right: an expression stands for another one only.
    return letters[0] == letters[1] and _MATH.search(reference) is not None


class MathWorker:
    """Owner of the process: starts it when first needed, keeps it, and starts another when it has died.

    Mutable: it holds the process that it asks. Any event loop may ask.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._turn = threading.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="math-worker")

    async def is_equal(self, reference: str, prediction: str) -> bool:
        """Whether math-verify calls them equal. False is no verdict: it may have run out of time."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.ask, reference, prediction)

    def ask(self, reference: str, prediction: str) -> bool:
        """Blocks until there is an answer, or a deadline has passed."""
        with self._turn:
            if self._process is None or self._process.poll() is not None:
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
                if self._line(self._process, START_S) != "ready":
                    return False
            try:
                print(json.dumps([reference, prediction]), file=self._process.stdin, flush=True)
            except OSError:
                return False
            return self._line(self._process, WALL_DEADLINE_S) == "equal"

    def close(self) -> None:
        with self._turn:
            self._stop()

    def _line(self, process: subprocess.Popen[str], timeout_s: float) -> str:
        """Its next line; empty, and the process gone, where none comes in time."""
        assert process.stdout is not None
        is_there, _, _ = select.select([process.stdout], [], [], timeout_s)
        if not (line := process.stdout.readline().strip() if is_there else ""):
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
        # The default action of the signal ends the process, also where it is deep in a multiplication.
        signal.setitimer(signal.ITIMER_PROF, CPU_DEADLINE_S)
        sides = [parse(f"${side}$", parsing_timeout=None) for side in json.loads(line)]
        is_equal = all(sides) and verify(*sides, float_rounding=12, timeout_seconds=None)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print("equal" if is_equal else "unequal", flush=True)


if __name__ == "__main__":
    _serve()
