"""The viewer over HTTP: who may look, that no text becomes markup, and every page of whole, live and damaged runs."""

import csv
import io
import json
import re
import signal
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import quote

import httpx
import pyarrow.parquet as pq
import pytest
from PIL import Image
from starlette.testclient import TestClient

from actors.data.shapes import write_split
from cluster.records.events import Event, EventLog
from cluster.viewer import index as index_module
from cluster.viewer.guard import POLICY
from cluster.viewer.runs import RunBook, find_runs
from cluster.viewer.server import make_app
from configs.paths import ROOT
from tests.cluster.viewer.drawn import episode, heldout, turn, write_run

TOKEN = "a-token"
ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)>'\"&amp;\x00\u202egnp\ud83d"
PAGES = ("", "curves", "episodes", "heldout", "judge", "system", "events")
KEY = "set=training&file=step-000001&kind=policy&index=0&sample="


@pytest.fixture(autouse=True)
def _always_look(monkeypatch):
    monkeypatch.setattr(index_module, "CHECK_S", 0.0)


def client_of(*paths, token=TOKEN) -> TestClient:
    client = TestClient(make_app(RunBook(paths), token=TOKEN), base_url="http://127.0.0.1")
    client.cookies.set("visionthink", token)
    return client


@pytest.fixture
def run(tmp_path):
    shapes = tmp_path / "shapes.parquet"
    write_split(shapes, num_rows=2, seed=0, split="train")
    group = [episode(n, asked=n == 1, correct=n != 2, dataset=str(shapes), image_sha256="") for n in range(4)]
    evaluation = [heldout(f"heldout-{n}", kind, n > 0) for n in range(3) for kind in ("policy", "always_full")]
    metrics = [{"step": n, "reward/accuracy": 0.5, "groups/trained": 3.0, "run/useful_time": 0.5} for n in (1, 2)]
    files = {"episodes/step-000001": group, "heldout/step-000001": evaluation, "heldout/step-000002": evaluation}
    return write_run(tmp_path / "runs" / "tiny", files, metrics)


