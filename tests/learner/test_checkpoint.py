import errno
import json
import shutil
from pathlib import Path

import pytest

from actors.errors import CheckpointError
from learner.state.checkpoint import CheckpointFolder, hashed_file, write_json

CONTENT = {"learner.json": b'{"step": 1}', "learner-00000.safetensors": b"\x01" * 5000, "state.json": b"{}"}


class Killed(BaseException):
    """Stands for the process being gone at this line: nothing after it runs."""


@pytest.fixture(params=["local", "memory"])
def checkpoints(request, tmp_path):
    """A folder of checkpoints on each kind of storage."""
    if request.param == "local":
        yield CheckpointFolder(tmp_path)
        return
    import fsspec

    yield CheckpointFolder(f"memory://{tmp_path.name}/checkpoints")
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]


def write_files(checkpoints, folder, marker=b""):
    written = {}
    for name, content in CONTENT.items():
        with hashed_file(checkpoints.storage, f"{folder}/{name}") as file:
            file.write(content + marker)
        written[name] = file.written
    return written


def saved(checkpoints, *steps, marker=None):
    for step in steps:
        folder = checkpoints.begin(step)
        files = write_files(checkpoints, folder, str(step).encode() if marker is None else marker)
        checkpoints.seal(step, files)


def content_of(checkpoints, name, file):
    with checkpoints.storage.open(f"{name}/{file}") as stream:
        return stream.read()


def replace(checkpoints, name, file, content):
    with checkpoints.storage.create(f"{name}/{file}") as stream:
        stream.write(content)


def test_a_sealed_checkpoint_is_listed_and_whole(checkpoints):
    saved(checkpoints, 5, 10)
    assert checkpoints.list() == ["step-00000005", "step-00000010"]
    assert checkpoints.find_flaw("step-00000010") is None
    assert content_of(checkpoints, "step-00000010", "state.json") == b"{}10"


def test_what_is_not_sealed_is_not_listed_and_is_removed(checkpoints):
    saved(checkpoints, 5)
    write_files(checkpoints, checkpoints.begin(10))
    assert checkpoints.list() == ["step-00000005"]
    assert len(checkpoints.discard_incomplete()) == 1
    assert checkpoints.storage.folders() == ["step-00000005"]


def test_a_checkpoint_can_be_given_up(checkpoints):
    write_files(checkpoints, checkpoints.begin(10))
    checkpoints.discard(10)
    assert checkpoints.storage.folders() == []


def test_steps_are_ordered_as_numbers(checkpoints):
    saved(checkpoints, 99_999_999, 100_000_000)
    assert checkpoints.list()[-1] == "step-100000000"


def test_no_folder_means_no_checkpoint(checkpoints):
    assert checkpoints.list() == checkpoints.discard_incomplete() == []


def test_a_checkpoint_of_the_same_step_is_replaced(checkpoints):
    saved(checkpoints, 5)
    saved(checkpoints, 5, marker=b"new")
    assert checkpoints.find_flaw("step-00000005") is None
    assert content_of(checkpoints, "step-00000005", "state.json") == b"{}new"


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({"newest": 6, "keep": 2}, [5, 6]),
        ({"newest": 6, "keep": 2, "keep_every": 3}, [3, 5, 6]),
        ({"newest": 4, "keep": 1}, [4, 5, 6]),
        ({"newest": 6, "keep": 9}, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_newest_are_kept_and_every_kth_and_those_of_later_steps(checkpoints, settings, left):
    saved(checkpoints, *range(1, 7))
    removed = checkpoints.prune(**settings)
    assert checkpoints.list() == [f"step-{step:08d}" for step in left]
    assert len(removed) == 6 - len(left)


def truncate(checkpoints, name):
    replace(checkpoints, name, "learner-00000.safetensors", CONTENT["learner-00000.safetensors"] + b"1")


def flip_a_byte(checkpoints, name):
    content = bytearray(content_of(checkpoints, name, "learner-00000.safetensors"))
    content[1234] ^= 1
    replace(checkpoints, name, "learner-00000.safetensors", bytes(content))


def empty_the_manifest(checkpoints, name):
    replace(checkpoints, name, "manifest.json", b"")


def list_nonsense(checkpoints, name):
    replace(checkpoints, name, "manifest.json", b'{"format": 2, "files": ["x"]}')


def lose_a_file(checkpoints, name):
    checkpoints.storage.remove(f"{name}/state.json")


def add_a_file(checkpoints, name):
    replace(checkpoints, name, "more.json", b"{}")


def age_the_format(checkpoints, name):
    manifest = json.loads(content_of(checkpoints, name, "manifest.json"))
    replace(checkpoints, name, "manifest.json", json.dumps({**manifest, "format": 1}).encode())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "5001 bytes, the manifest says 5002"),
        (flip_a_byte, "has hash"),
        (empty_the_manifest, "cannot be read"),
        (list_nonsense, "cannot be read"),
        (lose_a_file, "its files are"),
        (add_a_file, "its files are"),
        (age_the_format, "format is 1, this version reads 2: resume it with the version that wrote it"),
    ],
)
def test_damage_is_found_and_named(checkpoints, damage, reason):
    saved(checkpoints, 10)
    damage(checkpoints, "step-00000010")
    assert reason in checkpoints.find_flaw("step-00000010")


