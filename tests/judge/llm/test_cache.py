"""Verdicts on disk: what is kept, under which key, and what a full disk or a damaged file do to it."""

import asyncio
import json
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import judges
from configs.judges import JudgeConfig, LLMJudgeConfig
from judge.llm import cache as cache_module
from judge.llm.cache import JudgedAnswer, VerdictCache, network_filesystem, open_cache, verdict_key
from judge.verdict import Usage, Verdict
from tests.judge.llm.judged import answer

KEY = "3fa656d4feaa4b14248d240e8e00b8e7368c372d3b5c987b0f043fc788fe6296"


CONFIG = JudgeConfig(chain=("openai",), llm=LLMJudgeConfig(model="m"))


LLM = Verdict(
    is_correct=True,
    judge="openai",
    reason="same thing",
    judge_version="v1",
    model="gpt-4o-2024-11-20",
    usage=Usage(num_calls=1, prompt_tokens=90, reply_tokens=3),
)


@pytest.fixture
def told():
    return []


@pytest.fixture
def cache(tmp_path, told):
    opened = VerdictCache(tmp_path / "runs" / "verdicts.sqlite", told.append)
    yield opened
    opened.close()


async def put_all(cache: VerdictCache, answers: list[JudgedAnswer]) -> None:
    await asyncio.gather(*map(cache.put, answers))


async def correctness(cache: VerdictCache, *answers: JudgedAnswer) -> list[bool | None]:
    found = await cache.get([answer.key for answer in answers])
    return [found[answer.key].is_correct if answer.key in found else None for answer in answers]


async def test_a_verdict_comes_back_whole_and_free_of_charge(cache):
    kept = JudgedAnswer(question="what?", reference="red", prediction="crimson", verdict=LLM)
    await cache.put(kept)
    found = await cache.get([kept.key, verdict_key("what?", "red", "crimson", "v2")])
    assert found == {kept.key: replace(LLM, usage=Usage())}


async def test_verdicts_are_shared_by_two_drivers(cache, told):
    other = VerdictCache(cache.path, told.append)
    await cache.put(answer("blue", is_correct=False))
    assert (await other.get([answer("blue").key]))[answer("blue").key].is_correct is False
    other.close()


async def test_the_first_verdict_on_a_key_stays(cache):
    await cache.put(answer(is_correct=True))
    await cache.put(answer(is_correct=False))
    assert (await cache.get([answer().key]))[answer().key].is_correct is True


async def test_verdicts_of_rules_are_refused(cache):
    with pytest.raises(AssertionError, match="only an LLM's verdict"):
        await cache.put(answer(version=""))


async def test_thousands_of_keys_are_read_at_once(cache):
    answers = [answer(str(number)) for number in range(3000)]
    await put_all(cache, answers)
    found = await cache.get([answer.key for answer in answers])
    assert list(found) != []
    assert found.keys() == {answer.key for answer in answers}
    assert await cache.get([]) == {}


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "\ud83d\ude00", "é\U0001f600", "'; DROP TABLE verdicts; --", ""])
async def test_any_text_can_be_kept(cache, text):
    kept = JudgedAnswer(question=text, reference=text, prediction=text, verdict=LLM)
    await cache.put(kept)
    assert (await cache.get([kept.key]))[kept.key].is_correct is True


async def test_people_can_look_at_what_was_decided(cache):
    await cache.put(answer("crimson"))
    with sqlite3.connect(cache.path) as reader:
        row = reader.execute("SELECT answer, created_at FROM verdicts_3").fetchone()
    reader.close()
    kept = json.loads(row[0])
    assert (kept["question"], kept["reference"], kept["prediction"]) == ("what colour?", "red", "crimson")
    assert kept["verdict"]["is_correct"] is True
    assert row[1].startswith("20")
    assert row[1].endswith("Z")


def test_the_key_is_stable():
    """Of runs of all versions: a changed encoding would ask for every verdict again."""
    assert verdict_key("q", "r", "p", "v") == KEY


@given(texts=st.tuples(*[st.text("ab ", max_size=3).map(str.strip)] * 3), at=st.integers(0, 8))
def test_moving_text_between_fields_changes_the_key(texts, at):
    joined = "".join(texts)
    moved = (joined[:at].strip(), joined[at:].strip(), "")
    assert (verdict_key(*texts, "v") == verdict_key(*moved, "v")) == (texts == moved)


