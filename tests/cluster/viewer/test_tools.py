"""Episodes with several tools: boxes on the pictures that calls refer to, the regions themselves, their cost."""

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from starlette.testclient import TestClient

from actors.data.shapes import write_split
from actors.views import Crop
from cluster.records.episodes import EPISODES
from cluster.viewer import queries
from cluster.viewer.boxes import boxes_by_view, needed_boxes, view_of
from cluster.viewer.charts import line_charts
from cluster.viewer.filters import Filter
from cluster.viewer.index import EpisodeIndex
from cluster.viewer.report import write_report
from cluster.viewer.runs import RunBook
from cluster.viewer.server import make_app
from configs.load import to_yaml
from configs.schema import Config
from tests.cluster.viewer.drawn import ANSWER, REGION, TURNS, call, crop, episode, heldout, turn, write_run

FULL = (224, 224)
KEY = "set=training&file=step-000001&kind=policy&sample=0-7&index="


def write_tools_run(folder: Path) -> Path:
    """A run whose pictures are there."""
    shapes = folder.parent / "shapes.parquet"
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_split(shapes, num_rows=2, seed=0, split="train")
    rows = [
        episode(n, asked=name not in ("refused", "direct"), dataset=str(shapes), image_sha256="", turns=turns)
        for n, (name, turns) in enumerate(TURNS.items())
    ]
    metrics = [
        {
            "step": step, "reward/accuracy": 0.5, "policy/calls_per_episode": 0.8, "policy/tokens_per_call": 25.0,
            "policy/tool_share/resize_image": 0.25, "policy/tool_share/request_local_region": 0.5,
        }
        for step in (1, 2)
    ]  # fmt: skip
    evaluation = [heldout("a", "policy", True, asked=True, turns=TURNS["zoomed"])]
    return write_run(folder, {"episodes/step-000001": rows, "heldout/step-000001": evaluation}, metrics)


@pytest.fixture
def run(tmp_path):
    return write_tools_run(tmp_path / "runs" / "tiny")


@pytest.fixture
def client(run):
    client = TestClient(make_app(RunBook([run]), token="t"), base_url="http://127.0.0.1")
    client.cookies.set("visionthink", "t")
    return client


def test_a_box_lies_on_the_picture_that_its_call_refers_to_and_on_the_full_view():
    """By hand: the quarter view has half the scale, and the second box lies 0, 56 below the corner of the first."""
    found = boxes_by_view(TURNS["zoomed"], FULL)
    placed = {
        view: [(box.turn, box.left, box.top, box.width, box.height) for box in boxes] for view, boxes in found.items()
    }
    assert placed == {
        "quarter": [(2, 28, 28, 56, 56)],
        "full": [(2, 56, 56, 112, 112), (3, 56, 112, 56, 56)],
        REGION: [(3, 0, 56, 56, 56)],
    }
    assert found["quarter"][0].about == "turn 2: x 28 to 84, y 28 to 84"


def test_a_call_that_cannot_be_read_has_its_box_on_the_first_picture():
    turns = [turn("no call"), crop(ANSWER, REGION, "request_local_region", 16)]
    assert boxes_by_view(turns, FULL).keys() == {"quarter", "full"}
    number = call("image_zoom_in_tool", bbox_2d=[0, 0, 9, 9], label="", img_idx=7)
    assert boxes_by_view([turn(number), crop(ANSWER, REGION, "x", 16)], FULL).keys() == {"full"}
    assert boxes_by_view([turn(view="full"), crop(ANSWER, REGION, "x", 16)], FULL).keys() == {"full"}
    assert boxes_by_view([], FULL) == {}


def test_a_needed_region_lies_on_both_views():
    """By hand: the quarter view has half the scale."""
    placed = {
        view: [(box.left, box.top, box.width, box.height) for box in boxes]
        for view, boxes in needed_boxes(Crop(left=56, top=0, right=168, bottom=112), FULL).items()
    }
    assert placed == {"quarter": [(28, 0, 56, 56)], "full": [(56, 0, 112, 112)]}
    assert needed_boxes("full", FULL) == needed_boxes(None, FULL) == {}


