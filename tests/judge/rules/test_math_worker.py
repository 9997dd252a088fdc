"""math-verify in a process of its own."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

from judge.rules import math_worker
from judge.rules.math_worker import MathWorker, looks_like_math

TOWER = "9^{9^{9^{9}}}"


@pytest.fixture
def worker():
    it = MathWorker()
    yield it
    it.close()


async def test_it_is_kept_between_questions_and_says_what_is_equal(worker):
    assert await worker.is_equal("\\frac{x+1}{2}", "(x+1)/2")
    first = worker._process.pid
    assert not await worker.is_equal("5\\sqrt{2}", "2\\sqrt{5}")
    assert not await worker.is_equal("\\frac{", "}{")
    assert await worker.is_equal("n!/n", "(n-1)!")
    assert worker._process.pid == first


async def test_a_comparison_without_end_costs_its_deadline_and_the_next_one_is_answered(worker):
    assert await worker.is_equal("x+1", "1+x")
    started = time.process_time()
    assert not await worker.is_equal("1", TOWER)
    assert time.process_time() - started < 0.5, "the time was spent elsewhere"
    assert await worker.is_equal("x+1", "1+x")


async def test_the_event_loop_runs_on_meanwhile(worker):
    asked = asyncio.create_task(worker.is_equal("1", TOWER))
    num_turns = 0
    while not asked.done():
        await asyncio.sleep(0.01)
        num_turns += 1
    assert num_turns > 50


async def test_a_process_that_was_killed_is_replaced(worker):
    assert await worker.is_equal("x+1", "1+x")
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._process.wait(timeout=10)
    assert await worker.is_equal("x+1", "1+x")


@pytest.mark.parametrize("is_busy", [False, True])
def test_it_does_not_outlive_an_owner_that_was_killed(is_busy):
    owner = (
        "import time\n"
        "from judge.rules.math_worker import WORKER\n"
        "WORKER._ask('x+1', '1+x')\n"
        "print(WORKER._process.pid, flush=True)\n"
        f"WORKER._ask('1', {TOWER!r}) if {is_busy} else time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", owner], stdout=subprocess.PIPE, text=True) as process:
        pid = int(process.stdout.readline())
        time.sleep(0.5)
        process.kill()
    deadline = time.monotonic() + 10 * math_worker.CPU_DEADLINE_S
    while _runs(pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    """Neither gone nor a zombie that nobody has waited for."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("reference", "prediction"),
    [
        ("2^{10}", TOWER),
        ("408", "17*24"),
        ("120", "5!"),
        ("(1, 5)", "\\{1, 5\\}"),
        ("2, 3", "3, 2"),
        ("10\\%", "10"),
        ("x = 5", "5"),
        ("A+B", "a+b"),
        ("10/12", "5/6"),
        ("H2O+C", "2HO+C"),
        ("\\frac{3}{2}", "3 1/2"),
        ("x/2y", "xy/2"),
        ("0.33+x", "\\frac{1}{3}+x"),
        ("\\text{red}", "red"),
        ("x^2", "x" * 200),
    ],
)
def test_it_is_not_asked_where_it_is_generous_or_slow(reference, prediction):
    assert not looks_like_math(reference, prediction)


def test_importing_the_rules_imports_neither_sympy_nor_pint():
    program = "import sys, judge.rules.judge; print([n for n in ('sympy', 'math_verify', 'pint') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
