"""What samples need against what episodes were shown, rewards in their parts, and why calls were refused: all pages."""

import io
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from cluster.records.episodes import EPISODES
from cluster.viewer import queries
from cluster.viewer.filters import Filter
from cluster.viewer.index import EpisodeIndex
from cluster.viewer.report import write_report
from cluster.viewer.runs import RunBook
from cluster.viewer.server import make_app
from tests.cluster.viewer.drawn import LOOK, TURNS, episode, heldout, turn, write_run

NEEDING = "crop:56,56,168,168"


def write_needing_run(folder: Path) -> Path:
    """Three samples with their needs recorded; of each an episode with the right tool, and one with another."""
    played = {
        "quarter": ("quarter", {"direct": True, "looked": False}),
        "region": (NEEDING, {"looked": True, "resized": False}),
        "full": ("full", {"resized": True, "looked": False}),
    }
    least = {"quarter": 16, "region": 32, "full": 80}
    rows = [
        episode(
            n, sample=need, asked=name != "direct", needs_full=need != "quarter", needed_view=view, is_right_tool=right,
            least_visual_tokens=least[need], turns=TURNS[name], reward=1.2,
            reward_parts={
                "accuracy": 1.0, "format": 0.5, "box": 0.0, "control": 0.1, "area": 0.125, "budget": 0.075,
                "overlong": 0.0,
            },
        )
        for need, (view, episodes) in played.items()
        for n, (name, right) in enumerate(episodes.items())
    ]  # fmt: skip
    metrics = [
        {
            "step": step, "reward/accuracy": 0.5, "policy/visual_token_share": 0.7, "policy/visual_token_optimum": 0.6,
            **{f"policy/right_tool_share_{need}": 0.5 for need in played},
        }
        for step in (1, 2)
    ]  # fmt: skip
    evaluation = [row | {"kind": "policy", "index": 0, "sample": f"h{n}"} for n, row in enumerate(rows)]
    return write_run(folder, {"episodes/step-000001": rows, "heldout/step-000001": evaluation}, metrics)


@pytest.fixture
def needing(tmp_path):
    return write_needing_run(tmp_path / "runs" / "needs")


def page_text(run: Path, path: str) -> str:
    client = TestClient(make_app(RunBook([run]), token="t"), base_url="http://127.0.0.1")
    client.cookies.set("visionthink", "t")
    reply = client.get(f"/r/{run.name}/{path}")
    assert reply.status_code == 200, reply.text
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", reply.text))


def test_right_tools_and_the_optimum_are_counted_by_need(needing):
    (score,) = queries.scores(EpisodeIndex(needing).cursor(), "training")
    shares = {need: (rate.num_hits, rate.num_cases) for need, rate in score.right_tool.items()}
    assert shares == {"quarter": (1, 2), "region": (1, 2), "full": (1, 2)}
    assert score.token_optimum == pytest.approx((16 + 32 + 80) / (3 * 64))


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"need": "region"}, {("region", 0), ("region", 1)}),
        ({"need": "full"}, {("full", 0), ("full", 1)}),
        ({"preset": "tool"}, {("quarter", 1), ("region", 1), ("full", 1)}),
        ({"preset": "needless"}, {("quarter", 1)}),
    ],
)
def test_filters_find_episodes_by_what_they_needed(needing, query, found):
    con = EpisodeIndex(needing).cursor()
    rows = queries.page(con, Filter.of(query | {"set": "training"}), offset=0, limit=99)
    assert {(row["sample"], row["index"]) for row in rows} == found


def test_pages_tell_who_took_the_right_tool(needing):
    for page in ("", "heldout"):
        text = page_text(needing, page)
        table = text.partition("Right tool, by what is needed")[2]
        assert table.startswith(
            " played by quarter view [95 %] region [95 %] full view [95 %] optimum of visual tokens"
        )
        half = r"50\.0% \[9\.5%, 90\.5%\]"
        assert re.search(rf"policy (step-000001 )?{half} {half} {half} 66\.7%", table), page
    assert "of always-full's visual tokens optimum 66.7%" in page_text(needing, "").replace("&#39;", "'")
    assert "wrong tool" in page_text(needing, "")
    curves = page_text(needing, "curves")
    assert "Right tool, by what is needed" in curves
    assert "rollouts' optimum" in curves.replace("&#39;", "'")
    listed = page_text(needing, "episodes")
    assert "wrong tool" in listed
    assert re.search(r"full region quarter unknown", listed)
    assert "verdict need tool visual" in listed
    group = page_text(needing, "group?set=training&file=step-000001&sample=region")
    assert "a region is needed: x 56 to 168, y 56 to 168 of the full view" in group
    assert "; the right tool" in group
    assert "; not the right tool" in group
    one = page_text(needing, "episode?set=training&file=step-000001&kind=policy&sample=region&index=1")
    assert "of the full view: not the right tool" in one
    assert "32 with just what is needed" in one


def compared(*runs: Path) -> str:
    client = TestClient(make_app(RunBook(runs), token="t"), base_url="http://127.0.0.1")
    client.cookies.set("visionthink", "t")
    page = client.get("/compare", params=[("run", run.name) for run in runs]).text
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", page))


def test_runs_are_compared_by_the_right_tool_where_one_of_them_has_a_choice(needing, tmp_path):
    known = {"policy/right_tool_share": 0.25, "policy/visual_token_optimum": 0.6}
    with (needing / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps({"step": 3} | known) + "\n")
    plain = write_run(tmp_path / "runs" / "plain", {"episodes/step-000001": [episode(0)]}, [{"step": 1} | known])
    both = compared(needing, plain)
    assert "tokens per call right tool, worst need optimum of visual tokens" in both
    assert "25.0% 60.0%" in both
    assert "right tool" not in compared(plain)