@pytest.mark.parametrize("text", [None, "", "half", "crop:1,2,3", "crop:0,0,252,28", "crop:0,0,28,252", "crop:9,9,9,9"])
def test_what_is_no_view_of_the_picture_is_none(text):
    assert view_of(text, FULL) is None
    assert view_of(REGION, FULL) == Crop(left=56, top=56, right=168, bottom=168)


def test_the_page_draws_each_box_and_shows_the_region_in_its_turn(client, run):
    page = client.get(f"/r/tiny/episode?{KEY}1").text
    rects = re.findall(r'<rect class="box" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)"', page)
    assert [tuple(map(float, rect)) for rect in rects] == [
        (28, 28, 56), (56, 56, 112), (56, 112, 56), (0, 56, 56),
    ]  # fmt: skip
    second, third = page.partition("<b>turn 2</b>")[2].split("<b>turn 3</b>")
    assert "16 of them the region, by request_local_region" in second
    assert "112 × 112 px of the full view · region of turn 3: x 0 to 56, y 56 to 112" in second
    assert "4 of them the region, by image_zoom_in_tool" in third
    assert "called request_local_region, image_zoom_in_tool" in page
    (source,) = re.findall(r'<img class="crop" src="([^"]+)"', third)
    shown = np.asarray(Image.open(io.BytesIO(client.get(source.replace("&amp;", "&")).content)))
    full = client.get(re.search(r'<img class="full" src="([^"]+)"', page)[1].replace("&amp;", "&")).content
    assert np.array_equal(shown, np.asarray(Image.open(io.BytesIO(full)))[112:168, 56:112])


def test_the_region_that_is_needed_is_drawn_whatever_was_called_for(run, client):
    shapes = str(run.parent / "shapes.parquet")
    rows = [
        episode(n, dataset=shapes, image_sha256="", needed_view="crop:56,0,112,56", turns=TURNS[name])
        for n, name in enumerate(("zoomed", "direct"))
    ]
    write_run(run, {"episodes/step-000002": rows})
    key = KEY.replace("000001", "000002")
    group = key.partition("&kind")[0] + "&sample=0-7"
    for page, num_called in ((f"episode?{key}0", 4), (f"episode?{key}1", 0), (f"group?{group}", 0)):
        text = client.get(f"/r/tiny/{page}").text
        assert re.findall(r'<rect class="needed" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)"', text) == [
            ("28.0", "0.0", "28.0"), ("56.0", "0.0", "56.0"),
        ]  # fmt: skip
        assert text.count('<rect class="box"') == num_called
        assert text.count("dashed: the region that is needed") == 1


def test_the_reward_of_a_box_is_a_part_of_its_own(client, run):
    config = Config()
    reward = replace(config.reward, box_weight=0.1, area_weight=0.2)
    (run / "config.yaml").write_text(to_yaml(replace(config, reward=reward)))
    text = re.sub(r"\s+", " ", re.sub("<[^>]+>", "", client.get(f"/r/tiny/episode?{KEY}0").text))
    assert "1.500 = 1.00 accuracy + 0.50 format + 0.10 box − 0.10 penalty" in text
    direct = re.sub("<[^>]+>", "", client.get(f"/r/tiny/episode?{KEY}4").text)
    assert "0.50 format − 0.00 penalty" in direct


def test_a_refused_call_is_told_and_shows_no_picture(client):
    page = client.get(f"/r/tiny/episode?{KEY}2").text
    assert "they tell why the call was refused" in page
    assert "answered directly; 1 refused call" in page
    assert '<img class="crop"' not in page


def test_a_view_that_is_not_of_the_picture_is_not_found(client):
    for view in ("crop:0,0,500,500", "crop:0,0,0,0", "half", "crop:-1,0,5,5"):
        assert client.get(f"/r/tiny/picture?{KEY}1&view={view}").status_code == 404


