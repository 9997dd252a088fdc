"""Verdicts on disk: what is kept, under which key, and what a kill, a crowd or a damaged file do to it."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import JudgeError
from judge.llm.cache import JudgedAnswer, VerdictCache, verdict_key
from judge.verdict import Usage, Verdict

ROOT = Path(__file__).resolve().parents[3]
KEY = "a4d80844ad44de822fcfb1fb43bf7595fd89a038c9b39ca691e4d12a78b4ca0b"
LLM = Verdict(
    is_correct=True,
    judge="openai",
    reason="same thing",
    judge_version="v1",
    usage=Usage(num_calls=1, prompt_tokens=90, reply_tokens=3),
)


def answer(prediction: str = "red", *, is_correct: bool = True, version: str = "v1") -> JudgedAnswer:
    verdict = Verdict(
        is_correct=is_correct, judge="openai", reason="said so", judge_version=version, usage=Usage(num_calls=1)
    )
    return JudgedAnswer(question="what colour?", reference="red", prediction=prediction, verdict=verdict)


@pytest.fixture
def cache(tmp_path):
    opened = VerdictCache(tmp_path / "runs" / "verdicts.sqlite")
    yield opened
    opened.close()


async def test_a_verdict_comes_back_whole_and_free_of_charge(cache):
    kept = JudgedAnswer(question="what?", reference="red", prediction="crimson", verdict=LLM)
    await cache.put([kept])
    found = await cache.get([kept.key, verdict_key("what?", "red", "crimson", "v2")])
    assert found == {
        kept.key: Verdict(is_correct=True, judge="openai", reason="same thing", judge_version="v1", usage=Usage())
    }


async def test_verdicts_outlive_the_process_and_are_shared_by_two_drivers(cache):
    other = VerdictCache(cache.path)
    await cache.put([answer("blue", is_correct=False)])
    assert (await other.get([answer("blue").key]))[answer("blue").key].is_correct is False
    other.close()


async def test_the_first_verdict_on_a_key_stays(cache):
    await cache.put([answer(is_correct=True)])
    await cache.put([answer(is_correct=False)])
    assert (await cache.get([answer().key]))[answer().key].is_correct is True


async def test_verdicts_of_rules_are_refused(cache):
    with pytest.raises(AssertionError, match="only an LLM's verdict"):
        await cache.put([answer(version="")])


async def test_thousands_of_keys_are_read_at_once(cache):
    answers = [answer(str(number)) for number in range(3000)]
    await cache.put(answers)
    found = await cache.get([answer.key for answer in answers])
    assert list(found) != []
    assert found.keys() == {answer.key for answer in answers}
    assert await cache.get([]) == {}


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "\ud83d\ude00", "é\U0001f600", "'; DROP TABLE verdicts; --", ""])
async def test_any_text_can_be_kept(cache, text):
    kept = JudgedAnswer(question=text, reference=text, prediction=text, verdict=LLM)
    await cache.put([kept])
    assert (await cache.get([kept.key]))[kept.key].is_correct is True


async def test_people_can_look_at_what_was_decided(cache):
    await cache.put([answer("crimson")])
    with sqlite3.connect(cache.path) as reader:
        row = reader.execute("SELECT question, reference, prediction, created_at FROM verdicts").fetchone()
    reader.close()
    assert row[:3] == ("what colour?", "red", "crimson")
    assert row[3].startswith("20")
    assert row[3].endswith("Z")


def test_the_key_is_stable():
    """Of runs of all versions: a changed encoding would ask for every verdict again."""
    assert verdict_key("q", "r", "p", "v") == KEY


def test_equal_looking_texts_have_different_keys():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert verdict_key("q", composed, "p", "v") != verdict_key("q", decomposed, "p", "v")
    assert verdict_key("q", "\U0001f600", "p", "v") != verdict_key("q", "\ud83d\ude00", "p", "v")


@given(first=st.tuples(*[st.text(max_size=3)] * 4), second=st.tuples(*[st.text(max_size=3)] * 4))
def test_keys_are_equal_only_for_equal_texts(first, second):
    assert (verdict_key(*first) == verdict_key(*second)) == (first == second)


@given(text=st.text(min_size=1, max_size=8), at=st.integers(0, 8))
def test_moving_text_between_fields_changes_the_key(text, at):
    head, tail = text[:at], text[at:]
    keys = {verdict_key(head, tail, "", ""), verdict_key(text, "", "", ""), verdict_key("", head, tail, "")}
    assert len(keys) == len({(head, tail, ""), (text, "", ""), ("", head, tail)})


async def test_the_event_loop_goes_on_while_another_process_holds_the_file(cache):
    """A driver that waits for the lock still serves its other groups."""
    holder = sqlite3.connect(cache.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    put = asyncio.create_task(cache.put([answer()]))
    for _ in range(20):
        await asyncio.sleep(0.005)
    assert not put.done(), "the loop came here while the write waited"
    holder.execute("COMMIT")
    holder.close()
    await put
    assert answer().key in await cache.get([answer().key])


async def test_a_lock_that_is_never_given_back_is_an_error_and_not_a_hang(tmp_path, monkeypatch):
    monkeypatch.setattr("judge.llm.cache.BUSY_S", 0.05)
    cache = VerdictCache(tmp_path / "verdicts.sqlite")
    holder = sqlite3.connect(cache.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(JudgeError, match=r"verdicts\.sqlite was locked by another process"):
        await cache.put([answer()])
    holder.close()
    cache.close()


WRITER = """
import asyncio, sys
from pathlib import Path
from judge.llm.cache import JudgedAnswer, VerdictCache, verdict_key
from judge.verdict import Verdict

