"""`visionthink eval`: the policy against always-quarter and always-full, on the held-out split and on benchmarks."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cluster.datasets.shipped import make_missing_data
from cluster.shell import Json, Overrides, PolicyConfigName, PolicyPath, print_json, report_errors, run_async
from configs.schema import Config

if TYPE_CHECKING:
    from cluster.display import Display
    from cluster.evaluation.comparison import Comparison
    from cluster.evaluation.suites import Suite
    from cluster.evaluation.transcript import Transcript
    from cluster.policies import ChosenPolicy

EVALUATIONS = "evaluations"


def evaluate(
    overrides: Overrides = None,
    config: PolicyConfigName = None,
    policy: PolicyPath = None,
    suite: Annotated[
        str,
        typer.Option(
            help="What to evaluate on: heldout (data.heldout), chartqa, ocrbench, docvqa, mme, mmvet, realworldqa, "
            "pope, mathvista, mathverse; several with commas, or all for the nine benchmarks. mmvet, mathvista and "
            "mathverse need an LLM in judge.chain."
        ),
    ] = "heldout",
    suite_dir: Annotated[
        Path | None, typer.Option(help="Folder that holds the benchmarks as they are published, one folder each.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Samples per suite: of a benchmark drawn at random, of the split the first ones."),
    ] = None,
    rejudge: Annotated[
        int, typer.Option(min=0, help="Have an LLM judge each answer so many more times; scores are means over them.")
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for episodes and results. Default: RUN/evaluations/step-N, or evaluations/MODEL."),
    ] = None,
    restart: Annotated[bool, typer.Option(help="Forget what an earlier evaluation recorded in that folder.")] = False,
    episodes: Annotated[
        Path | None,
        typer.Option(help="Parquet file for the held-out episodes. Default for a run: RUN/heldout/eval-STEP.parquet."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the policy with always-quarter and always-full: scores, tool calls, tokens and time, with intervals.

    Greedy decoding. Each benchmark is scored by its official metric. Every episode is recorded, so that the same
    command continues a killed evaluation, and repeats nothing of a complete one. A policy is evaluated with the
    settings of its run or export, unless --config is given.
    """
    with report_errors():
        from actors.tools.registry import toolbox_of
        from cluster.evaluation.suites import HELDOUT, parse_suites
        from cluster.policies import policy_config

        names = parse_suites(suite)
        keys = ("model.path", "data.heldout") if HELDOUT in names else ("model.path",)
        chosen = policy_config(policy, config, overrides or [], keys=keys)
        source = chosen.source
        settings, suites = _open(chosen.config, names, suite_dir, limit)
        step = source.step or 0 if source else 0
        folder = out or _default_folder(chosen)
        comparisons, heldout = _evaluate(settings, suites, folder, restart=restart, num_judgements=1 + rejudge)
        if episodes is None and source is not None and source.run is not None:
            episodes = source.run / "heldout" / f"eval-{step:06d}.parquet"
        if heldout is not None and episodes is not None:
            heldout.merge(episodes, step)
        has_tool_choice = not toolbox_of(settings.rollout.tools).is_resize_alone
        _report(comparisons, folder, has_tool_choice=has_tool_choice, as_json=as_json)


def _open(settings: Config, names: list[str], suite_dir: Path | None, limit: int | None) -> tuple[Config, list[Suite]]:
    """The suites, and the settings with the data and the judges that they need."""
    from cluster.evaluation.suites import HELDOUT, open_suites, suite_judges

    if HELDOUT in names:
        make_missing_data(settings)
    suites = open_suites(names, suite_dir, settings, limit)
    split = settings.data.heldout if HELDOUT in names else suites[0].path
    data = dataclasses.replace(settings.data, heldout=split)
    return dataclasses.replace(settings, data=data, judge=suite_judges(settings.judge, suites)), suites


def _default_folder(chosen: ChosenPolicy) -> Path:
    if chosen.source is not None and chosen.source.run is not None:
        return chosen.source.run / EVALUATIONS / f"step-{chosen.source.step or 0:06d}"
    return Path(EVALUATIONS) / chosen.name


