"""`visionthink data`: what cannot work is told in one line, before the work is done."""

import pytest
from typer.testing import CliRunner

from cluster.cli import app


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["make", "--train-rows", "0"], "--train-rows=0 is invalid: must be at least 1"),
        (["make", "--heldout-rows", "-1"], "--heldout-rows=-1 is invalid: must be at least 1"),
        (["make", "--out", "{file}/x", "--train-rows", "1"], "/x cannot be written to: Not a directory"),
        (["check", "--rows", "0"], "--rows=0 is invalid: must be at least 1"),
        (["check", "--sheet", "{file}/x.png"], "is a file; give a writable folder"),
        (["check", "--sheet", "{folder}"], "is a folder; give the path of a PNG file"),
        (["get", "a b"], "NAME='hf://a b' is invalid: "),
        (["select", "--rows", "0"], "--rows=0 is invalid: must be at least 1"),
    ],
)
def test_what_cannot_work_is_told_before_the_work(arguments, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    paths = {"file": tmp_path / "file", "folder": tmp_path}
    done = CliRunner().invoke(app, ["data", *(argument.format(**paths) for argument in arguments)])
    assert done.exit_code == 1
    (line,) = done.stderr.strip().splitlines()
    assert told in line
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
