"""The rules of the code's shape, held by reading the code: who may import whom, and what nobody may write."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = ("configs", "actors", "judge", "learner", "cluster")
"""Imports go from right to left, never the other way."""
MAX_LINES = 400
MAX_FUNCTION_LINES = 60

OWNERS = {
    "huggingface_hub": ("actors/hub.py",),
    "ray": ("cluster/", "judge/deployment.py", "judge/llm/server.py", "judge/llm/server_engine.py"),
    "vllm": (
        "actors/engine/engine_config.py",
        "actors/engine/quick_start.py",
        "actors/engine/vllm_engine.py",
        "actors/engine/vllm_extension.py",
        "actors/engine/vllm_scheduler.py",
        "actors/engine/transfer.py",
        "actors/engine/vllm_versions.py",
        "actors/engine/parameters.py",
        "actors/engine/nccl_group.py",
    ),
    "deepspeed": ("learner/engine.py",),
    "omegaconf": ("configs/load.py",),
    "openai": ("judge/",),
    "peft": ("learner/lora/adapters.py",),
}
"""Package to the files that may import it."""

PURE = (
    "configs/schema.py",
    "configs/judges.py",
    "configs/learner.py",
    "configs/load.py",
    "configs/rewards.py",
    "configs/tools.py",
    "configs/objectives.py",
    "configs/ranges.py",
    "configs/run.py",
    "configs/seeds.py",
    "actors/engine/budget.py",
    "actors/engine/gate.py",
    "actors/engine/turn_logprobs.py",
    "actors/engine/vllm_versions.py",
    "actors/data/benchmarks/dataset.py",
    "actors/fleet/cutting.py",
    "actors/fleet/membership.py",
    "actors/fleet/pool.py",
    "actors/fleet/suspicion.py",
    "actors/weights/layout.py",
    "actors/weights/receiver.py",
    "actors/weights/staging.py",
    "configs/paths.py",
    "actors/engine/owned_worker.py",
    "actors/engine/owner.py",
    "actors/engine/janitor.py",
    "actors/causes.py",
    "actors/errors.py",
    "actors/episode.py",
    "actors/data/mapping.py",
    "actors/hub.py",
    "actors/images.py",
    "actors/data/hub_files.py",
    "actors/prompts.py",
    "actors/play.py",
    "actors/replies.py",
    "actors/tools/arguments.py",
    "actors/tools/boxes.py",
    "actors/tools/local_region.py",
    "actors/tools/registry.py",
    "actors/tools/resize.py",
    "actors/tools/tool.py",
    "actors/tools/zoom_in.py",
    "actors/views.py",
    "judge/calls.py",
    "judge/limits.py",
    "judge/outages.py",
    "judge/pool.py",
    "judge/verdict.py",
    "judge/rules/judge.py",
    "judge/rules/asked.py",
    "judge/rules/text.py",
    "judge/rules/amounts.py",
    "judge/rules/units.py",
    "judge/rules/guess.py",
    "judge/rules/math_worker.py",
    "judge/reward.py",
    "judge/trust/canary.py",
    "judge/trust/check.py",
    "judge/trust/goldset.py",
    "judge/llm/cache.py",
    "judge/llm/served_model.py",
    "judge/trust/precheck.py",
    "judge/llm/fence.py",
    "judge/llm/prompt.py",
    "judge/llm/version.py",
    "judge/llm/tasks.py",
    "judge/benchmarks/grading.py",
    "judge/benchmarks/scores.py",
    "judge/llm/endpoint.py",
    "learner/advantage.py",
    "learner/elastic/attempt.py",
    "learner/batches/batch.py",
    "learner/elastic/copies.py",
    "learner/elastic/decisions.py",
    "learner/elastic/formation.py",
    "learner/families/family.py",
    "learner/families/lookup.py",
    "learner/families/qwen2_5_vl.py",
    "learner/families/qwen3_vl.py",
    "learner/group.py",
    "learner/elastic/history.py",
    "learner/elastic/members.py",
    "learner/state/checkpoint.py",
    "learner/state/share_files.py",
    "learner/state/snapshot.py",
    "learner/state/storage.py",
    "learner/batches/family.py",
    "learner/memory.py",
    "learner/batches/plan.py",
    "learner/batches/pictures.py",
    "learner/batches/prefetch.py",
    "learner/update.py",
    "cluster/datasets/bars.py",
    "cluster/datasets/check.py",
    "cluster/datasets/report.py",
    "cluster/datasets/selection.py",
    "cluster/datasets/sheet.py",
    "cluster/evaluation/cli.py",
    "cluster/evaluation/comparison.py",
    "cluster/evaluation/play.py",
    "cluster/evaluation/suites.py",
    "cluster/evaluation/transcript.py",
    "cluster/folders.py",
    "cluster/hub.py",
    "cluster/identity.py",
    "cluster/records/repair.py",
    "cluster/runs/attempts.py",
    "cluster/runs/claims.py",
    "cluster/runs/lease.py",
    "cluster/runtime/addresses.py",
    "cluster/preflight/environment.py",
    "cluster/jobs/package.py",
    "cluster/stopping.py",
    "cluster/lookahead.py",
    "cluster/manifests/kuberay.py",
    "cluster/manifests/launcher.py",
    "cluster/manifests/members.py",
    "cluster/manifests/plan.py",
    "cluster/manifests/pods.py",
    "cluster/manifests/render.py",
    "cluster/manifests/slurm.py",
    "cluster/manifests/target.py",
    "cluster/staleness.py",
    "cluster/preflight/machine.py",
    "cluster/preflight/model_files.py",
    "cluster/preflight/checks.py",
    "cluster/runtime/probe.py",
    "cluster/runtime/placement.py",
    "cluster/sync_phase.py",
    "cluster/policies.py",
    "cluster/records/events.py",
    "cluster/records/work.py",
    "cluster/serving/admission.py",
    "cluster/serving/app.py",
    "cluster/serving/card.py",
    "cluster/serving/deltas.py",
    "cluster/serving/errors.py",
    "cluster/serving/metrics.py",
    "cluster/serving/policy.py",
    "cluster/serving/remote.py",
    "cluster/serving/replies.py",
    "cluster/serving/requests.py",
    "cluster/serving/settings.py",
    "cluster/signal.py",
    "cluster/status/cli.py",
    "cluster/status/files.py",
    "cluster/status/observer.py",
    "cluster/status/readings.py",
    "cluster/status/repeats.py",
    "cluster/status/scaling.py",
    "cluster/status/table.py",
    "cluster/status/views.py",
    "cluster/status/writer.py",
    "cluster/timekeeping.py",
    "cluster/update_stream.py",
    "cluster/viewer/alerts.py",
    "cluster/viewer/boxes.py",
    "cluster/viewer/charts.py",
    "cluster/viewer/cli.py",
    "cluster/viewer/export.py",
    "cluster/viewer/filters.py",
    "cluster/viewer/index.py",
    "cluster/viewer/episode_pages.py",
    "cluster/viewer/guard.py",
    "cluster/viewer/pages.py",
    "cluster/viewer/pictures.py",
    "cluster/viewer/queries.py",
    "cluster/viewer/rendering.py",
    "cluster/viewer/report.py",
    "cluster/viewer/runs.py",
    "cluster/viewer/server.py",
    "cluster/viewer/text.py",
    "cluster/visible.py",
    "cluster/waits.py",
)
"""Decisions: no framework at the top of these files, so that they test and start in milliseconds."""
HEAVY = ("ray", "vllm", "deepspeed", "torch", "transformers")

FORBIDDEN_MODULES = ("pickle", "cloudpickle", "dill", "shelve", "marshal")
FORBIDDEN_CALLS = ("torch.load", "np.load", "numpy.load", "eval", "exec")
"""Ways in which a file read from disk could run code."""
NOTES_TO_SELF = tuple(f"{first}{second}" for first, second in (("TO", "DO"), ("FIX", "ME"), ("XX", "X")))


def source_files() -> list[Path]:
    return sorted(file for folder in ORDER for file in (ROOT / folder).rglob("*.py"))


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted modules imported anywhere in the tree, inside functions as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""


def imports_at_start(tree: ast.Module) -> Iterator[str]:
    """Modules that importing the file imports; those under `if TYPE_CHECKING` and in functions are not."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node)


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


