"""The report: the viewer's pages as one file."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from actors.data.shapes import write_split
from actors.images import quarter_view
from cluster.records.events import Event, EventLog
from cluster.viewer import report as report_module
from cluster.viewer.index import EpisodeIndex, newest
from cluster.viewer.pages import MAX_EVENTS
from cluster.viewer.pictures import Pictures, encode
from cluster.viewer.report import NUM_PER_KIND, choose_episodes, write_report
from configs.schema import Config
from tests.cluster.viewer.drawn import episode, heldout, turn, write_run


@pytest.fixture
def shapes(tmp_path):
    path = tmp_path / "shapes.parquet"
    write_split(path, num_rows=2, seed=0, split="train")
    return path


@pytest.fixture
def run(tmp_path, shapes):
    rows = [episode(sample=f"0-{n}", correct=n > 0, dataset=str(shapes), image_sha256="") for n in range(3)]
    metrics = [{"step": 1, "reward/accuracy": 0.5, "run/useful_time": 0.5}]
    files = {"episodes/step-000001": rows, "heldout/step-000001": [heldout("heldout-0", "policy", True)]}
    return write_run(tmp_path / "runs" / "tiny", files, metrics)


def test_the_report_needs_no_other_file_and_no_script(run):
    report = write_report(run)
    assert report == run / "report.html"
    page = report.read_text()
    assert set(re.findall(r'(?:src|href)="([^"]{4})', page)) == {"data"}
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert page.count("data:image/png;base64,") == 6, "two views of each of three episodes"
    assert 'class="chosen"' in page
    for fact in (
        "vertical",
        "same text",
        "+0.250",
        "Accuracy and format",
        "train.num_steps",
        "4 episodes of the training (3)",
    ):
        assert fact in page, fact
    assert not list(run.glob("*.tmp"))


def test_what_a_policy_writes_is_text_in_the_report_too(run):
    attack = "</style></pre><script>alert(1)</script>\x00\u202e"
    rows = [episode(question=attack, answer=attack, reason=attack, dataset=attack, turns=[turn(attack)])]
    write_run(run, {"episodes/step-000002": rows})
    page = write_report(run).read_text()
    assert "<script" not in page
    assert page.count("</style>") == 1
    assert not {"\x00", "\u202e"} & set(page)


def test_a_report_is_written_even_where_the_data_set_is_gone(run, shapes):
    shapes.unlink()
    page = write_report(run).read_text()
    assert page.count("cannot be read from its data set") == 4
    assert "data:image" not in page


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config\.yaml"):
        write_report(tmp_path)


def test_a_report_of_a_long_log_lists_its_end(run):
    log = EventLog(run, say=lambda _: None, warn=lambda _: None)
    for step in range(MAX_EVENTS + 5):
        log.add(Event(kind="skip", who=f"sample <{step}>", step=step))
    page = write_report(run).read_text()
    assert f"The last {MAX_EVENTS} of {MAX_EVENTS + 5}" in page
    assert "sample &lt;4&gt;" not in page
    assert "sample &lt;5&gt;" in page


def test_chosen_episodes_are_of_every_kind_and_of_different_samples(tmp_path):
    rows = [episode(n % 2, sample=f"0-{n // 2}") for n in range(40)]
    rows += [episode(0, sample="masked", correct=None), episode(0, sample="wrong", correct=False, needs_full=True)]
    con = EpisodeIndex(write_run(tmp_path, {"episodes/step-000001": rows})).cursor()
    chosen = [(title, row["sample"]) for title, row in choose_episodes(con)]
    assert len({sample for _, sample in chosen}) == len(chosen)
    assert [title for title, _ in chosen].count("newest") == NUM_PER_KIND
    assert {("masked", "masked"), ("should have asked", "wrong")} <= set(chosen)


def test_pictures_are_cut_from_the_data_set_as_the_engine_cut_them(shapes):
    views = Pictures(Config()).views(episode(dataset=str(shapes), image_sha256=""))
    assert not isinstance(views, str), views
    quarter, full = views
    assert quarter is not None
    assert full.shape == (2 * quarter.shape[0], 2 * quarter.shape[1], 3)
    assert np.array_equal(quarter, quarter_view(full))


@pytest.mark.parametrize(("side", "max_side", "kind"), [(64, 640, "png"), (640, 640, "png"), (1280, 640, "jpeg")])
def test_large_pictures_are_reduced_and_small_ones_are_exact(side, max_side, kind):
    view = np.random.default_rng(0).integers(0, 256, (side, side // 2, 3), dtype=np.uint8)
    media_type, content = encode(view, max_side)
    assert media_type == f"image/{kind}"
    image = Image.open(io.BytesIO(content))
    assert image.size == (min(side, max_side) // 2, min(side, max_side))
    if kind == "png":
        assert np.array_equal(np.array(image), view)


def test_the_report_of_a_huge_run_reads_its_ends(run, monkeypatch):
    write_run(run, {f"episodes/step-{step:06d}": [episode(step=step)] for step in range(2, 9)})
    sizes = [path.stat().st_size for path in sorted((run / "episodes").glob("*.parquet"))]
    monkeypatch.setattr(
        report_module, "MAX_BYTES", sum(sizes[-2:]) + (run / "heldout" / "step-000001.parquet").stat().st_size
    )
    page = write_report(run).read_text()
    assert "made from the newest episodes and the oldest: 5 files between were not read" in page
    assert "5</b>episodes of 3 steps" in page


def test_the_oldest_file_of_each_set_and_the_newest_within_the_size_are_kept():
    files = {("training", f"step-{n}"): (n, 10) for n in range(1, 6)} | {("heldout", "step-2"): (2, 10)}
    kept = newest(files, 30)
    assert list(kept) == [("training", "step-1"), ("training", "step-4"), ("training", "step-5"), ("heldout", "step-2")]
    assert newest(files, 1000) == files
    assert list(newest(files, 0)) == [("training", "step-1"), ("heldout", "step-2")]
    assert newest({}, 5) == {}
