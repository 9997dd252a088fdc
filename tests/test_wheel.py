"""The wheel installs beside others: all files are in it, and the command runs from another folder.

Our packages are plain top-level ones (`docs/install.md` says why); the throw-away environment has the dependencies
of this one and the wheel, and the folder that it is called from has files of the same names.
"""

import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from configs.paths import ROOT

PACKAGES = ("actors", "judge", "learner", "configs", "cluster")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    try:
        run("uv", "build", "--quiet", "--out-dir", out, ROOT)  # the sdist, and from it the wheel
    except FileNotFoundError:
        pytest.skip("uv is not on the PATH")
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def command(wheel, tmp_path_factory):
    """`visionthink` of a throw-away environment."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    run("uv", "pip", "install", "--quiet", "--no-deps", "--python", python, wheel)
    # Last on the path: the wheel's packages come first. The project itself is linked into this environment by a .pth
    # file, which is not read in a folder that is added this way.
    code = f"import sys; sys.path.append({sysconfig.get_path('purelib')!r})"
    (site / "zz_dependencies.pth").write_text(code + "\n")
    return folder / "bin" / "visionthink"


def test_every_file_of_the_packages_is_in_the_wheel(wheel):
    listed = run("git", "-C", ROOT, "ls-files", *PACKAGES).split()
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert [file for file in listed if file not in names] == []
    for kind in (".yaml", ".safetensors", ".jinja", ".jsonl", ".template", "Dockerfile", ".sh"):
        assert any(name.endswith(kind) for name in names), kind
    foreign = {name.split("/")[0] for name in names} - {*PACKAGES, f"visionthink-{VERSION}.dist-info"}
    assert foreign == set(), "tests and docs stay out"


def test_the_command_runs_from_a_folder_that_has_files_of_our_names(command, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "judge.py").write_text("raise ImportError('not ours')")
    assert run(command, "--version", cwd=tmp_path) == f"visionthink {VERSION}\n"
    assert "train" in run(command, "--help", cwd=tmp_path)
    where = run(command.with_name("python"), "-P", "-c", "import configs; print(configs.__file__)", cwd=tmp_path)
    assert where.startswith(str(command.parent.parent)), "the wheel's own"
    assert "group_size: 8" in run(command, "config", cwd=tmp_path)
    assert "On CPUs" in run(command, "plan", cwd=tmp_path)
    assert sys.version_info >= (3, 11)