async def test_the_event_loop_goes_on_while_another_process_holds_the_file(cache):
    """A driver that waits for the lock still serves its other groups."""
    await cache.put(answer("blue"))
    holder = sqlite3.connect(cache.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    put = asyncio.create_task(cache.put(answer()))
    for _ in range(20):
        await asyncio.sleep(0.005)
    assert not put.done(), "the loop came here while the write waited"
    holder.execute("COMMIT")
    holder.close()
    await put
    assert answer().key in await cache.get([answer().key])


async def test_a_lock_that_is_never_given_back_costs_one_warning_and_nobody_waits_for_it_again(
    tmp_path, told, monkeypatch
):
    monkeypatch.setattr(cache_module, "BUSY_S", 0.05)
    cache = VerdictCache(tmp_path / "verdicts.sqlite", told.append)
    await cache.put(answer("red"))
    holder = sqlite3.connect(cache.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    await asyncio.gather(*(cache.put(answer(str(number))) for number in range(50)))
    assert time.monotonic() - started < 1, "the others do not wait for the lock one after the other"
    holder.close()
    await cache.put(answer("blue"))
    assert await correctness(cache, answer("red"), answer("blue")) == [None, None]
    assert len(told) == 1
    assert f"judge.cache={cache.path} is disabled, verdicts are not kept: database is locked" in told[0]
    cache.close()


async def test_a_full_disk_costs_one_warning(cache, told):
    await cache.put(answer("red"))
    (num_pages,) = cache._connection.execute("PRAGMA page_count").fetchone()
    cache._connection.execute(f"PRAGMA max_page_count = {num_pages}")
    for number in range(3):
        await put_all(cache, [answer(f"{number} {text}" * 200) for text in "abcdefgh"])
    assert len(told) == 1
    assert "is disabled, verdicts are not kept: database or disk is full" in told[0]


async def test_a_file_that_is_damaged_under_a_run_costs_one_warning(cache, told):
    await put_all(cache, [answer(str(number)) for number in range(60)])
    cache._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    cache._connection.execute("PRAGMA cache_size = 0")
    cache.path.write_bytes(cache.path.read_bytes()[:4096] + b"\x01" * 40960)
    for _ in range(3):
        assert await cache.get([answer("1").key]) == {}
        await cache.put(answer("new"))
    assert len(told) == 1
    assert f"judge.cache={cache.path} is disabled, verdicts are not kept: " in told[0]


async def used(path: Path) -> list[str]:
    """What a run that reads and writes is told."""
    told: list[str] = []
    cache = open_cache(replace(CONFIG, cache=str(path)), told.append)
    assert cache is not None
    for _ in range(2):
        await cache.put(answer())
        await cache.get([answer().key])
    cache.close()
    return told


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_text("not a database, " * 100), "file is not a database"),
        (lambda path: path.mkdir(), "unable to open"),
        (lambda path: sqlite3.connect(path, isolation_level=None).execute("BEGIN EXCLUSIVE").connection, "locked"),
    ],
)
async def test_what_is_no_file_of_verdicts_costs_a_warning_and_is_left_alone(tmp_path, make, words, monkeypatch):
    monkeypatch.setattr(cache_module, "BUSY_S", 0.05)
    path = tmp_path / "verdicts.sqlite"
    holder = make(path)
    before = path.read_bytes() if path.is_file() else None
    told = await used(path)
    assert len(told) == 1
    assert f"judge.cache={path} is disabled, verdicts are not kept: " in told[0]
    assert words in told[0]
    assert before is None or path.read_bytes() == before
    if isinstance(holder, sqlite3.Connection):
        holder.close()


async def test_a_folder_that_cannot_be_made_costs_a_warning(tmp_path):
    (tmp_path / "file").write_text("x")
    (told,) = await used(tmp_path / "file" / "verdicts.sqlite")
    assert "set judge.cache to another file, on a local disk" in told


def test_rules_and_an_empty_setting_keep_nothing(tmp_path):
    assert open_cache(replace(CONFIG, cache=""), print) is None
    assert open_cache(JudgeConfig(cache=str(tmp_path / "x.sqlite")), print) is None
    assert list(tmp_path.iterdir()) == []


