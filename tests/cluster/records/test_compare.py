"""Several runs in one figure and one table."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from cluster.cli import app
from cluster.records.compare import heldout_figures, labels_of, plot_runs


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
