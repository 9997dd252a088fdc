"""`visionthink plan`: what a run takes on a machine, without a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cluster.planning.gpus import GPUS, Gpu, find_gpu
from cluster.shell import ConfigName, Json, Overrides, console, print_json, report_errors
from configs.load import load_config
from configs.schema import Config

if TYPE_CHECKING:
    from cluster.planning.plan import RunPlan
    from cluster.planning.workload import Assumed

DEFAULT_GPU = "h100"
DEFAULT_PIXELS, DEFAULT_TURN_TOKENS = 1_000_000, 256
DEFAULT_REGION = 0.25
"""Such a region costs as much as the quarter view."""


def plan(
    overrides: Overrides = None,
    config: ConfigName = "tiny",
    gpu: Annotated[
        str | None,
        typer.Option(help=f"Kind of GPU: {', '.join(GPUS)}. Default: {DEFAULT_GPU}.", show_default=False),
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs that there are. Default: as many as needed.")] = None,
    gpu_memory: Annotated[
        float | None, typer.Option(help="GiB of one GPU; without --gpu nothing is said of its speed.")
    ] = None,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs of a node.")] = 8,
    pixels: Annotated[
        int | None,
        typer.Option(min=1, help="Mean pixels of a full view, within model.min/max_pixels. Default: a megapixel."),
    ] = None,
    turn_tokens: Annotated[
        int | None, typer.Option(min=1, help="Mean tokens generated per turn. Default: up to 256.")
    ] = None,
    asks: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the episodes that call a tool: by default, for the full view.")
    ] = 0.5,
    calls: Annotated[
        float | None,
        typer.Option(min=1, help="Calls of such an episode. Default: midway between one and the most."),
    ] = None,
    region: Annotated[
        float, typer.Option(min=0, max=1, help="Area of a region that a tool shows, as a share of the picture's.")
    ] = DEFAULT_REGION,
    as_json: Json = False,
) -> None:
    """Predict memory, time per step and judge cost of a run, without a GPU and without its weights.

    A run that cannot fit is refused with exit code 1, one line per reason, and
    the setting that would make it fit. Memory is that of the smallest size of
    the run. The estimates are held against measured runs by a test: within 15 %
    for memory and 30 % for time on H200; on other GPUs they are rougher.
    """
    with report_errors():
        from cluster.planning.plan import plan_lines
        from cluster.planning.workload import Assumed

        settings = load_config(config, overrides or [])
        low, high = settings.model.min_pixels, settings.model.max_pixels
        assumed = Assumed(
            pixels=min(max(low, pixels or DEFAULT_PIXELS), high),
            turn_tokens=turn_tokens or min(settings.rollout.max_turn_tokens, DEFAULT_TURN_TOKENS),
            ask_share=asks,
            calls=calls,
            region_share=region,
        )
        kind = find_gpu(gpu or (None if gpu_memory else DEFAULT_GPU), gpu_memory)
        found = _predict(settings, assumed, kind, held_gpus=gpus, gpus_per_node=gpus_per_node)
        where = console if as_json else Console(highlight=False)
        where.print(*plan_lines(found), sep="\n", markup=False, soft_wrap=True)
        if as_json:
            print_json(found.figures())
        if found.problems:
            raise ValueError("\n".join(found.problems))


def _predict(config: Config, assumed: Assumed, gpu: Gpu, *, held_gpus: int | None, gpus_per_node: int) -> RunPlan:
    from actors.prompts import load_prompt_style
    from cluster.planning.models import find_model
    from cluster.planning.plan import make_plan

    return make_plan(
        config,
        find_model(config.model.path),
        load_prompt_style(config.model.prompt),
        gpu=gpu if config.rollout.num_gpus or config.learner.num_gpus else None,
        held_gpus=held_gpus,
        assumed=assumed,
        gpus_per_node=gpus_per_node,
        judge_prompt=_judge_prompt(config),
    )


def _judge_prompt(config: Config) -> str:
    if not config.judge.has_llm:
        return ""
    from judge.llm.prompt import load_wording

    wording = load_wording(config.judge.llm.prompt)
    return f"{wording.system}{wording.user}{getattr(wording, config.judge.metric)}"