def test_the_penalties_of_a_reward_are_told_one_by_one(needing):
    group = page_text(needing, "group?set=training&file=step-000001&sample=region")
    assert "1.20 = 1.0 + 0.5 − 0.100 control − 0.125 area − 0.075 budget" in group
    one = page_text(needing, "episode?set=training&file=step-000001&kind=policy&sample=region&index=0")
    assert "1.00 accuracy + 0.50 format − 0.100 control − 0.125 area − 0.075 budget" in one


def test_the_report_tells_who_took_the_right_tool(needing):
    text = write_report(needing).read_text()
    assert "<h2>Right tool, by what is needed</h2>" in text
    assert '<span class="hint">wrong tool;' in text


def test_a_run_of_the_full_view_alone_is_told_as_before(tmp_path):
    """Also where its records say which tool was right: asking for the full view or not is the only choice."""
    known = {"needed_view": "full", "needs_full": True, "is_right_tool": False, "least_visual_tokens": 80}
    parts = dict.fromkeys(("box", "area", "budget", "overlong"), 0.0)
    rows = [episode(0, **known, reward_parts={"accuracy": 1.0, "format": 0.5, "control": 0.1, **parts}, reward=1.4)]
    metrics = [{"step": 1, "policy/right_tool_share_full": 0.0, "policy/visual_token_optimum": 0.5}]
    files = {"episodes/step-000001": rows, "heldout/step-000001": [heldout("a", "policy", True, **known)]}
    run = write_run(tmp_path / "plain", files, metrics)
    place = "set=training&file=step-000001&sample=0-7"
    pages = ["", "heldout", "curves", "episodes", f"group?{place}", f"episode?{place}&kind=policy&index=0"]
    texts = [page_text(run, page) for page in pages]
    for text in [*texts, write_report(run).read_text()]:
        assert "right tool" not in text
        assert "wrong tool" not in text
        assert "by what is needed" not in text
        assert "optimum" not in text
    assert "full quarter unknown" in texts[3]
    assert "verdict tool visual" in texts[3]
    assert "reward 1.40 = 1.0 + 0.5 − 0.1" in texts[4]
    assert "0.50 format − 0.10 penalty" in texts[5]


def test_why_a_call_was_refused_is_told_where_it_was_recorded(tmp_path):
    refused = turn(LOOK, fault="the box must not be empty: x1 < x2 and y1 < y2")
    last = turn(LOOK, None, num_visual_tokens=0, num_prompt_tokens=40, fault="turn 2 is the last one and must answer")
    run = write_run(tmp_path / "runs" / "r", {"episodes/step-000001": [episode(0, turns=[refused, last])]})
    place = "set=training&file=step-000001&sample=0-7"
    group = page_text(run, f"group?{place}")
    assert "turn 1 refused: the box must not be empty: x1 &lt; x2" in group
    assert "turn 2 malformed: turn 2 is the last one and must answer" in group
    one = page_text(run, f"episode?{place}&kind=policy&index=0")
    assert "they tell why the call was refused: the box must not be empty" in one
    assert "malformed: turn 2 is the last one" in one


def test_a_malformed_reply_is_called_so_once(tmp_path):
    rows = [episode(0, status="malformed", is_well_formed=False, asked=False, answer=None), episode(1)]
    rows.append(episode(2, is_well_formed=False))
    run = write_run(tmp_path / "runs" / "r", {"episodes/step-000001": rows})
    place = "episode?set=training&file=step-000001&kind=policy&sample=0-7&index="
    broken, sound, refused = (page_text(run, f"{place}{n}") for n in range(3))
    assert re.search(r"tool called no tool; .* status malformed visual tokens", broken)
    assert "status answered, well formed visual tokens" in sound
    assert "status answered, malformed visual tokens" in refused


def test_a_damaged_record_of_a_need_is_no_need(tmp_path):
    rows = [episode(n, needed_view=view) for n, view in enumerate(("half", "crop:9,9,9,9", "crop:x", ""))]
    run = write_run(tmp_path / "runs" / "r", {"episodes/step-000001": rows})
    for n, told in enumerate(("perhaps needed", "a region is needed", "a region is needed", "perhaps needed")):
        text = page_text(run, f"episode?set=training&file=step-000001&kind=policy&sample=0-7&index={n}")
        assert told in text


def test_the_turns_of_an_older_run_can_be_downloaded(tmp_path):
    rows = [episode(n, turns=TURNS["resized"]) for n in range(5)]
    run = write_run(tmp_path / "tiny", {"episodes/step-000001": rows})
    path = run / "episodes" / "step-000001.parquet"
    table = pq.read_table(path)
    kept = [field for field in EPISODES.field("turns").type.value_type if field.name not in ("tool", "fault")]
    turns = pa.array(
        [[{f.name: each[f.name] for f in kept} for each in TURNS["resized"]]] * len(table), pa.list_(pa.struct(kept))
    )
    old = table.set_column(table.schema.get_field_index("turns"), "turns", turns)
    pq.write_table(old.drop_columns(["needed_view", "is_right_tool", "least_visual_tokens", "reward_parts"]), path)
    client = TestClient(make_app(RunBook([run]), token="t"), base_url="http://127.0.0.1")
    client.cookies.set("visionthink", "t")
    found = pq.read_table(io.BytesIO(client.get("/r/tiny/episodes.parquet?set=training").content))
    assert found.schema == EPISODES
    assert [turn["fault"] for row in found.to_pylist() for turn in row["turns"]] == [None] * 10
