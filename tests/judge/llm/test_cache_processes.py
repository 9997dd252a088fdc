"""A verdict cache that several processes write, one of which may be killed."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from judge.llm.cache import VerdictCache
from tests.judge.llm.judged import answer

ROOT = Path(__file__).resolve().parents[3]


WRITER = """
import asyncio, sys
from pathlib import Path
from judge.llm.cache import JudgedAnswer, VerdictCache, verdict_key
from judge.verdict import Verdict

async def main(path, name, num_groups):
    cache = VerdictCache(Path(path), print)
    for group in range(num_groups):
        shared = f"{group}"
        answers = [
            JudgedAnswer(
                question="q" * 200, reference="r", prediction=f"{prediction}-{name}-{group}" if prediction else shared,
                verdict=Verdict(is_correct=True, judge=name, reason=name * 50, judge_version="v"),
            )
            for prediction in range(8)
        ]
        await asyncio.gather(*map(cache.put, answers))
        found = await cache.get([answer.key for answer in answers])
        assert len(found) == 8
        print(group, found[answers[0].key].judge, flush=True)
    cache.close()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def start_writer(path: Path, name: str, num_groups: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(num_groups)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def count(path: Path, where: str = "1") -> int:
    with sqlite3.connect(path) as reader:
        (number,) = reader.execute(f"SELECT count(*) FROM verdicts_3 WHERE {where}").fetchone()
    reader.close()
    return number


def test_many_drivers_write_one_file_at_once(tmp_path):
    """They make the file together as well, and all see the same first verdict on what they share."""
    path = tmp_path / "verdicts.sqlite"
    writers = [start_writer(path, f"w{number}", 40) for number in range(4)]
    done = [writer.communicate(timeout=100) for writer in writers]
    assert [errors for _, errors in done if errors] == []
    assert [writer.returncode for writer in writers] == [0] * 4
    assert len({output for output, _ in done}) == 1, "the group's shared key has one verdict for everybody"
    assert count(path) == 40 + 4 * 40 * 7


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.05])
def test_a_kill_in_mid_write_leaves_whole_verdicts(tmp_path, delay_s):
    path = tmp_path / "verdicts.sqlite"
    writer = start_writer(path, "w", 100_000)
    assert writer.stdout is not None
    for _ in range(20):
        writer.stdout.readline()
    time.sleep(delay_s)
    os.kill(writer.pid, signal.SIGKILL)
    output, _ = writer.communicate(timeout=60)
    num_told = 20 + len([line for line in output.splitlines() if line.endswith(" w")])
    cache = VerdictCache(path, print)  # opens, and writes on
    asyncio.run(cache.put(answer()))
    keys = [row[0] for row in sqlite3.connect(path).execute("SELECT key FROM verdicts_3")]
    assert len(asyncio.run(cache.get(keys))) == len(keys), "every row is what was written"
    cache.close()
    assert count(path, 'answer LIKE \'%"judge": "w"%\'') >= 8 * num_told
