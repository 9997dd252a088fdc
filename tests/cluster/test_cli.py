"""What the command settles before it starts anything."""

import pytest
import typer

from actors.errors import DataError, RunError
from cluster.datasets import shipped
from cluster.shell import report_errors
from configs.load import load_config
from configs.paths import resolve_paths


@pytest.mark.parametrize(
    ("overrides", "has_train", "has_heldout", "is_drawn"),
    [
        ([], False, False, True),
        ([], True, False, True),
        ([], True, True, False),
        (["data.train=other/train.parquet"], False, False, False),
        (["data.heldout=data/shapes/other.parquet"], False, False, False),
        (
            ["data.train=my/data/shapes/train.parquet", "data.heldout=my/data/shapes/heldout.parquet"],
            False,
            False,
            True,
        ),
    ],
)
def test_the_default_data_set_is_drawn_where_the_settled_paths_want_it(
    overrides, has_train, has_heldout, is_drawn, tmp_path
):
    config = resolve_paths(load_config("tiny", overrides), base=tmp_path)
    folder = tmp_path / "data" / "shapes"
    folder.mkdir(parents=True)
    for name, is_there in (("train.parquet", has_train), ("heldout.parquet", has_heldout)):
        if is_there:
            (folder / name).touch()
    found = shipped.missing_task(config.data)
    assert (found is not None) == is_drawn
    if found is not None:
        assert found == ("shapes", tmp_path / "my" / "data" / "shapes" if overrides else folder)


def test_the_data_of_the_crop_task_are_drawn_as_well(tmp_path):
    overrides = ["data.train=data/crop/train.parquet", "data.heldout=data/crop/heldout.parquet"]
    config = resolve_paths(load_config("tiny", overrides), base=tmp_path)
    assert shipped.missing_task(config.data) == ("crop", tmp_path / "data" / "crop")


def test_a_folder_that_takes_no_data_is_told_with_the_remedy():
    config = resolve_paths(
        load_config("tiny", [f"data.{split}=/proc/data/shapes/{split}.parquet" for split in ("train", "heldout")])
    )
    with pytest.raises(DataError, match=r"/proc/data/shapes cannot be written to.*--out"):
        shipped.make_missing_data(config)


def test_each_of_several_problems_is_shown_as_an_error(capsys):
    with pytest.raises(typer.Exit), report_errors():
        raise RunError("run.dir=1\nmodel.path=[2]")
    assert capsys.readouterr().err.splitlines() == ["error: run.dir=1", "error: model.path=[2]"]