async def main(path, name, num_groups):
    cache = VerdictCache(Path(path))
    for group in range(num_groups):
        shared = f"{group}"
        answers = [
            JudgedAnswer(
                question="q" * 200, reference="r", prediction=f"{prediction}-{name}-{group}" if prediction else shared,
                verdict=Verdict(is_correct=True, judge=name, reason=name * 50, judge_version="v"),
            )
            for prediction in range(8)
        ]
        await cache.put(answers)
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
        (number,) = reader.execute(f"SELECT count(*) FROM verdicts WHERE {where}").fetchone()
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
def test_a_kill_in_mid_write_leaves_whole_groups(tmp_path, delay_s):
    path = tmp_path / "verdicts.sqlite"
    writer = start_writer(path, "w", 100_000)
    assert writer.stdout is not None
    for _ in range(20):
        writer.stdout.readline()
    time.sleep(delay_s)
    os.kill(writer.pid, signal.SIGKILL)
    output, _ = writer.communicate(timeout=60)
    num_told = 20 + len([line for line in output.splitlines() if line.endswith(" w")])
    cache = VerdictCache(path)  # opens, and writes on
    asyncio.run(cache.put([answer()]))
    keys = [row[0] for row in sqlite3.connect(path).execute("SELECT key FROM verdicts")]
    assert len(asyncio.run(cache.get(keys))) == len(keys), "every row is what was written"
    cache.close()
    num_rows = count(path, "judge = 'w'")
    assert num_rows % 8 == 0
    assert num_rows >= 8 * num_told


async def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a database, " * 100)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE accounts (id INTEGER)")
    connection.close()
    for path, message in ((text, "no file of verdicts"), (other, "a database of something else")):
        before = path.read_bytes()
        with pytest.raises(JudgeError, match=message) as caught:
            VerdictCache(path)
        assert str(path) in str(caught.value)
        assert "set judge.cache to another file" in str(caught.value)
        assert path.read_bytes() == before
    with pytest.raises(JudgeError, match="cannot be used"):
        VerdictCache(tmp_path)
    with pytest.raises(JudgeError, match=r"folder of judge\.cache"):
        VerdictCache(text / "verdicts.sqlite")


async def test_a_newer_schema_is_refused(tmp_path):
    path = tmp_path / "verdicts.sqlite"
    VerdictCache(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(JudgeError, match=r"has schema 2, this version reads 1: use the newer version"):
        VerdictCache(path)


async def read_all(path: Path, keys: list[str]) -> tuple[list[Verdict], str]:
    """The verdicts of a file, or why there are none."""
    try:
        with closing(VerdictCache(path)) as cache:
            return list((await cache.get(keys)).values()), ""
    except JudgeError as error:
        return [], str(error)


async def test_no_damage_to_the_file_changes_a_verdict(tmp_path):
    """A run of bytes is overwritten anywhere in the file: a verdict comes back as it was, or not at all."""
    path = tmp_path / "verdicts.sqlite"
    cache = VerdictCache(path)
    answers = [answer(str(number), is_correct=False) for number in range(60)]
    await cache.put(answers)
    cache.close()
    whole = path.read_bytes()
    num_refused = 0
    for start in range(0, len(whole), 97):
        path.write_bytes(whole[:start] + b"\x01" * 5 + whole[start + 5 :])
        verdicts, error = await read_all(path, [answer.key for answer in answers])
        assert {verdict.is_correct for verdict in verdicts} <= {False}
        assert error == "" or str(path) in error
        num_refused += error != ""
    assert num_refused > 10
