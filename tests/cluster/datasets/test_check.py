"""What is wrong with a set is found, counted by reason and told with the remedy; the sheet shows both views."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin
from typer.testing import CliRunner

from actors.data.shapes import write_split
from cluster.cli import app
from cluster.datasets.bars import bars
from cluster.datasets.check import spread, token_figures
from cluster.datasets.report import check_sets, report_lines
from configs.load import load_config
from configs.paths import resolve_paths


def picture(seed: int, side: int = 112, **options) -> bytes:
    encoded = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(encoded, "PNG", **options)
    return encoded.getvalue()


def row(seed: int, question: str = "what?", answer: str = "this", *, image: bytes | None = None, **more):
    return {"problem": question, "image": image or picture(seed), "original_answer": answer, **more}


@pytest.fixture
def checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def check(train, heldout=None, *overrides, **options):
        for name, rows in (("train", train), ("heldout", heldout or [row(999)])):
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
        given = ["data.train=train.parquet", "data.heldout=heldout.parquet", *overrides]
        config = resolve_paths(load_config("tiny", given))
        settings = {"limit": None, "num_shown": 0, "sheet": tmp_path / "sheet.png"} | options
        return check_sets(config, **settings)

    return check


def test_unreadable_rows_are_counted_by_reason(checked):
    broken = picture(1)[:200]
    rows = [row(index) for index in range(8)]
    rows += [
        row(0, image=broken),
        row(0, image=broken + b"x"),
        row(0, image=b"GIF89a"),
        row(0, answer=" "),
        row(0, "<|image_pad|>"),
    ]
    found = checked(rows)["train"]
    assert (found["num_readable"], found["num_unreadable"]) == (8, 5)
    assert [(one["count"], one["rows"]) for one in found["unreadable"]] == [
        (2, [8, 9]),
        (1, [10]),
        (1, [11]),
        (1, [12]),
    ]
    assert "original_answer is empty" in found["unreadable"][2]["example"]


def test_many_unreadable_rows_are_a_problem_as_in_a_run(checked):
    found = checked([row(0)] * 30 + [row(0, answer="")] * 10)
    assert "data.train: 10 of 40 rows are unreadable, over data.max_skipped_fraction=0.01" in found["problems"][0]
    assert checked([row(0)] * 30 + [row(0, answer="")] * 9)["problems"] == []


def test_duplicates_are_the_same_picture_and_question_however_stored(checked):
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "other bytes, same pixels")
    same = picture(1, pnginfo=info)
    assert same != picture(1)
    rows = [row(1, "What  is it?"), row(2), row(1, "what is it?", image=same), row(1, "how many?")]
    found = checked(rows)["train"]
    assert (found["num_duplicates"], found["duplicates"], found["num_pictures"]) == (1, [(0, 2)], 2)


def test_leakage_is_told_by_sample_and_by_picture(checked):
    found = checked([row(1), row(2), row(3)], [row(9), row(1), row(2, "another question?")])
    assert found["leakage"] == {"num_samples": 1, "num_pictures": 2, "rows": [(0, 1)]}
    assert "1 held-out samples and 2 held-out pictures are in the training set" in found["problems"][0]
    assert checked([row(1)], [row(2)])["problems"] == []


def test_tokens_of_both_views_and_shares_of_the_need(checked):
    rows = [row(0, image=picture(0, 224)), row(1, image=picture(1, 112)), row(2, image=picture(2, 28))]
    rows = [{**one, "info": {"use_tool": need}} for one, need in zip(rows, (True, False, None), strict=True)]
    found = checked(rows, None, "rollout.max_prompt_tokens=70")
    train = found["train"]
    assert (train["full_tokens"]["min"], train["full_tokens"]["max"]) == (9, 64), "3 x 3: 2 x 2 could be halved; 8 x 8"
    assert train["num_too_small"] == 1
    assert train["use_tool"] == {"true": 1, "false": 1, "unknown": 1}
    assert train["num_too_long"] == 1, "64 + 16 > 70"
    assert "raise it, or lower model.max_pixels" in found["problems"][0]


def test_lists_of_answers_need_the_metric_that_reads_them(checked):
    rows = [row(0, answer='["a", "b"]'), row(1, answer="[1, 2]")]
    assert "1 answers are lists, which only judge.metric=anls reads" in checked(rows)["problems"][0]
    assert checked(rows, None, "judge.metric=anls")["problems"] == []


def test_the_sheet_shows_both_views(checked, tmp_path):
    rows = [row(seed, "é" * 300 + "\n" + "long " * 200) for seed in range(5)] + [row(9, image=picture(9, 28))]
    found = checked(rows, num_shown=4)
    with Image.open(found["sheet"]) as sheet:
        assert sheet.width > 3 * 500
        left, right = (np.asarray(sheet.crop((12 + shift, 12, 292 + shift, 292))) for shift in (0, 292))
    assert left.shape == right.shape
    assert not np.array_equal(left, right)
    assert len(np.unique(left.reshape(-1, 3), axis=0)) < len(np.unique(right.reshape(-1, 3), axis=0)), "fewer pixels"


def test_a_limit_reads_rows_that_are_evenly_spread(checked):
    found = checked([row(0)] * 50, limit=5)["train"]
    assert (found["num_readable"], found["num_rows"]) == (5, 50)
    assert spread(10, 3) == [0, 3, 6]
    assert spread(3, 9) == [0, 1, 2]
    assert spread(0, 4) == []


def test_histograms_hold_every_picture():
    found = token_figures({1: 2, 5: 1, 100: 3})
    assert sum(found["histogram"].values()) == 6
    assert (found["min"], found["max"], len(found["histogram"])) == (1, 100, 10)
    assert token_figures({64: 5})["histogram"] == {"64": 5}
    assert token_figures({})["mean"] is None
    assert bars({"a": 0, "bb": 4}, "t")[2].endswith("█" * 40 + " 4")
    assert len(bars({}, "t")) == 1


def test_the_command_ends_with_its_verdict_and_fails_on_a_problem(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train", "heldout"):
        write_split(tmp_path / f"{name}.parquet", num_rows=12, seed=0, split=name)
    sets = ["data.train=train.parquet", "data.heldout=heldout.parquet"]
    done = CliRunner().invoke(app, ["data", "check", *sets, "--json", "--shown", "2"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["problems"], found["train"]["num_readable"]) == ([], 12)
    done = CliRunner().invoke(app, ["data", "check", sets[0], "data.heldout=train.parquet", "--shown", "0"])
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (1, "1 problems")
    done = CliRunner().invoke(app, ["data", "check", sets[0], "data.heldout=nothing.parquet", "--shown", "0"])
    assert done.exit_code == 1
    assert "problem: data.heldout: " in done.stdout
    assert "does not exist" in done.stdout


def test_a_set_without_a_readable_row_is_told(checked):
    found = checked([row(0, answer="")] * 3)
    assert found["problems"] == ["data.train: no row can be read"]
    assert "3 unreadable" in "\n".join(report_lines(found))