def test_only_json_is_read_where_others_verify_the_tensors(checkpoints):
    saved(checkpoints, 10)
    flip_a_byte(checkpoints, "step-00000010")
    assert checkpoints.find_flaw("step-00000010", reads_tensors=False) is None
    replace(checkpoints, "step-00000010", "state.json", b"[]10")
    assert "state.json has hash" in checkpoints.find_flaw("step-00000010", reads_tensors=False)
    with pytest.raises(CheckpointError, match=r"state\.json has hash"):
        checkpoints.read_json("step-00000010", "state.json")


def test_a_file_that_another_node_kept_for_itself_is_named_with_the_remedy(checkpoints):
    folder = checkpoints.begin(5)
    files = write_files(checkpoints, folder)
    checkpoints.storage.remove(f"{folder}/learner-00000.safetensors")
    with pytest.raises(
        CheckpointError, match=r"learner-00000\.safetensors was written by another node.*checkpoint_dir"
    ):
        checkpoints.seal(5, files)


def test_a_file_that_nobody_reported_is_refused(checkpoints):
    folder = checkpoints.begin(5)
    files = write_files(checkpoints, folder)
    write_json(checkpoints.storage, f"{folder}/other.json", {})
    with pytest.raises(CheckpointError, match=r"other\.json is in the checkpoint, but nobody has reported it"):
        checkpoints.seal(5, files)


@pytest.mark.parametrize("name", ["state.pkl", "model.bin", "rank0.pt"])
def test_a_file_that_could_run_code_is_refused(checkpoints, name):
    folder = checkpoints.begin(1)
    with hashed_file(checkpoints.storage, f"{folder}/{name}") as file:
        file.write(b"x")
    with pytest.raises(CheckpointError, match="not allowed in a checkpoint"):
        checkpoints.seal(1, {name: file.written})
    assert checkpoints.list() == []


def test_a_place_that_cannot_be_written_to_is_found_beforehand_and_a_check_leaves_nothing(checkpoints, monkeypatch):
    checkpoints.check_writable()
    assert checkpoints.storage.folders() == []

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(checkpoints.storage, "create", refuse)
    with pytest.raises(CheckpointError, match="Permission denied"):
        checkpoints.check_writable()


def test_an_unknown_protocol_is_refused():
    with pytest.raises(CheckpointError, match=r"nowhere://x cannot be opened: .*nowhere"):
        CheckpointFolder("nowhere://x")


@pytest.mark.parametrize("replaces", [False, True])
def test_a_kill_at_any_boundary_leaves_a_whole_checkpoint(tmp_path, monkeypatch, replaces):
    """Every file-system call of a save is in turn the last one that happens."""
    import os

    import learner.state.storage as module

    last, finished = 0, False
    while not finished:
        checkpoints = CheckpointFolder(tmp_path / f"{last}")
        saved(checkpoints, 5, *([10] if replaces else []))
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
            for name in ("mkdir", "open", "rename", "unlink"):
                patch.setattr(Path, name, dies(getattr(Path, name)))
            patch.setattr(os, "fsync", dies(os.fsync))
            patch.setattr(module.shutil, "rmtree", dies(shutil.rmtree))
            try:
                saved(checkpoints, 10, marker=b"new")
                finished = True
            except Killed:
                pass
        whole = [name for name in checkpoints.list() if checkpoints.find_flaw(name) is None]
        assert whole, f"killed before call {last + 1}"
        content = content_of(checkpoints, whole[-1], "state.json")
        assert content in ((b"{}new",) if finished else (b"{}5", b"{}10", b"{}new")), content
        last += 1
    assert last > 8


def test_a_kill_at_any_boundary_on_an_object_store_leaves_a_whole_checkpoint(monkeypatch):
    """There every file is there whole or not at all, and the manifest is the last."""
    from learner.state.storage import RemoteStorage

    for last in range(8):
        checkpoints = CheckpointFolder(f"memory://cut-{last}")
        saved(checkpoints, 5)
        count = 0

        def dies(original, limit=last):
            def call(*args, **kwargs):
                nonlocal count
                count += 1
                if count > limit:
                    raise Killed
                return original(*args, **kwargs)

            return call

        finished = False
        with monkeypatch.context() as patch:
            for name in ("make", "create", "remove"):
                patch.setattr(RemoteStorage, name, dies(getattr(RemoteStorage, name)))
            try:
                saved(checkpoints, 10, marker=b"new")
                finished = True
            except Killed:
                pass
        whole = [name for name in checkpoints.list() if checkpoints.find_flaw(name) is None]
        assert whole == (["step-00000005", "step-00000010"] if finished else ["step-00000005"])
    assert finished


@pytest.mark.parametrize("boundary", range(4))
def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, boundary):
    checkpoints = CheckpointFolder(tmp_path)
    saved(checkpoints, 5)
    create, num_created = checkpoints.storage.create, 0

    def full(path):
        nonlocal num_created
        num_created += 1
        if num_created > boundary:
            raise OSError(errno.ENOSPC, "No space left on device")
        return create(path)

    monkeypatch.setattr(checkpoints.storage, "create", full)
    with pytest.raises(CheckpointError, match="No space left"):
        saved(checkpoints, 10)
    checkpoints.discard(10)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
