"""Run folders as damage, other versions, other users and other hands leave them: every page still opens."""

import json
import math
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from cluster.records.episodes import EPISODES
from cluster.viewer import index as index_module
from cluster.viewer.report import write_report
from cluster.viewer.runs import RunBook, RunFolder, find_runs
from cluster.viewer.server import make_app
from configs.load import to_yaml
from configs.paths import ROOT
from configs.schema import Config
from tests.cluster.viewer.drawn import episode, heldout, turn, write_run

KEY = "set=training&file=step-000001&kind=policy&index=0&sample=0-7"
PAGES = (
    "", "curves", "heldout", "judge", "system", "events", "episodes", "episodes.json?preset=needless",
    "episodes.csv", "episodes.parquet", f"episode?{KEY}", f"group?{KEY}",
)  # fmt: skip
TURNS = EPISODES.field("turns").type


@pytest.fixture(autouse=True)
def _always_look(monkeypatch):
    monkeypatch.setattr(index_module, "CHECK_S", 0.0)


def client_of(*paths: Path) -> TestClient:
    client = TestClient(make_app(RunBook(paths), token="t"), base_url="http://127.0.0.1")
    client.cookies.set("visionthink", "t")
    return client


@pytest.fixture
def run(tmp_path):
    metrics = [{"step": 1, "reward/accuracy": 0.5, "groups/trained": 3.0}]
    files = {
        "episodes/step-000001": [episode(n) for n in range(4)],
        "heldout/step-000001": [heldout("a", "policy", True)],
    }
    return write_run(tmp_path / "runs" / "tiny", files, metrics)


def assert_all_pages_open(run: Path) -> TestClient:
    client = client_of(run)
    for page in ("/", "/compare?run=tiny", *(f"/r/tiny/{page}" for page in PAGES)):
        assert client.get(page).status_code == 200, page
    return client


@pytest.mark.parametrize(
    ("file", "lines"),
    [
        ("metrics.jsonl", ['{"step": NaN, "reward/mean": 1}', '{"step": Infinity, "reward/mean": 1}']),
        (
            "metrics.jsonl",
            [
                '{"step": 1, "reward/accuracy": NaN, "groups/trained": NaN, "groups/no_signal": Infinity}',
                '{"step": 1, "heldout/accuracy": NaN, "heldout/num_episodes": NaN, "episodes/scored": -Infinity}',
            ],
        ),
        (
            "metrics.jsonl",
            [
                '{"step": 1, "reward/mean": 1e308, "learner/mismatch": 1e308, "learner/mismatch_max": 5e-324}',
                '{"step": 2, "reward/mean": -1e308, "learner/loss": 1' + "0" * 400 + "}",
                '{"step": 1e300, "reward/mean": 1}',
            ],
        ),
        ("metrics.jsonl", ["[" * 200_000, '{"step": 1' + "0" * 400 + "}"]),
        (
            "events.jsonl",
            [
                json.dumps({"time": 1.0, "kind": "join", "who": "a"} | change)
                for change in (
                    {"time": math.nan}, {"time": math.inf}, {"time": 1e20}, {"time": 10**400}, {"time": None},
                    {"kind": ["x"]}, {"kind": {}}, {"who": None}, {"detail": 5}, {"step": "x"}, {"step": math.nan},
                    {"step": {"a": 1}}, {"seconds": "x"},
                )
            ],
        ),
        ("events.jsonl", ["[" * 200_000]),
    ],
    ids=["no step", "not finite", "huge", "deep", "odd events", "deep events"],
)  # fmt: skip
def test_odd_lines_cost_themselves(run, file, lines):
    (run / file).write_text("\n".join([*lines, '{"step": 3, "time": 9.0, "kind": "join", "who": "the last one"}']))
    client = assert_all_pages_open(run)
    assert "the last one" in client.get("/r/tiny/events").text or file != "events.jsonl"
    assert "nan" not in client.get("/").text.lower()
    write_report(run)


def with_column(name: str, values: list, kind: pa.DataType | None = None):
    def change(table: pa.Table) -> pa.Table:
        return table.set_column(table.schema.get_field_index(name), name, pa.array(values, kind))

    return change


