"""What importing `cluster` settles before Ray is imported."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import cluster.launch
from ray._private import ray_constants  # where Ray keeps what it read at its import

print(ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV)
"""


@pytest.mark.parametrize(("given", "seen"), [(None, "False"), ("1", "True")])
def test_workers_run_in_this_folder_also_under_uv_run_unless_one_asks_otherwise(given, seen):
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ENABLE_UV_RUN_RUNTIME_ENV"}
    if given is not None:
        environment["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = given
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [seen]


@pytest.mark.parametrize("forbidden", ["", "1"])
def test_processes_of_a_run_keep_their_compiled_modules(forbidden, tmp_path):
    (tmp_path / "slow_to_compile.py").write_text("")
    program = f"""
import subprocess, sys
import cluster
subprocess.run([sys.executable, "-c", "import slow_to_compile"], cwd={str(tmp_path)!r}, check=True)
"""
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": forbidden}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert list(tmp_path.glob("__pycache__/slow_to_compile.*.pyc"))


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_a_word_about_the_command_imports_nothing_heavy(option):
    heavy = ("numpy", "PIL", "torch", "ray", "vllm", "transformers", "deepspeed", "pyarrow", "huggingface_hub")
    program = f"""
import sys
from cluster.cli import app
try:
    app([{option!r}])
except SystemExit as done:
    assert not done.code
print([name for name in {heavy!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