def _evaluate(
    settings: Config, suites: list[Suite], folder: Path, *, restart: bool, num_judgements: int
) -> tuple[list[Comparison], Transcript | None]:
    """Play what is missing; the comparison of each suite, and the episodes of the held-out split if it is one."""
    from cluster.display import Display
    from cluster.evaluation.comparison import compare
    from cluster.evaluation.play import is_complete
    from cluster.evaluation.suites import HELDOUT
    from cluster.evaluation.transcript import Transcript

    transcripts = {}
    for suite in suites:
        if restart and (folder / suite.name).is_dir():
            shutil.rmtree(folder / suite.name)
        transcripts[suite.name] = Transcript(folder / suite.name, _identity(settings, suite))
    display = Display(settings)
    todo = [one for one in suites if not is_complete(one, transcripts[one.name], num_judgements)]
    if num_recorded := sum(len(transcript.plays) for transcript in transcripts.values()):
        display.say(f"{folder} has {num_recorded} episodes already: only the others are played (--restart repeats all)")
    if todo:
        run_async(_play_all(settings, todo, transcripts, num_judgements, display))
    comparisons = []
    for one in suites:
        plays = transcripts[one.name].plays
        samples = {play.sample: play for play in plays.values()}
        rows = {ref.uid: samples[ref.uid] for ref in one.refs if ref.uid in samples}
        known = {uid: one.row_at(play.row, play.question, play.reference) for uid, play in rows.items()}
        comparisons.append(compare(one.name, one.metric, plays, known, num_samples=len(one.refs)))
    return comparisons, transcripts.get(HELDOUT)


async def _play_all(
    settings: Config, suites: list[Suite], transcripts: dict[str, Transcript], num_judgements: int, display: Display
) -> None:
    from cluster.evaluation.play import play_suite
    from cluster.launch import launch_fleet

    async with launch_fleet(settings, display=display) as fleet:
        for suite in suites:
            display.say(f"{suite.name}: {len(suite.refs)} samples in three ways")
            await play_suite(fleet, suite, settings, transcripts[suite.name], num_judgements, display)


def _identity(settings: Config, suite: Suite) -> dict[str, object]:
    """What all episodes of a folder have in common."""
    from actors.prompts import load_prompt_style
    from actors.tools.registry import toolbox_of
    from cluster.evaluation.suites import HELDOUT
    from cluster.identity import hash_model
    from configs.tools import ToolsConfig
    from judge.llm.version import judge_version

    model, rollout, judge = settings.model, settings.rollout, settings.judge
    uses_judge = suite.is_judged or suite.name == HELDOUT
    return {
        "policy": hash_model(Path(model.path)),
        "data set": suite.identity,
        "judge": [judge.chain, judge.metric, judge_version(judge)] if uses_judge else [],
        "model.prompt": load_prompt_style(model.prompt).texts(toolbox_of(rollout.tools)),
        "model.min_pixels": model.min_pixels,
        "model.max_pixels": model.max_pixels,
        "model.dtype": model.dtype,
        "rollout.mode": rollout.mode,
        "rollout.max_turn_tokens": rollout.max_turn_tokens,
        "rollout.max_prompt_tokens": rollout.max_prompt_tokens,
        **({} if rollout.tools == ToolsConfig() else {"rollout.tools": dataclasses.asdict(rollout.tools)}),
    }


def _report(comparisons: list[Comparison], folder: Path, *, has_tool_choice: bool, as_json: bool) -> None:
    """Print tables, write results.json and results.png, and with --json print the former as well."""
    import json

    from cluster.evaluation.comparison import average
    from cluster.evaluation.picture import draw_comparisons
    from cluster.evaluation.suites import HELDOUT
    from cluster.evaluation.tables import result_lines, result_tables
    from cluster.records.files import write_atomically

    means = average(comparisons)
    results: dict[str, object] = {
        "suites": {one.suite: one.figures() for one in comparisons},
        "average": {name: {"value": mean.value, "interval": mean.json()} for name, mean in means.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "results.json", json.dumps(results, indent=1))
    draw_comparisons(comparisons, folder / "results.png")
    console = Console(stderr=True, highlight=False, width=None if Console(stderr=True).is_terminal else 250)
    for table in result_tables(comparisons, means, has_tool_choice=has_tool_choice):
        console.print(table, "", markup=False)
    for line in [*result_lines(comparisons), f"results: {folder}/results.json and results.png"]:
        console.print(line, markup=False, soft_wrap=True)
    if as_json:
        split = next((one.figures() for one in comparisons if one.suite == HELDOUT), {})
        print_json({**split, **results})