def bad_text(table: pa.Table) -> pa.Table:
    """Bytes that are not UTF-8 under the name of a text."""
    _, offsets, content = pa.array([b"\xff\xfe"] * 4).buffers()
    texts = pa.Array.from_buffers(pa.string(), 4, [None, offsets, content])
    return table.set_column(table.schema.get_field_index("answer"), "answer", texts)


NO_TOKENS = turn(completion_ids=[None, -5], logprobs=[None, math.nan], version_spans=[None])
OTHER_VERSIONS = {
    "no turns": lambda table: table.drop_columns(["turns"]),
    "null turns": with_column("turns", [None] * 4, TURNS),
    "null turn": with_column("turns", [[None]] * 4, TURNS),
    "empty turns": with_column("turns", [[{}, {}]] * 4, TURNS),
    "one field": with_column("turns", [[{"text": "x"}]] * 4),
    "another field": with_column("turns", [[turn() | {"mood": "good"}]] * 4),
    "huge turns": with_column("turns", [[turn(num_visual_tokens=2**31 - 1)] * 2] * 4, TURNS),
    "null tokens": with_column("turns", [[NO_TOKENS]] * 4, TURNS),
    "our own names": lambda table: table.append_column("set", pa.array(["x"] * 4)),
    "null steps": with_column("step", [None] * 4, pa.int64()),
    "not finite": with_column("reward", [math.nan, math.inf, None, 1.0]),
}
NOT_EPISODES = {
    "other columns": lambda table: pa.table({"a": [1]}),
    "a column twice": lambda table: table.append_column("step", pa.array([9] * 4)),
    "turns of text": with_column("turns", ["x"] * 4),
    "not UTF-8": bad_text,
    "steps of text": with_column("step", ["x"] * 4),
}


def write_changed(run: Path, changes: dict) -> None:
    """A file of episodes for each change, under its name."""
    table = pq.read_table(run / "episodes" / "step-000001.parquet")
    for name, change in changes.items():
        pq.write_table(change(table), run / "episodes" / f"{name}.parquet")


def test_episodes_of_another_version_are_shown(run):
    write_changed(run, OTHER_VERSIONS)
    client = assert_all_pages_open(run)
    for name in OTHER_VERSIONS:
        assert client.get(f"/r/tiny/episodes.json?file={quote(name)}").json()["total"] == 4, name
        assert client.get(f"/r/tiny/episode?{KEY}".replace("step-000001", quote(name))).status_code == 200, name
    assert "cannot be read" not in client.get("/r/tiny/").text
    file = pq.read_table(pa.BufferReader(client.get("/r/tiny/episodes.parquet?set=training").content))
    assert len(file) == 4 * (len(OTHER_VERSIONS) + 1)
    write_report(run)


def test_files_that_are_not_of_episodes_are_named_and_the_others_stay(run):
    write_changed(run, NOT_EPISODES)
    client = assert_all_pages_open(run)
    assert client.get("/r/tiny/episodes.json").json()["total"] == 5
    unreadable = RunFolder("tiny", run).episodes
    unreadable.cursor()
    assert unreadable.unreadable.keys() == {f"training/{name}" for name in NOT_EPISODES}
    assert "it has no column 'step'" in unreadable.unreadable["training/other columns"]
    assert "5 files of episodes cannot be read" in client.get("/r/tiny/").text


def test_what_is_no_file_or_has_no_proper_name_harms_nothing(run):
    os.mkfifo(run / "episodes" / "step-000003.parquet")
    (run / "episodes" / "step-000004.parquet").mkdir()
    shutil.copy(run / "episodes" / "step-000001.parquet", os.fsdecode(os.fsencode(run / "episodes") + b"/\xff.parquet"))
    shutil.copytree(run, os.fsdecode(os.fsencode(run.parent) + b"/odd\xff"), ignore=shutil.ignore_patterns("*.parquet"))
    assert_all_pages_open(run)
    page = client_of(run.parent).get("/")
    assert page.status_code == 200
    assert "/r/odd%3F/" in page.text
    assert client_of(run.parent).get("/r/odd%3F/").status_code == 200


