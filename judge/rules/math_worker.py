"""math-verify in a process of its own: it may take seconds (`9^{9^{9^9}}`) and refuses to run in a thread.

This file is both sides. A signal ends the process when a comparison has used up its time, or its input closes.
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
from concurrent.futures import ThreadPoolExecutor

CPU_DEADLINE_S = 2.0
WALL_DEADLINE_S = 30.0  # its start included: sympy takes seconds to import on a busy machine
MAX_MEMORY_BYTES = 2 * 2**30
_COMMAND = re.compile(r"\\(?:[dt]?frac|sqrt|pi|cdot|times|left|right|sin|cos|tan|[ !,])(?![A-Za-z])")
_EXPRESSION = re.compile(r"[A-Za-z0-9\s+\-*/^(){}!√π×·]{1,120}")
_MATH = re.compile(r"\\[a-z]|[√π^!]|[A-Za-z0-9)] ?[-+*/] ?[A-Za-z(]|\d[A-Za-z]\b|\d\(")
_UNCLEAR = re.compile(
    # Powers and factorials that take long; chemistry; `3 1/2`; `1/2x`; words.
    r"\^[^+\-*/]*\^|\^\s*\{?-?\d{3}|\d{3}!|!!|[A-Za-z]\d|\d\s+\d|/ ?\w+ ?[A-Za-z(√π]|[A-Za-z]{4}|[a-z]{2,} [a-z]{2,}"
)


def looks_like_math(reference: str, prediction: str) -> bool:
    """Expressions that math-verify compares as strictly as we want: no equations, lists, intervals, units, decimals.

    It reads `A` and `a` as the same letter. `24 * 17` is no answer where 408 is right.
    """
    plain = [_COMMAND.sub(" ", side) for side in (reference, prediction)]
    letters = [sorted(set(re.findall("[A-Za-z]", side))) for side in plain]
    is_clear = all(_EXPRESSION.fullmatch(side) and not _UNCLEAR.search(side) for side in plain)
    return is_clear and letters[0] == letters[1] and _MATH.search(reference) is not None


class MathWorker:
    """Owner of the process: starts it when first needed, keeps it, and starts another when it has died.

    Mutable: it holds the process. One thread asks, so that no event loop is held up, and one question at a time.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="math-worker")

    async def is_equal(self, reference: str, prediction: str) -> bool:
        """Whether math-verify calls them equal. False is no verdict: it may have run out of time."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._ask, reference, prediction)

    def _ask(self, reference: str, prediction: str) -> bool:
        if self._process is None or self._process.poll() is not None:
            self.close()
            # -P: this file's folder must not come before the standard library.
            command, pipe = [sys.executable, "-P", __file__], subprocess.PIPE
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, start_new_session=True
            )
        questions, answers = self._process.stdin, self._process.stdout
        assert questions is not None
        assert answers is not None
        try:
            print(json.dumps([reference, prediction]), file=questions, flush=True)
            poll = select.poll()  # not select(), which refuses the 1025th open file
            poll.register(answers, select.POLLIN)
            line = answers.readline() if poll.poll(WALL_DEADLINE_S * 1000) else ""
        except OSError:
            line = ""
        if not line:
            self.close()
        return line == "equal\n"

    def close(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


WORKER = MathWorker()  # one for all judges of this process
atexit.register(WORKER.close)


def _serve() -> None:
    """Answer pairs from standard input, one JSON line each, with `equal` or `open`."""
    import logging
    import resource

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    verify(parse("$\\frac{x}{2}$"), parse("$x/2$"))  # the first one takes long
    for line in sys.stdin:
        # The default action of the signal ends the process, also where it is deep in a multiplication.
        signal.setitimer(signal.ITIMER_PROF, CPU_DEADLINE_S)
        sides = [parse(f"${side}$", parsing_timeout=None) for side in json.loads(line)]
        is_equal = all(sides) and verify(*sides, float_rounding=12, timeout_seconds=None)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print("equal" if is_equal else "open", flush=True)


if __name__ == "__main__":
    _serve()
