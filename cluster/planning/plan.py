"""What a run takes on a machine: memory by process, seconds by stage, bytes per sync, cost of the judge. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from actors.config_json import vision_settings
from actors.engine.budget import ModelWidths
from actors.images import ViewSpec
from actors.prompts import PromptStyle
from cluster.manifests.members import teams
from cluster.planning.gpus import Gpu
from cluster.planning.memory import Process, engine_process, item_size, problems, rank_process
from cluster.planning.speed import StepTime, step_time
from cluster.planning.workload import CHARACTERS_PER_TOKEN, Assumed, Workload, workload_of
from cluster.runtime.placement import capacity_problem, place
from configs.schema import Config
from learner.families.lookup import read_shape
from learner.memory import GIB, Kept, expected_bytes

UNDECIDED_SHARE = 0.71
"""Of the answers, which rules in front of an LLM leave to it (`docs/benchmarks.md`, the rules as a judge: 0.288)."""
ANSWER_TOKENS = 60
"""Question, reference and prediction in a judge's prompt."""
REPLY_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeCost:
    """At most, per step: equal answers of a group share a call, and cached verdicts cost nothing."""

    calls: int
    prompt_tokens: int
    reply_tokens: int
    usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    gpu: Gpu | None
    num_gpus: float
    """That the run takes at its smallest size."""
    work: Workload
    members: tuple[tuple[Process, int], ...]
    """The processes on GPUs, and how many there are of each."""
    host_gib: Mapping[str, float]
    """Host memory of one member, by kind."""
    sync_bytes: int
    """Of one weight sync, to one engine."""
    transport: str
    time: StepTime | None
    """None for a GPU of which only the memory is known."""
    overlaps: bool
    """Whether rollouts and updates overlap."""
    judge: JudgeCost | None
    problems: tuple[str, ...]
    """Why it cannot work, with the remedy."""
    max_prompt_tokens: int
    """The setting: an episode whose next prompt is longer ends as truncated."""

    @property
    def step_s(self) -> float | None:
        if self.time is None:
            return None
        both = (self.time.play_s, self.time.update_s)
        return (max(both) if self.overlaps else sum(both)) + self.time.publish_s

    def figures(self) -> dict[str, Any]:
        """The output of `--json`: memory in GiB, times in seconds."""
        return {
            "fits": not self.problems,
            "problems": self.problems,
            "gpu": self.gpu.name if self.gpu else None,
            "num_gpus": self.num_gpus,
            "processes": [process.figures() | {"count": count} for process, count in self.members],
            "host_gib": self.host_gib,
            "sync": {"bytes": self.sync_bytes, "transport": self.transport},
            "step": asdict(self.time) | {"update_s": self.time.update_s} if self.time else None,
            "step_s": self.step_s,
            "judge": asdict(self.judge) if self.judge else None,
            "assumed": asdict(self.work),
            "prompts": {
                "first": self.work.shared_tokens,
                "last": self.work.last_prompt if self.work.asking else self.work.shared_tokens,
                "most": self.max_prompt_tokens,
            },
        }


def make_plan(
    config: Config,
    model: Mapping[str, Any],
    style: PromptStyle,
    *,
    gpu: Gpu | None,
    held_gpus: float | None,
    assumed: Assumed,
    gpus_per_node: int = 8,
    judge_prompt: str = "",
) -> RunPlan:
    """The plan of a run.

    Args:
        model: config.json of the policy.
        gpu: None where the run uses none.
        held_gpus: of the machine or cluster; None for as many as the run takes.
        judge_prompt: text of an LLM judge's prompt without the answer.
    """
    shape, vision = read_shape(model), vision_settings(model)
    spec = ViewSpec(
        patch_size=vision["patch_size"],
        merge_size=vision["spatial_merge_size"],
        min_pixels=config.model.min_pixels,
        max_pixels=config.model.max_pixels,
    )
    work = workload_of(config, style, assumed, token_side=spec.token_side)
    members, kept, found = _gpu_members(config, model, spec, gpu, work)
    held = math.inf if held_gpus is None else held_gpus
    if lacking := capacity_problem(config, {"CPU": math.inf, "GPU": held}):
        found.append(f"{lacking}: lower rollout.num_workers or learner.num_ranks, or choose another config")
    return RunPlan(
        gpu=gpu,
        num_gpus=place(config).least(config).num_gpus,
        work=work,
        members=tuple(members),
        host_gib={team.name: team.member.memory_gib for team in teams(config, shape)},
        sync_bytes=item_size(config) * shape.num_parameters,
        transport=config.transport,
        time=step_time(shape, config, gpu, work, work.load(config.learner), kept=kept, gpus_per_node=gpus_per_node),
        overlaps=config.streams_updates or config.train.max_staleness > 0,
        judge=_judge_cost(config, work, judge_prompt),
        problems=tuple(found),
        max_prompt_tokens=config.rollout.max_prompt_tokens,
    )


