"""The report and the figures of runs, from the files that a run leaves."""

import base64
import io
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from actors.data.shapes import write_split
from actors.images import quarter_view
from cluster.records.events import Event, EventLog, read_events
from cluster.records.plots import CHARTS, EVENT_COLOURS, chart_svg
from cluster.records.reading import choose_episodes, curve, read_episodes, read_metrics
from cluster.records.report import MAX_EVENTS, load_views, picture_uri, render_episode, render_page, write_report
from configs.load import to_yaml
from configs.schema import Config

QUARTER, FULL = np.zeros((56, 84, 3), np.uint8), np.full((112, 168, 3), 255, np.uint8)


def episode(step: int = 1, sample: str = "0-0", **changes) -> dict:
    turn = {
        "text": "<think>flat</think><tool_call>{}</tool_call>",
        "view": "quarter",
        "num_visual_tokens": 6,
        "num_prompt_tokens": 20,
        "completion_ids": [1, 2, 3],
        "logprobs": [-0.1, -0.2, -0.3],
        "version_spans": [{"version": 4, "num_tokens": 3}],
        "finish_reason": "stop",
    }
    row = {
        "step": step,
        "sample": sample,
        "index": 0,
        "dataset": "nowhere.parquet",
        "row": 0,
        "question": "Which way do the stripes run?",
        "reference": "vertical",
        "needs_full": True,
        "status": "answered",
        "asked": True,
        "answer": "vertical",
        "is_well_formed": True,
        "is_correct": True,
        "judge": "rules",
        "reason": "same text",
        "reward": 1.4,
        "advantage": -0.25,
        "oldest_version": 4,
        "newest_version": 5,
        "turns": [
            turn,
            turn
            | {
                "view": "full",
                "text": "<answer>vertical</answer>",
                "version_spans": [{"version": 4, "num_tokens": 1}, {"version": 5, "num_tokens": 2}],
            },
        ],
    }
    return row | changes


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "runs" / "tiny"
    (folder / "episodes").mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(Config()))
    lines = [
        {"step": step, "reward/mean": 0.5 + step / 10, "policy/ask_share": 1 - step / 10, "reward/accuracy": step / 10}
        for step in (1, 2, 3)
    ]
    lines.append({"step": 3, "heldout/accuracy": 0.975, "heldout/ask_share_needed": 0.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "rew')
    for step in (1, 2, 3):
        rows = [episode(step), episode(step, "0-1", needs_full=False, asked=False, turns=episode()["turns"][:1])]
        pq.write_table(pa.Table.from_pylist(rows), folder / "episodes" / f"step-{step:06d}.parquet")
    return folder


def test_figures_are_read_by_step_and_a_torn_line_is_left_out(run_dir):
    metrics = read_metrics(run_dir)
    assert [figures["step"] for figures in metrics] == [1, 2, 3]
    assert metrics[-1]["heldout/accuracy"] == 0.975
    assert metrics[-1]["reward/mean"] == 0.8
    assert curve(metrics, "heldout/accuracy") == ([3], [0.975])
    assert curve(metrics, "nobody/wrote_this") == ([], [])


def test_a_run_without_figures_has_none(tmp_path):
    assert read_metrics(tmp_path) == []
    assert read_episodes(tmp_path) == []


def test_episodes_come_from_the_first_and_the_last_step(run_dir):
    assert [row["step"] for row in read_episodes(run_dir)] == [1, 1, 3, 3]


def test_chosen_episodes_differ_in_kind_before_they_differ_in_sample():
    plain = [episode(sample=f"0-{n}", asked=False, needs_full=False) for n in range(6)]
    rare = episode(sample="0-5", asked=True, needs_full=False, is_correct=None)
    chosen = choose_episodes([*plain, rare], 3)
    assert [(row["sample"], row["asked"]) for row in chosen] == [("0-0", False), ("0-5", True), ("0-1", False)]
    assert choose_episodes([*plain, rare], 1) == plain[:1]
    assert choose_episodes([], 3) == []


def test_the_page_needs_no_other_file_and_shows_curves_settings_and_episodes(run_dir):
    rows = read_episodes(run_dir)
    page = render_page(Config(), read_metrics(run_dir), rows, lambda row: (QUARTER, FULL))
    assert page.count('<div class="episode">') == 4
    assert page.count("data:image/png;base64,") == 8
    assert "data:image/svg+xml;base64," in page
    assert set(re.findall(r'(?:src|href)="(\w+):', page)) == {"data"}
    for fact in ("vertical", "same text", "1.400", "-0.250", "4, 5", "0.975", "train.num_steps", "84 x 56 pixels"):
        assert fact in page


def test_what_a_policy_writes_never_becomes_markup():
    attack = '<script>alert(1)</script><img src="x">&amp;'
    row = episode(question=attack, reference=attack, answer=attack, reason=attack, sample=attack)
    row["turns"][0]["text"] = attack
    shown = render_episode(row, attack)
    assert "<script" not in shown
    assert '<img src="x"' not in shown
    assert shown.count("&lt;script&gt;") == 7
    assert "&amp;amp;" in shown


def test_an_episode_without_verdict_reward_or_quarter_view_is_shown():
    row = episode(
        is_correct=None, judge=None, reason="no verdict within 60 s", reward=None, advantage=None, answer=None
    )
    shown = render_episode(row, (None, FULL))
    assert "no verdict (-: no verdict within 60 s)" in shown
    assert "quarter view" not in shown.replace("turn 1: quarter view", "")
    assert render_episode(episode(needs_full=None), "gone").count("need not recorded") == 1


@pytest.mark.parametrize(("side", "max_side", "kind"), [(64, 640, "png"), (640, 640, "png"), (1280, 640, "jpeg")])
def test_large_pictures_are_reduced_and_small_ones_are_exact(side, max_side, kind):
    view = np.random.default_rng(0).integers(0, 256, (side, side // 2, 3), dtype=np.uint8)
    head, encoded = picture_uri(view, max_side).split(",")
    assert head == f"data:image/{kind};base64"
    image = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert image.size == (min(side, max_side) // 2, min(side, max_side))
    if kind == "png":
        assert np.array_equal(np.array(image), view)


def test_a_report_is_written_even_where_the_data_set_is_gone(run_dir, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    report = write_report(run_dir)
    assert report == run_dir / "report.html"
    page = report.read_text()
    assert page.count("image not available") == 4
    assert "Curves" in page
    assert not report.with_suffix(".tmp").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config\.yaml"):
        write_report(tmp_path)


def test_a_chart_without_figures_is_left_out(run_dir):
    metrics = read_metrics(run_dir)
    drawn = {chart.title for chart in CHARTS if chart_svg(chart, metrics)}
    assert drawn == {"Reward", "Tool-call rate"}
    assert all(chart_svg(chart, []) is None for chart in CHARTS)


def test_every_chart_draws_a_run_of_one_step_and_figures_that_are_no_number():
    for figures in (0.0, 1e-6, float("nan")):
        step = {"step": 1.0} | {key: figures for chart in CHARTS for key, _ in chart.curves}
        for chart in CHARTS:
            assert chart_svg(chart, [step])


def test_pictures_are_cut_from_the_data_set_as_the_engine_cut_them(run_dir, tmp_path):
    path = tmp_path / "shapes.parquet"
    write_split(path, num_rows=2, seed=0, split="train")
    row = episode(dataset=str(path))
    opened: dict = {}
    views = load_views(Config(), opened, row)
    assert not isinstance(views, str), views
    quarter, full = views
    assert full.shape == (2 * quarter.shape[0], 2 * quarter.shape[1], 3)
    assert np.array_equal(quarter, quarter_view(full))
    assert list(opened) == [str(path)]


def test_events_are_listed_and_drawn_where_they_happened(run_dir):
    log = EventLog(run_dir, say=lambda _: None, warn=lambda _: None)
    for step in (1, 2):
        log.add(Event(kind="leave", who=f"rollout worker {step}", detail="<b>node lost</b>", step=step))
    log.add(Event(kind="mask", who="judges", step=2))
    page = write_report(run_dir).read_text()
    assert "2 leave, 1 mask" in page
    assert "step 1: rollout worker 1: leave: &lt;b&gt;node lost&lt;/b&gt;" in page
    chart = next(chart for chart in CHARTS if chart.shows_events)
    steps = [{"step": 1.0, "run/useful_time": 0.3}, {"step": 2.0, "run/useful_time": 0.4}]
    mask = Event(kind="mask", who="judges", step=2)

    def num_lines(events) -> int:
        svg = base64.b64decode(str(chart_svg(chart, steps, events)).partition(",")[2]).decode()
        return svg.count(EVENT_COLOURS["leave"])

    assert num_lines([]) == num_lines([mask]) == 0, "a mask is not a member's"
    assert num_lines(read_events(run_dir)) == 3, "two lines and the legend"


def test_a_report_of_a_long_log_lists_its_end(run_dir):
    log = EventLog(run_dir, say=lambda _: None, warn=lambda _: None)
    for step in range(MAX_EVENTS + 5):
        log.add(Event(kind="skip", who=f"sample {step}", step=step))
    page = write_report(run_dir).read_text()
    assert f"The last {MAX_EVENTS} of {MAX_EVENTS + 5} events" in page
    assert "sample 4:" not in page
    assert "sample 5:" in page
