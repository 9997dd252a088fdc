"""Several runs in one figure and one table."""

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

from cluster.cli import app
from cluster.records.compare import heldout_figures, heldout_tables, labels_of, plot_runs


def make_run(folder: Path, *, accuracy: float, needed: float | None = 0.5, heldout: float | None = 0.9) -> Path:
    folder.mkdir(parents=True)
    lines: list[dict[str, float]] = []
    for step in (1, 2, 3):
        figures = {"step": step, "reward/accuracy": accuracy, "policy/ask_share": 0.4, "policy/visual_token_share": 0.6}
        lines.append(figures if needed is None else figures | {"policy/ask_share_needed": needed})
    if heldout is not None:
        lines.append({"step": 2, "heldout/accuracy": heldout / 2})
        lines.append({"step": 3, "heldout/accuracy": heldout, "heldout/visual_token_share": 0.63})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_runs_of_the_same_name_are_told_apart_by_their_folders(tmp_path, monkeypatch):
    for name in ("a/runs/tiny", "b/runs/tiny", "b/runs/other"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert labels_of([Path("a/runs/tiny"), Path("b/runs/other")]) == ["tiny", "other"]
    assert labels_of([Path("a/runs/tiny"), Path("b/runs/tiny")]) == ["a/runs/tiny", "b/runs/tiny"]
    monkeypatch.chdir(tmp_path / "b" / "runs")
    assert labels_of([Path("tiny"), Path("../../a/runs/tiny")]) == ["b/runs/tiny", "a/runs/tiny"]
    with pytest.raises(ValueError, match="given twice"):
        labels_of([Path("tiny"), Path("../runs/tiny")])


def test_the_figure_has_a_panel_per_metric_that_any_run_has(tmp_path):
    one = make_run(tmp_path / "one", accuracy=0.5)
    bare = make_run(tmp_path / "bare", accuracy=0.7, needed=None, heldout=None)
    sizes = []
    for runs in ([bare], [one, bare]):
        plot_runs(runs, tmp_path / "figures" / "out.png")
        with Image.open(tmp_path / "figures" / "out.png") as image:
            sizes.append(image.size)
    (narrow, low), (wide, high) = sizes
    assert (wide > narrow, high > low) == (True, True)  # 3 panels, and 6 in two rows


def test_the_last_held_out_figures_stand_side_by_side(tmp_path):
    runs = [
        make_run(tmp_path / "x" / "tiny", accuracy=0.5),
        make_run(tmp_path / "y" / "tiny", accuracy=0.5, heldout=None),
    ]
    found = heldout_figures(runs)
    assert found["x/tiny"]["accuracy"] == 0.9
    assert found["x/tiny"]["step"] == 3
    assert found["x/tiny"]["visual-token ratio"] == 0.63
    assert set(found["y/tiny"].values()) == {None}


def make_tool_run(folder: Path) -> Path:
    """A run whose data set records regions that are needed."""
    make_run(folder, accuracy=0.5)
    figures = {"policy/right_tool_share_region": 0.4, "policy/right_tool_share_full": 0.3}
    figures |= {"policy/visual_token_share": 0.7, "policy/visual_token_optimum": 0.6}
    heldout = {"heldout/accuracy": 0.9, "heldout/right_tool_share_region": 0.8, "heldout/visual_token_optimum": 0.61}
    with (folder / "metrics.jsonl").open("a") as lines:
        lines.writelines(json.dumps({"step": step} | figures) + "\n" for step in (4, 5))
        lines.write(json.dumps({"step": 5} | heldout) + "\n")
    return folder


def drawn(monkeypatch, runs, out):
    """The figure that is saved, by the titles of its panels."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    plot_runs(runs, out)
    (figure,) = figures
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def test_runs_with_tools_have_panels_by_need_and_the_optimum(tmp_path, monkeypatch):
    plain, tools = make_run(tmp_path / "plain", accuracy=0.5), make_tool_run(tmp_path / "tools")
    panels = drawn(monkeypatch, [plain, tools], tmp_path / "out.png")
    assert {"Right tool, region needed", "Right tool, full view needed"} <= panels.keys()
    assert "Right tool, quarter view needed" not in panels, "no run has it"
    lines = panels["Visual-token ratio (1 = always full)"].get_lines()
    assert [list(line.get_ydata()) for line in lines if line.get_linestyle() == ":"] == [[], [0.6, 0.6]]
    found = heldout_figures([plain, tools])
    assert (found["tools"]["right tool, region needed"], found["tools"]["optimum"]) == (0.8, 0.61)
    (first, _), (heads, rows) = heldout_tables(found)
    assert (first[:2], len(first)) == (("step", "accuracy"), 8)
    needed = (f"right tool, {view} needed" for view in ("quarter view", "region", "full view"))
    assert heads == (*needed, "optimum")
    assert rows["tools"] == (None, 0.8, None, 0.61)
    assert len(heldout_tables(heldout_figures([plain]))) == 1
    assert found["plain"]["optimum"] is None


def test_runs_with_the_full_view_alone_are_drawn_as_before(tmp_path, monkeypatch):
    run = make_run(tmp_path / "plain", accuracy=0.5)
    with (run / "metrics.jsonl").open("a") as lines:
        known = {"policy/right_tool_share_full": 0.5, "policy/visual_token_optimum": 0.6}
        lines.write(json.dumps({"step": 4, "policy/tool_share/resize_image": 1.0} | known) + "\n")
    panels = drawn(monkeypatch, [run], tmp_path / "out.png")
    assert not [title for title in panels if "needed" in title and title.startswith("Right")]
    assert len(panels["Visual-token ratio (1 = always full)"].get_lines()) == 1 + 2, "a curve and two marks"
    assert "optimum" not in heldout_figures([run])["plain"]


def test_a_panel_of_one_point_has_whole_steps(tmp_path, monkeypatch):
    run = make_run(tmp_path / "one", accuracy=0.5, heldout=None)
    with (run / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps({"step": 3, "heldout/accuracy": 0.9}) + "\n")
    ticks = drawn(monkeypatch, [run], tmp_path / "out.png")["Held-out accuracy"].get_xticks()
    assert 3 in ticks
    assert all(tick == round(tick) for tick in ticks), ticks


def test_the_command_prints_picture_and_figures(tmp_path):
    runs = [str(make_run(tmp_path / name, accuracy=0.5)) for name in ("threshold", "always", "never")]
    out = tmp_path / "out.png"
    done = CliRunner().invoke(app, ["compare", *runs, "--out", str(out), "--json"])
    found = json.loads(done.stdout)
    assert (found["picture"], set(found["heldout"])) == (str(out), {"threshold", "always", "never"})
    assert out.is_file()
    (tmp_path / "empty").mkdir()
    refused = CliRunner().invoke(app, ["compare", *runs, str(tmp_path / "empty")])
    assert refused.exit_code == 1
    assert "finished a step" in refused.stderr