FILES = pytest.mark.parametrize("file", source_files(), ids=name_of)


@FILES
def test_imports_go_one_way(file):
    rank = ORDER.index(name_of(file).split("/")[0])
    later = [module for module in imports(parse(file)) if module.split(".")[0] in ORDER[rank + 1 :]]
    assert later == [], f"{name_of(file)} imports from a later folder"


@FILES
def test_each_framework_is_known_to_its_own_files_alone(file):
    packages = {module.split(".")[0] for module in imports(parse(file))}
    strangers = {
        package
        for package, owners in OWNERS.items()
        if package in packages and not any(name_of(file).startswith(owner) for owner in owners)
    }
    assert strangers == set()


@pytest.mark.parametrize("name", PURE)
def test_pure_files_import_no_framework(name):
    packages = {module.split(".")[0] for module in imports_at_start(parse(ROOT / name))}
    assert packages.isdisjoint(HEAVY)


@FILES
def test_files_and_functions_are_short(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
    long = [
        node.name
        for node in ast.walk(parse(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert long == []


@FILES
def test_no_blind_except(file):
    blind = [
        node.lineno
        for node in ast.walk(parse(file))
        if isinstance(node, ast.ExceptHandler)
        and (
            node.type is None or any(name in ast.unparse(node.type).split() for name in ("Exception", "BaseException"))
        )
    ]
    assert blind == []


@FILES
def test_nothing_read_from_disk_can_run_code(file):
    tree = parse(file)
    assert {module.split(".")[0] for module in imports(tree)}.isdisjoint(FORBIDDEN_MODULES)
    for call in calls(tree):
        assert ast.unparse(call.func) not in FORBIDDEN_CALLS
        for keyword in call.keywords:
            if keyword.arg in ("trust_remote_code", "allow_pickle"):
                assert isinstance(keyword.value, ast.Constant)
                assert keyword.value.value is False


@FILES
def test_nothing_is_left_for_later(file):
    text = file.read_text(encoding="utf-8")
    assert [note for note in NOTES_TO_SELF if note in text] == []


@FILES
def test_control_plane_types_are_frozen_or_a_word_says_why(file):
    """A dataclass that crosses a process is frozen; one that is not says so by being private or mutable on purpose."""
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for decorator in node.decorator_list:
                text = ast.unparse(decorator)
                if text.startswith("dataclass") and "frozen=True" not in text:
                    assert ast.get_docstring(node), f"{node.name} is mutable: its docstring has to say why"


def test_importing_the_pure_files_loads_no_framework():
    modules = [name.removesuffix(".py").replace("/", ".") for name in PURE]
    program = (
        "import importlib, json, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_every_folder_of_the_tests_mirrors_one_of_the_code():
    folders = {file.parent.relative_to(ROOT / "tests").parts[0] for file in (ROOT / "tests").glob("*/**/test_*.py")}
    assert folders <= {*ORDER, "ray", "faults", "gpu", "bench"}


def import_graph() -> dict[str, set[str]]:
    """Module to the modules of ours that it imports, anywhere in the file, TYPE_CHECKING included."""
    modules = {name_of(file).removesuffix(".py").replace("/", "."): file for file in source_files()}
    graph: dict[str, set[str]] = {}
    for module, file in modules.items():
        found = set()
        for node in ast.walk(parse(file)):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                # `from judge.llm import cache` imports a module, `from judge.llm.cache import VerdictCache` a name.
                found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        graph[module] = found & modules.keys()
    return graph


def test_no_file_reaches_another_in_a_circle():
    graph = import_graph()
    assert sum(map(len, graph.values())) > 200, "the graph is read"
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")