class Markup(HTMLParser):
    """Collects the tags of a page, and what a strict policy would not let run."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.inline: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "script" and not dict(attrs).get("src", "").startswith("/static/"):
            self.inline.append("script")
        self.inline += [name for name, _ in attrs if name.startswith("on") or name == "style"]


def test_without_the_token_nobody_sees_anything(run):
    client = client_of(run, token="another")
    for path in ("/", "/r/tiny/", "/r/tiny/episodes.json", "/r/tiny/episodes.parquet", "/static/viewer.js", "/nowhere"):
        reply = client.get(path)
        assert reply.status_code == 403
        assert "tiny" not in reply.text
    assert client.get("/?token=wrong").status_code == 403
    assert client.get("/?token=%ff%00").status_code == 403


def test_the_token_becomes_a_cookie_and_leaves_the_address(run):
    client = client_of(run, token="")
    reply = client.get("/r/tiny/episodes?token=a-token&verdict=wrong", follow_redirects=False)
    assert (reply.status_code, reply.headers["location"]) == (303, "/r/tiny/episodes?verdict=wrong")
    assert {"HttpOnly", "SameSite=lax"} <= set(reply.headers["set-cookie"].split("; "))
    outside = client.get("http://127.0.0.1//evil.example/?token=a-token", follow_redirects=False)
    assert outside.headers["location"].startswith("/evil.example")


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:8790", 200), ("localhost:1", 200), ("evil.example", 400), ("127.0.0.1.evil.example", 400), ("", 400)],
)
def test_only_names_of_this_machine_are_answered(run, host, status):
    assert client_of(run).get("/", headers={"host": host}).status_code == status


def test_every_answer_forbids_scripts_of_others_and_frames(run):
    client = client_of(run)
    for path in ("/", "/r/tiny/episodes.json", "/r/none/", "/static/viewer.css", "/r/tiny/?sort=x"):
        headers = client.get(path).headers
        assert headers["content-security-policy"] == POLICY
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
    assert "unsafe" not in POLICY
    assert client.get("/", headers={"cookie": ""}).headers["content-security-policy"] == POLICY
    assert client.post("/r/tiny/").status_code == 405


@pytest.mark.parametrize("page", PAGES)
def test_pages_of_a_run_have_no_inline_script_or_style(run, page):
    reply = client_of(run).get(f"/r/tiny/{page}")
    assert reply.status_code == 200
    assert Markup(reply.text).inline == []
    assert 'aria-current="page"' in reply.text


def test_what_a_policy_writes_never_becomes_markup(tmp_path):
    attack = ATTACK.encode("utf-8", "replace").decode()
    long = "A" * 100_000 + attack
    rows = [
        episode(
            n, question=attack, reference=attack, answer=long, reason=attack, judge=attack, sample=attack,
            dataset=attack, status=attack, turns=[turn(long, finish_reason=attack)],
        )
        for n in range(2)
    ]  # fmt: skip
    name = "a \"b<c> d' onclick=x"
    place = f"/r/{quote(name)}"
    files = {"episodes/step-000001": rows, "heldout/step-000001": [heldout(attack, "policy", True)]}
    run = write_run(
        tmp_path / name, files, [{"step": 1, "reward/accuracy": 1.0, "time/step_s": 1.0, "judge/mean_s": 1.0}]
    )
    EventLog(run, say=lambda _: None, warn=lambda _: None).add(Event(kind="skip", who=attack, detail=attack))
    client = client_of(run)
    listed = client.get(f"{place}/episodes.json").json()
    assert listed["total"] == 3
    paths = [row["url"] for row in listed["rows"]]
    paths += [path.replace("/episode?", "/group?") for path in paths]
    paths += [f"{place}/{page}" for page in PAGES]
    paths += ["/", f"{place}/events?kind=<b>", f"/compare?run={quote(name)}"]
    for path in paths:
        reply = client.get(path)
        assert reply.status_code == 200, path
        markup = Markup(reply.text)
        assert markup.inline == []
        assert markup.tags.count("script") == 2, "our own two"
        assert not {"\x00", "\u202e"} & set(reply.text)
    answers = [row["answer"] for row in listed["rows"] if row["set"] == "training"]
    assert all(len(answer) < 300 and answer.endswith("…") for answer in answers), "the table cuts a long line"
    assert "A" * 100_000 in client.get(paths[0]).text, "the episode has it whole"
    assert "\u202e" not in json.dumps(listed, ensure_ascii=False)


def test_an_episode_shows_views_turns_verdict_reward_and_versions(run):
    client = client_of(run)
    page = client.get(f"/r/tiny/episode?{KEY}0-7".replace("index=0", "index=1")).text
    text = re.sub(r"\s+", " ", re.sub("<[^>]+>", "", page))
    for fact in (
        "quarter view 112 × 112 px · 16 visual tokens", "full view 224 × 224 px · 64 visual tokens",
        "20 prompt tokens, masked", "77 new prompt tokens", "version 4 (1), version 5 (2)", "right by rules",
        "same text", "1.500 = 1.00 accuracy + 0.50 format − 0.00 penalty", "+0.250", "80 of 64 (125.0%)", "4 – 5",
    ):  # fmt: skip
        assert fact in text, fact
    sizes = []
    for source in re.findall(r'<img class="\w+" src="([^"]+)"', page):
        reply = client.get(source.replace("&amp;", "&"))
        assert reply.headers["content-type"] == "image/png"
        sizes.append(Image.open(io.BytesIO(reply.content)).size)
    assert sizes == [(112, 112), (224, 224)]


def test_a_data_set_that_moved_or_changed_is_told_on_the_page(run, tmp_path):
    client = client_of(run)
    rows = [episode(n, dataset=str(tmp_path / "shapes.parquet"), image_sha256="0" * 64) for n in range(2)]
    write_run(run, {"episodes/step-000002": rows})
    assert "holds another picture now" in client.get(f"/r/tiny/episode?{KEY}0-7".replace("1&kind", "2&kind")).text
    (tmp_path / "shapes.parquet").unlink()
    for page in ("episode", "group"):
        text = client_of(run).get(f"/r/tiny/{page}?{KEY}0-7").text
        assert "cannot be read from its data set" in text
        assert "shapes.parquet" in text
    assert client_of(run).get(f"/r/tiny/picture?{KEY}0-7&view=full").status_code == 404


def test_a_group_stands_side_by_side(run):
    page = client_of(run).get("/r/tiny/group?set=training&file=step-000001&sample=0-7").text
    assert page.count("<article") == 4
    assert page.count('<img class="full"') == 1, "the picture once"


def test_neighbours_follow_the_list_that_an_episode_was_opened_from(run):
    client = client_of(run)
    rows = client.get("/r/tiny/episodes.json?set=training&sort=-reward").json()["rows"]
    pages = [client.get(row["url"]).text for row in rows]
    keys = [re.findall(r'data-key="([jk])" href="[^"]*index=(\d)', page) for page in pages]
    order = [str(row["index"]) for row in rows]
    assert keys[0] == [("j", order[1])]
    assert keys[1] == [("k", order[0]), ("j", order[2])]
    assert keys[3] == [("k", order[2])]
    (alone,) = client.get("/r/tiny/episodes.json?set=training&verdict=wrong").json()["rows"]
    page = client.get(alone["url"]).text
    assert "← list" in page
    assert not re.search(r'data-key="[jk]"', page), "it is the only one of its list"
    moved = client.get(rows[1]["url"].replace("pos=1", "pos=3")).text
    assert re.findall(r'data-key="k" href="[^"]*index=(\d)', moved) == ["0"], "the list has changed: the group counts"


def test_downloads_hold_the_filtered_rows(run):
    client = client_of(run)
    answers = ('=HYPERLINK("x")', "-5")
    rows = [episode(n, step=2, answer=answer) for n, answer in enumerate(answers)]
    write_run(run, {"episodes/step-000002": rows})
    lines = list(csv.DictReader(io.StringIO(client.get("/r/tiny/episodes.csv?step=2&sort=answer").text)))
    assert [line["answer"] for line in lines] == ["-5", '\'=HYPERLINK("x")'], "no formula, and a number stays one"
    whole = client.get("/r/tiny/episodes.parquet?set=training&verdict=right")
    table = pq.read_table(io.BytesIO(whole.content))
    assert sorted(table["index"].to_pylist()) == [0, 0, 1, 1, 3]
    assert table["turns"][0].as_py()[0]["logprobs"]
    assert pq.read_table(io.BytesIO(client.get("/r/tiny/episodes.parquet?q=nothing").content)).num_rows == 0


def test_two_evaluations_of_two_runs_meet_on_one_sample(run, tmp_path):
    other = [heldout(f"heldout-{n}", "policy", n == 0) for n in range(3)]
    write_run(tmp_path / "other" / "tiny", {"heldout/eval-000009": other})
    client = client_of(run, tmp_path / "other" / "tiny")
    page = client.get("/r/tiny/heldout?a=tiny/step-000001&b=tiny~2/eval-000009").text
    text = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", page))
    assert "-33.3 points of accuracy" in text
    assert "1 right in the second only" in text
    (link, *_) = re.findall(r'href="([^"]*/pair\?[^"]+)"', page)
    pair = client.get(link.replace("&amp;", "&")).text
    assert pair.count("<article") == 2
    assert "tiny~2 eval-000009" in pair


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/r/nobody/", 404, "no such run"),
        ("/r/..%2f..%2fetc/", 404, ""),
        ("/static/..%2fserver.py", 404, ""),
        ("/r/tiny/episode?set=training", 404, "no such episode"),
        ("/r/tiny/group?set=../../etc", 404, "no such group"),
        ("/r/tiny/episodes?verdict=<b>", 400, "&lt;b&gt;"),
        ("/r/tiny/episodes.json?offset=-1", 400, "whole number"),
        ("/r/tiny/episodes.json?limit=1e9", 400, "whole number"),
        ("/r/tiny/heldout?a=x&b=y", 400, "RUN/FILE"),
        ("/r/tiny/heldout?kind=best", 400, "always_full"),
        ("/compare", 404, "choose"),
        ("/compare?run=nobody", 404, "choose"),
    ],
)
def test_an_address_that_is_wrong_says_so(run, path, status, says):
    reply = client_of(run).get(path)
    assert reply.status_code == status
    assert says in reply.text


def test_a_run_that_has_only_begun_and_one_that_is_damaged_have_all_pages(tmp_path):
    write_run(tmp_path / "new", {})
    damaged = write_run(tmp_path / "damaged", {"episodes/step-000001": [episode(0)]})
    for name in ("metrics.jsonl", "events.jsonl", "status.json", "summary.json"):
        (damaged / name).write_bytes(b'{"step": 1, "reward/acc\xff')
    (damaged / "config.yaml").write_text("model: [")
    (damaged / "heldout" / "step-000001.parquet").write_bytes(b"PAR1")
    client = client_of(tmp_path)
    for run_name in ("new", "damaged"):
        for page in PAGES:
            assert client.get(f"/r/{run_name}/{page}").status_code == 200, (run_name, page)
    assert "1 files of episodes cannot be read" in client.get("/r/damaged/").text
    assert client.get(f"/r/damaged/episode?{KEY}0-7").status_code == 200
    assert client.get("/compare?run=new&run=damaged").status_code == 200
    assert client.get("/").status_code == 200


def test_a_live_run_changes_its_pulse_and_new_runs_appear(run):
    client = client_of(run.parent)
    before = client.get("/r/tiny/pulse").json()
    assert client.get("/r/tiny/pulse").json() == before
    write_run(run, {"episodes/step-000002": [episode(0, step=2)]})
    assert client.get("/r/tiny/pulse").json() != before
    write_run(run.parent / "later", {})
    assert "later" in client.get("/").text


def test_runs_are_found_by_folder(tmp_path, run):
    assert find_runs([run, run.parent]) == [run]
    assert find_runs([tmp_path]) == []
    with pytest.raises(ValueError, match="not a folder"):
        find_runs([tmp_path / "nowhere"])


def test_the_command_prints_its_address_serves_it_and_ends_with_ctrl_c(run):
    command = [sys.executable, "-m", "cluster.cli", "view", str(run), "--no-open", "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        address = url.partition("/r/")[0]
        with httpx.Client(follow_redirects=True, timeout=60) as client:
            assert client.get(address).status_code == 403
            assert "Held-out" in client.get(url).text
            assert client.get(f"{address}/r/tiny/judge").status_code == 200
        taken = subprocess.run(
            [*command, "--port", address.rpartition(":")[2]], cwd=ROOT, capture_output=True, timeout=60
        )
        assert taken.returncode == 1
        assert b"is not free" in taken.stderr
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0, process.stderr.read() if process.stderr else ""