def test_a_run_that_is_removed_is_no_longer_there_and_one_that_comes_back_is(run):
    client = client_of(run.parent)
    assert client.get("/r/tiny/").status_code == 200
    saved = run.parent.parent / "saved"
    run.rename(saved)
    for page in PAGES:
        assert client.get(f"/r/tiny/{page}").status_code == 404, page
    assert "tiny" not in client.get("/").text
    shutil.rmtree(run.parent)
    assert client.get("/").status_code == 200
    run.parent.mkdir()
    shutil.copytree(saved, run)
    assert client.get("/r/tiny/").status_code == 200


def test_a_run_of_another_user_is_left_out(tmp_path):
    shared = tmp_path / "shared"
    for name in ("mine", "theirs"):
        write_run(shared / name, {})
    closed = shared / "theirs"
    closed.chmod(0)
    try:
        if os.access(closed / "config.yaml", os.R_OK):
            pytest.skip("this user may read everything")
        assert find_runs([shared]) == [shared / "mine"]
    finally:
        closed.chmod(0o700)


@pytest.mark.parametrize(
    "query", [f"episode?{KEY}".replace("index=0", "index=٣"), f"episode?{KEY}".replace("index=0", "index=0²")]
)
def test_digits_of_other_scripts_name_no_episode(run, query):
    assert client_of(run).get(f"/r/tiny/{query}").status_code == 404


@pytest.mark.parametrize("query", ["episodes.json?offset=٣", "episodes.json?step=٣", f"episode?{KEY}&pos=²"])
def test_digits_of_other_scripts_are_no_numbers(run, query):
    reply = client_of(run).get(f"/r/tiny/{query}")
    assert reply.status_code == 400
    assert "is invalid" in reply.text


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", "\x00", '{"model": {"type": "BPE", "vocab": {}, "merges": ["a b"]}}']
)
def test_a_damaged_tokenizer_costs_the_tokens_alone_until_it_is_whole(run, tmp_path, text):
    model = tmp_path / "model"
    shutil.copytree(ROOT / "configs" / "tiny", model)
    (model / "tokenizer.json").write_text(text)
    (model / "preprocessor_config.json").write_text("[]")
    config = Config()
    (run / "config.yaml").write_text(to_yaml(replace(config, model=replace(config.model, path=str(model)))))
    client = client_of(run)
    assert "the text is shown without its tokens" in client.get(f"/r/tiny/episode?{KEY}").text
    shutil.copy(ROOT / "configs" / "tiny" / "tokenizer.json", model)
    assert 'class="tok' in client.get(f"/r/tiny/episode?{KEY}").text


def test_a_model_of_the_hub_has_its_name_on_the_page_of_runs(run):
    path = "/cache/models--Qwen--Qwen2.5-VL-3B-Instruct/snapshots/" + "0f" * 20
    config = Config()
    (run / "config.yaml").write_text(to_yaml(replace(config, model=replace(config.model, path=path))))
    page = client_of(run).get("/").text
    assert "<td>Qwen/Qwen2.5-VL-3B-Instruct</td>" in page


def test_the_settings_of_a_run_that_is_written_anew_count_for_its_pictures(run, tmp_path):
    (run / "config.yaml").write_text("model: [")
    folder = RunFolder("tiny", run)
    before = folder.pictures
    (run / "config.yaml").write_text(to_yaml(Config()))
    assert folder.pictures is not before
    assert folder.pictures is folder.pictures


def test_all_episodes_are_read_once_however_many_ask(run, monkeypatch):
    made, start = [], threading.Barrier(8)

    class Slow(index_module.EpisodeIndex):
        def __init__(self, *args, **options):
            made.append(1)
            super().__init__(*args, **options)

    monkeypatch.setattr("cluster.viewer.runs.EpisodeIndex", Slow)
    folder = RunFolder("tiny", run)

    def ask(_: int) -> object:
        start.wait(timeout=30)
        return folder.episodes

    with ThreadPoolExecutor(8) as threads:
        found = set(map(id, threads.map(ask, range(8))))
    assert (len(made), len(found)) == (1, 1)
