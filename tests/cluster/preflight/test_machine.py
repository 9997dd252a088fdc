"""What a machine must offer before a run starts on it."""

from pathlib import Path

import pytest

from cluster.preflight.machine import (
    MAX_SOCKET_BYTES,
    RAY_SOCKET,
    SharedMemory,
    folder_problem,
    launch_path_problem,
    shared_memory_needed,
    shared_memory_problem,
    socket_problem,
)

MIB = 1 << 20


@pytest.mark.parametrize(
    ("size", "used", "weights", "uses_queue", "fits"),
    [
        (64, 0, 5, True, False),  # Docker's default
        (64, 0, 5, False, True),
        (64, 0, 0, False, True),  # weights that go from GPU to GPU
        (1024, 0, 5, True, True),
        (1024, 900, 5, True, False),  # what another run left
        (8192, 0, 6000, False, False),  # one version fits, the next one beside it does not
        (32768, 0, 6000, False, True),
    ],
)
def test_shared_memory_is_held_against_what_engines_and_weights_take(size, used, weights, uses_queue, fits):
    needed = shared_memory_needed(weight_bytes=weights * MIB, uses_queue=uses_queue)
    problem = shared_memory_problem(SharedMemory(size=size * MIB, free=(size - used) * MIB), needed)
    assert (problem is None) == fits
    if problem:
        assert "--shm-size=" in problem
        remedy_gib = int(problem.partition("--shm-size=")[2].partition("g")[0])
        enlarged = SharedMemory(size=remedy_gib << 30, free=(remedy_gib << 30) - used * MIB)
        assert shared_memory_problem(enlarged, needed) is None


@pytest.mark.parametrize(("length", "fits"), [(10, True), (43, True), (44, False), (80, False)])
def test_rays_sockets_have_paths_that_the_system_takes(length, fits):
    folder = Path("/" + "a" * (length - 1))
    assert (socket_problem(folder, Path("/tmp")) is None) == fits
    assert (len(f"{folder}/{RAY_SOCKET}") <= MAX_SOCKET_BYTES) == fits


@pytest.mark.parametrize(("name", "fits"), [("a" * 60, True), ("a" * 75, False), ("ä" * 40, False)])
def test_engines_sockets_do_too_counted_in_bytes(name, fits):
    problem = socket_problem(Path("/tmp/ray"), Path(f"/{name}"))
    assert (problem is None) == fits
    assert fits or "TMPDIR" in str(problem)


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("/tmp/Mein Projekt/p/.venv/bin/python", "a space"),
        ("/tmp/it's/python", "'"),
        ("/tmp/a\tb/python", "a tab"),
        ("/tmp/back\\slash/python", "\\"),
        ("/tmp/plain-äöü_1.0/python", None),
    ],
)
@pytest.mark.parametrize("position", range(3))
def test_a_path_that_ray_would_split_is_refused_with_the_reason(path, what, position):
    paths = ["/a/python", "/a/ray", "/tmp/ray"]
    paths[position] = path
    problem = launch_path_problem(*paths)
    assert (problem is None) == (what is None)
    if problem:
        assert what in problem
        assert repr(path) in problem


def test_a_folder_that_is_there_or_can_be_made_is_fine(tmp_path):
    assert folder_problem("run.dir", str(tmp_path)) is None
    assert folder_problem("run.dir", str(tmp_path / "a" / "b")) is None
    assert list(tmp_path.iterdir()) == [], "nothing stays of the trial"


@pytest.mark.parametrize("below", ["", "/runs"])
def test_a_file_in_the_place_of_a_folder_is_named(below, tmp_path):
    (tmp_path / "f").touch()
    problem = folder_problem("run.dir", f"{tmp_path}/f{below}")
    assert f"{tmp_path}/f is a file" in str(problem)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "a link to nothing" in str(folder_problem("run.dir", f"{tmp_path}/link{below}"))


@pytest.mark.parametrize("folder", ["/proc/runs", "/sys/kernel/runs"])
def test_a_folder_that_nobody_may_write_to_is_named(folder):
    problem = folder_problem("run.dir", folder)
    assert problem is not None
    assert f"run.dir='{folder}'" in problem
    assert "it cannot be written to (" in problem