def _gpu_members(
    config: Config, model: Mapping[str, Any], spec: ViewSpec, gpu: Gpu | None, work: Workload
) -> tuple[list[tuple[Process, int]], Kept, list[str]]:
    """The processes on GPUs with their numbers, activations that the learner keeps, and why it does not fit."""
    shape, widths = read_shape(model), ModelWidths.from_config(model)
    load, in_bfloat16 = work.load(config.learner), config.model.dtype == "bfloat16"
    _, kept = expected_bytes(shape, config.learner, in_bfloat16=in_bfloat16, load=load, gpu_bytes=0)
    if gpu is None:
        return [], kept, []
    members = []
    if config.rollout.num_gpus:
        num_engines = config.rollout.workers.minimum * config.rollout.tensor_parallel_size
        members.append((engine_process(shape, widths, spec, config, gpu), num_engines))
    if config.learner.num_gpus:
        rank, kept = rank_process(shape, config, gpu, work)
        members.append((rank, config.learner.ranks.minimum))
    return members, kept, list(problems(shape, widths, spec, config, gpu))


def _judge_cost(config: Config, work: Workload, prompt: str) -> JudgeCost | None:
    if not config.judge.has_llm:
        return None
    judge = config.judge
    share = UNDECIDED_SHARE if judge.chain[0] == "rules" else 1.0
    calls = math.ceil(work.groups * work.group_size * share)
    prompt_tokens = calls * (math.ceil(len(prompt) / CHARACTERS_PER_TOKEN) + ANSWER_TOKENS)
    reply_tokens = calls * (judge.llm.max_reply_tokens if judge.llm.thinks else REPLY_TOKENS)
    usd = (prompt_tokens * judge.llm.prompt_price + reply_tokens * judge.llm.reply_price) / 1e6
    return JudgeCost(calls=calls, prompt_tokens=prompt_tokens, reply_tokens=reply_tokens, usd=round(usd, 4))


def _assumptions(plan: RunPlan) -> list[str]:
    """What is assumed of pictures and replies; of tools beside the full view, what their calls show and come to."""
    work = plan.work
    lead = f"Assumed: {work.visual_tokens} visual tokens per full view, {work.turn_tokens} tokens per turn, "
    if work.calls == work.full_calls == 1:
        return [lead + f"{work.ask_share:.0%} of episodes ask (--pixels, --turn-tokens, --asks)"]
    kinds = (
        (work.full_calls, f"the full view ({work.visual_tokens} visual tokens)"),
        (work.region_calls, f"a region ({work.region_tokens})"),
    )
    shown = " and ".join(f"{calls:.3g} for {name}" for calls, name in kinds if calls)
    over = plan.max_prompt_tokens < work.last_prompt
    told = f": above rollout.max_prompt_tokens={plan.max_prompt_tokens}, so that many end as truncated" * over
    return [
        lead + f"{work.ask_share:.0%} of episodes call tools, {work.calls:.3g} times each: {shown} "
        "(--pixels, --turn-tokens, --asks, --calls, --region)",
        f"Prompts: the first has {work.shared_tokens} tokens, the last of an episode with calls {work.last_prompt:.0f}"
        + told,
    ]


def plan_lines(plan: RunPlan) -> Sequence[str]:
    """The plan for a terminal: processes with their GPU memory, assumptions, host memory, sync, step, judge."""
    lines = [f"On {plan.num_gpus:g} x {plan.gpu.name}, GiB of GPU memory:" if plan.gpu else "On CPUs"]
    for process, count in plan.members:
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in process.parts.items() if size)
        head = f"  {count} x {process.name}: {process.total / GIB:.1f} of {process.room / GIB:.1f}: {parts}"
        lines.append(head + f" ({process.note})" * bool(process.note))
    lines += _assumptions(plan)
    hosts = ", ".join(f"{name} {gib:.0f} GiB" for name, gib in plan.host_gib.items())
    lines.append(f"Host memory per member: {hosts}")
    lines.append(f"Weight sync: {plan.sync_bytes / 1e9:.2f} GB per engine by {plan.transport}")
    if plan.time is None or plan.step_s is None:
        lines.append("Seconds of a step: unknown, as only the memory of the GPU is given (--gpu NAME)")
    else:
        time = plan.time
        stages = ("vision", "reference", "learn", "optimizer")
        update = ", ".join(f"{name} {getattr(time, f'{name}_s'):.1f}" for name in stages)
        lines.append(
            f"A step: {plan.step_s:.1f} s (play {time.play_s:.1f}; update {time.update_s:.1f}: {update}; publish "
            f"{time.publish_s:.2f}{'; play and update overlap' * plan.overlaps})"
        )
    if plan.judge:
        cost = f"{plan.judge.usd:.2f} USD" if plan.judge.usd else "no price set (judge.llm.prompt_price, reply_price)"
        lines.append(f"Judge, per step at most: {plan.judge.calls} calls, {plan.judge.prompt_tokens} tokens, {cost}")
    return lines
