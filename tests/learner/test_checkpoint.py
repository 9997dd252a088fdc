import errno
import json
import shutil

import pytest

from actors.errors import CheckpointError
from learner.checkpoint import newest_checkpoint, write_checkpoint

CONTENT = {"learner.json": b'{"step": 1}', "learner-00000.safetensors": b"\x01" * 5000, "state.json": b"{}"}


class Killed(BaseException):
    """Stands for the process being gone at this line: nothing after it runs."""


def write_files(folder, marker=b""):
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content + marker)


def saved(root, *steps, keep=10):
    for step in steps:
        write_checkpoint(root, step, lambda folder, step=step: write_files(folder, str(step).encode()), keep)


def test_the_newest_checkpoint_is_found_whole(tmp_path):
    saved(tmp_path, 5, 10)
    found = newest_checkpoint(tmp_path)
    assert found.path == tmp_path / "step-00000010"
    assert found.rejected == ()
    assert (found.path / "state.json").read_bytes() == b"{}10"


def test_steps_are_ordered_as_numbers(tmp_path):
    saved(tmp_path, 99_999_999, 100_000_000)
    assert newest_checkpoint(tmp_path).path.name == "step-100000000"


def test_no_folder_means_no_checkpoint(tmp_path):
    found = newest_checkpoint(tmp_path / "nothing")
    assert (found.path, found.rejected) == (None, ())


def test_only_the_newest_are_kept(tmp_path):
    saved(tmp_path, 1, 2, 3, 4, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def truncate(path):
    file = path / "learner-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_byte(path):
    file = path / "learner-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[1234] ^= 1
    file.write_bytes(content)


def drop_the_manifest(path):
    (path / "manifest.json").unlink()


def empty_the_manifest(path):
    (path / "manifest.json").write_bytes(b"")


def list_nonsense(path):
    (path / "manifest.json").write_text('{"format": 1, "files": ["x"]}')


def lose_a_file(path):
    (path / "state.json").unlink()


def add_a_file(path):
    (path / "more.json").write_text("{}")


def age_the_format(path):
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "5001 bytes, the manifest says 5002"),
        (flip_a_byte, "has hash"),
        (drop_the_manifest, "no manifest"),
        (empty_the_manifest, "cannot be read"),
        (list_nonsense, "cannot be read"),
        (lose_a_file, "its files are"),
        (add_a_file, "its files are"),
        (age_the_format, "format is 99"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_the_reason_said(tmp_path, damage, reason):
    saved(tmp_path, 5, 10)
    damage(tmp_path / "step-00000010")
    found = newest_checkpoint(tmp_path)
    assert found.path == tmp_path / "step-00000005"
    assert len(found.rejected) == 1
    assert "step-00000010" in found.rejected[0]
    assert reason in found.rejected[0]


def test_what_a_killed_run_left_is_removed(tmp_path):
    saved(tmp_path, 5)
    shutil.copytree(tmp_path / "step-00000005", tmp_path / ".tmp-00000010")
    found = newest_checkpoint(tmp_path)
    assert found.path == tmp_path / "step-00000005"
    assert ".tmp-00000010 is incomplete" in found.rejected[0]
    assert not (tmp_path / ".tmp-00000010").exists()


OPERATIONS = ("mkdir", "write_text", "rename", "unlink")


@pytest.mark.parametrize("replaces", [False, True])
def test_a_kill_at_any_boundary_leaves_a_whole_checkpoint(tmp_path, monkeypatch, replaces):
    """Every file-system call of a save is in turn the last one that happens."""
    import os
    import pathlib

    import learner.checkpoint as module

    survived, last = 0, 0
    while True:
        root = tmp_path / f"{last}"
        saved(root, 5)
        if replaces:
            saved(root, 10)
        count = 0

        def dies(original, limit=last):
            def call(*args, **kwargs):
                nonlocal count
                count += 1
                if count > limit:
                    raise Killed
                return original(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in OPERATIONS:
                patch.setattr(pathlib.Path, name, dies(getattr(pathlib.Path, name)))
            patch.setattr(os, "fsync", dies(os.fsync))
            patch.setattr(module.shutil, "rmtree", dies(shutil.rmtree))
            try:
                write_checkpoint(root, 10, lambda folder: write_files(folder, b"new"), 10)
                finished = True
            except Killed:
                finished = False
        found = newest_checkpoint(root)
        assert found.path is not None, f"killed before call {last + 1}"
        content = (found.path / "state.json").read_bytes()
        assert content in ((b"{}new",) if finished else (b"{}5", b"{}10", b"{}new")), content
        survived += 1
        if finished:
            break
        last += 1
    assert survived > 8


@pytest.mark.parametrize("boundary", range(4))
def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, boundary):
    saved(tmp_path, 5)

    def write(folder):
        for index, (name, content) in enumerate(CONTENT.items()):
            if index == boundary:
                raise OSError(errno.ENOSPC, "No space left on device")
            (folder / name).write_bytes(content)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left"):
        write_checkpoint(tmp_path, 10, write, 2)
    found = newest_checkpoint(tmp_path)
    assert found.path == tmp_path / "step-00000005"
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


@pytest.mark.parametrize("name", ["state.pkl", "model.bin", "rank0.pt"])
def test_a_file_that_could_run_code_is_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match="not allowed in a checkpoint"):
        write_checkpoint(tmp_path, 1, lambda folder: (folder / name).write_bytes(b"x"), 2)
    assert newest_checkpoint(tmp_path).path is None