@pytest.mark.parametrize(
    ("query", "indices"),
    [
        ({"tool": "request_local_region"}, {0, 1}),
        ({"tool": "image_zoom_in_tool"}, {1}),
        ({"tool": "resize_image"}, {3}),
        ({"tool": "refused"}, {2}),
        ({"tool": "asked"}, {0, 1, 3}),
        ({"tool": "direct"}, {2, 4}),
        ({"calls": "1"}, {0, 3}),
        ({"calls": "2"}, {1}),
        ({"calls": "3 or more"}, set()),
    ],
)
def test_filters_find_calls_by_tool_and_number(run, query, indices):
    con = EpisodeIndex(run).cursor()
    rows = queries.page(con, Filter.of(query | {"set": "training"}), offset=0, limit=99)
    assert {row["index"] for row in rows} == indices


def test_calls_and_their_tokens_are_counted_by_tool(run):
    con = EpisodeIndex(run).cursor()
    uses = {(use.set, use.tool): use for use in queries.tool_uses(con)}
    region = uses["training", "request_local_region"]
    assert (region.num_calls, region.episodes.num_hits, region.episodes.num_cases) == (2, 2, 5)
    assert region.tokens_per_call == 16
    assert uses["training", "resize_image"].tokens_per_call == 64
    assert uses["heldout", "image_zoom_in_tool"].accuracy.share == 1.0
    (score,) = queries.scores(con, "training")
    assert (score.calls_per_episode, score.tokens_per_call) == (4 / 5, (16 + 16 + 4 + 64) / 4)


def test_a_file_that_names_no_tool_has_calls_of_the_full_view(run):
    path = run / "episodes" / "step-000001.parquet"
    table = pq.read_table(path)
    kept = [field for field in EPISODES.field("turns").type.value_type if field.name not in ("tool", "fault")]
    turns = [[{f.name: t[f.name] for f in kept} for t in TURNS[name]] for name in ("resized", "direct") for _ in "ab"]
    old = table.slice(0, 4).set_column(
        table.schema.get_field_index("turns"), "turns", pa.array(turns, pa.list_(pa.struct(kept)))
    )
    pq.write_table(old, path)
    uses = [use for use in queries.tool_uses(EpisodeIndex(run).cursor()) if use.set == "training"]
    assert [(use.tool, use.num_calls) for use in uses] == [("resize_image", 2)]


def test_pages_tell_of_tools_where_there_are_several(client, run):
    overview = client.get("/r/tiny/").text
    assert "<h2>Tools</h2>" in overview
    assert "calls per episode" in overview
    assert "tokens per call" in client.get("/r/tiny/heldout").text
    curves = client.get("/r/tiny/curves").text
    for title in ("Calls per episode", "Visual tokens per call", "Calls by tool"):
        assert title in curves
    compare = re.sub("<[^>]+>", " ", client.get("/compare?run=tiny").text)
    assert re.search(r"calls per episode\s+tokens per call", compare)
    assert re.search(r"0\.80\s+25\.0", compare)
    group = client.get("/r/tiny/group?set=training&file=step-000001&sample=0-7").text
    assert "called request_local_region, image_zoom_in_tool" in group
    assert '<svg class="boxes"' not in group, "boxes are of one episode"


def test_a_run_with_the_full_view_alone_has_no_table_of_tools(tmp_path):
    run = write_run(tmp_path / "plain", {"episodes/step-000001": [episode(0, asked=True), episode(1)]})
    client = TestClient(make_app(RunBook([run]), token="t"), base_url="http://127.0.0.1")
    client.cookies.set("visionthink", "t")
    assert "<h2>Tools</h2>" not in client.get("/r/plain/").text
    metrics = [{"step": 1, "policy/tool_share/resize_image": 1.0, "policy/calls_per_episode": 0.4}]
    assert [chart.title for chart in line_charts({"plain": metrics}, "curves")] == ["Calls per episode"]


def test_the_report_has_boxes_and_regions_inside(run):
    text = write_report(run).read_text()
    assert text.count('<rect class="box') == 2, "one episode of a sample is shown"
    assert re.search(r'<img class="crop" src="data:image/png;base64,', text)
    assert "<h2>Tools</h2>" in text