async def test_verdicts_of_another_version_are_kept_beside_the_new_ones(tmp_path, told):
    path = tmp_path / "verdicts.sqlite"
    with sqlite3.connect(path) as old:
        old.executescript("CREATE TABLE verdicts (key TEXT); INSERT INTO verdicts VALUES ('old');")
    old.close()
    cache = VerdictCache(path, told.append)
    await cache.put(answer("red"))
    assert await correctness(cache, answer("red")) == [True]
    assert cache._connection.execute("SELECT key FROM verdicts").fetchall() == [("old",)]
    cache.close()


def test_the_default_place_is_the_users_cache_wherever_a_job_works(tmp_path, monkeypatch):
    assert judges.cache_file({}) == "~/.cache/visionthink/verdicts.sqlite"
    assert judges.cache_file({"XDG_CACHE_HOME": "/scratch/me"}) == "/scratch/me/visionthink/verdicts.sqlite"
    assert judges.cache_file({"XDG_CACHE_HOME": "relative"}) == "~/.cache/visionthink/verdicts.sqlite"
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        cache = open_cache(replace(CONFIG, cache="~/.cache/verdicts.sqlite"), print)
        assert cache is not None
        assert cache.path == tmp_path / ".cache" / "verdicts.sqlite"
        cache.close()


def test_a_relative_place_is_settled_once(tmp_path, monkeypatch, told):
    monkeypatch.chdir(tmp_path)
    cache = open_cache(replace(CONFIG, cache="verdicts.sqlite"), told.append)
    assert cache is not None
    assert cache.path == tmp_path / "verdicts.sqlite"
    cache.close()


MOUNTS = [
    *(("/", "ext4"), ("/proc", "proc"), ("/home", "nfs4"), ("/home/me/local", "xfs"), ("/lustre", "lustre")),
    *(("/mnt/my share", "cifs"), ("/bucket", "fuse.s3fs"), ("/ntfs", "fuseblk"), ("/over", "fuse.fuse-overlayfs")),
    *(("/raw", "fuse"), ("/data", "autofs"), ("/data", "nfs"), ("/homework", "tmpfs"), ("/wsl", "9p")),
    ("/tmp", "overlay"),
]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/cache/v.sqlite", None),
        ("/home/me/.cache/v.sqlite", "nfs4"),
        ("/home/me/local/v.sqlite", None),
        ("/lustre/a/b/c", "lustre"),
        ("/mnt/my share/v.sqlite", "cifs"),
        ("/bucket/v.sqlite", "fuse.s3fs"),
        ("/ntfs/v.sqlite", None),
        ("/over/v.sqlite", None),
        ("/raw/v.sqlite", "fuse"),
        ("/data/v.sqlite", "nfs"),
        ("/homework/v.sqlite", None),
        ("/wsl/v.sqlite", "9p"),
        ("/tmp/v.sqlite", None),
    ],
)
def test_a_network_file_system_is_recognised_by_the_mount_that_holds_the_file(path, kind):
    assert network_filesystem(Path(path), MOUNTS) == kind
    assert network_filesystem(Path(path), []) is None


async def test_a_file_on_a_network_costs_a_warning_and_is_not_touched(tmp_path, monkeypatch):
    mounts = [SimpleNamespace(mountpoint="/", fstype="ext4")]
    mounts.append(SimpleNamespace(mountpoint=str(tmp_path / "net"), fstype="nfs4"))
    monkeypatch.setattr(cache_module.psutil, "disk_partitions", lambda all: mounts)
    (tmp_path / "net").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "net")
    for name in ("net", "link"):
        (told,) = await used(tmp_path / name / "verdicts.sqlite")
        assert "network file system (nfs4)" in told
    assert list((tmp_path / "net").iterdir()) == []
    assert await used(tmp_path / "verdicts.sqlite") == []


async def test_no_damage_to_the_file_changes_a_verdict(tmp_path):
    """A run of bytes is overwritten anywhere in the file: a verdict comes back as it was, or not at all."""
    path = tmp_path / "verdicts.sqlite"
    cache = VerdictCache(path, print)
    answers = [answer(str(number), is_correct=False) for number in range(60)]
    await put_all(cache, answers)
    cache.close()
    whole = path.read_bytes()
    num_warnings = 0
    for start in range(0, len(whole), 397):
        path.write_bytes(whole[:start] + b"\x01" * 5 + whole[start + 5 :])
        told = []
        cache = VerdictCache(path, told.append)
        assert set(await correctness(cache, *answers)) <= {False, None}
        cache.close()
        num_warnings += len(told)
        assert len(told) <= 1
    assert num_warnings > 5
