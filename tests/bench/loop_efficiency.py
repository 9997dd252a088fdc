"""M1: episodes per second through the whole loop, against a bare vLLM script playing the same two-turn episodes.

    uv run python -m tests.bench.loop_efficiency [--rounds 5] [section.key=value ...]

Both run on this machine in one command, in alternating rounds over equal prompts: ours collects, updates and publishes
(the judges included); the peer calls `LLM.generate` once for all first turns and once for all second turns. Also
printed: where a step's seconds go, and the ratio for collecting alone. With `train.max_staleness=1` a second kind of
round is four trips of the loop, of which the first and the last are not counted: the next batch is collected while this
one is learned from. `step_over_longest` (M3) is its step against the longer of collecting and updating alone. Medians
over the rounds, after one warm-up each.

With random weights (`model.load=random`) nothing earns a reward: episodes get rewards of 1 and 0 in turn, so that the
learner has its full work. On GPUs the script shares the first GPU with our engine while that is idle: give each less
than half of its memory with `rollout.gpu_memory_fraction`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from statistics import median
from unittest.mock import patch

from actors.data.dataset import Dataset, PromptCursor
from actors.engine.engine_config import set_engine_environment
from actors.engine.vllm_engine import collapse_placeholders
from actors.images import ViewSpec, check_and_decode, full_view
from actors.play import make_views
from actors.prompts import ChatRenderer, load_prompt_style, load_tokenizer, vision_token_ids
from actors.replies import parse_reply
from actors.tools.registry import RESIZE_ALONE, ToolCall
from cluster.datasets.shipped import make_missing_data
from cluster.display import Display
from cluster.fleet import Fleet
from cluster.launch import Parts, launch
from cluster.lookahead import Lookahead
from cluster.score import score_group
from cluster.step import LostGroup, ScoredGroup, UnscoredGroup
from configs.load import load_config, to_yaml
from configs.schema import Config
from judge.reward import Reward
from learner.advantage import group_advantages


def bare_rounds(config: Config) -> None:
    """The peer, in a process of its own: one round per line of stdin; prints episodes and seconds as JSON."""
    set_engine_environment(config.rollout)
    from vllm import LLM, SamplingParams

    tokenizer = load_tokenizer(config.model.path)
    renderer = ChatRenderer(tokenizer, load_prompt_style(config.model.prompt))
    spec = ViewSpec.from_model(config.model)
    engine = LLM(
        model=config.model.path,
        dtype=config.model.dtype,
        load_format="dummy" if config.model.load == "random" else "auto",
        max_model_len=config.rollout.max_model_len,
        max_num_seqs=config.rollout.max_groups_in_flight * config.rollout.group_size,
        limit_mm_per_prompt={"image": 2, "video": 0},
        enforce_eager=config.rollout.enforce_eager,
        generation_config="vllm",
        **({"gpu_memory_utilization": config.rollout.gpu_memory_fraction} if config.rollout.num_gpus else {}),
    )
    is_full = config.rollout.mode == "general"
    params = SamplingParams(
        temperature=config.rollout.temperature,
        max_tokens=config.rollout.max_turn_tokens,
        stop_token_ids=[renderer.end_id],
        logprobs=0,
        logit_bias=dict.fromkeys(vision_token_ids(tokenizer), -100.0),
    )
    dataset = Dataset.open(config.data.train)
    cursor = PromptCursor(dataset=config.data.train, num_rows=len(dataset), seed=config.run.seed)

    def prompt(ids: tuple[int, ...], views: list) -> dict:
        images = [view.picture for view in views]
        collapsed = collapse_placeholders(ids, renderer.image_pad_id)
        return {"prompt_token_ids": collapsed, "multi_modal_data": {"image": images}}

    for _ in sys.stdin:
        started = time.monotonic()
        first = []
        for ref in cursor.take(config.train.prompts_per_step):
            sample = dataset.read(ref)
            picture = check_and_decode(sample.image, max_pixels=10**8, max_side_ratio=100)
            views = make_views(full_view(picture, spec), spec, ref.uid)
            shown = views.full if is_full else views.quarter
            ids = renderer.first_turn(sample.question, shown.num_visual_tokens, None if is_full else RESIZE_ALONE)
            first += [(ids, views, shown)] * config.rollout.group_size
        replies = engine.generate([prompt(ids, [shown]) for ids, _, shown in first], params, use_tqdm=False)
        second = []
        for (ids, views, _), reply in zip(first, replies, strict=True):
            said = tuple(reply.outputs[0].token_ids)
            if not is_full and isinstance(parse_reply(renderer.reply_text(said), RESIZE_ALONE), ToolCall):
                follow = renderer.next_turn(ids, said, views.full.num_visual_tokens, RESIZE_ALONE, "resize_image")
                second.append(prompt(follow, [views.quarter, views.full]))
        if second:
            engine.generate(second, params, use_tqdm=False)
        print(json.dumps({"episodes": len(first), "seconds": time.monotonic() - started}), flush=True)
    engine.llm_engine.engine_core.shutdown()


class Peer:
    def __init__(self, config: Config) -> None:
        command = [sys.executable, "-m", "tests.bench.loop_efficiency", "--bare"]
        first_gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": first_gpu},
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(to_yaml(config)) + "\n")
        self._process.stdin.flush()

    def round(self) -> float:
        """Episodes per second of one round."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        while not (line := self._process.stdout.readline()).startswith("{"):
            assert line, "the bare script ended"
        figures = json.loads(line)
        return figures["episodes"] / figures["seconds"]

    def close(self) -> None:
        """End the script at the end of its input: killed, it would leave its engine's processes behind."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


async def on_policy_round(run: Parts, config: Config) -> dict[str, float]:
    """One trip of the loop, stage by stage."""
    started = time.monotonic()
    async with run.collector as collector, run.updates as updates:
        batch = await collector.collect()
        collected = time.monotonic()
        update = await updates.finish(batch)
    updated = time.monotonic()
    await run.weights.publish()
    ended = time.monotonic()
    num_episodes = len(batch.scored) * config.rollout.group_size
    return {
        "collect_episodes_per_s": num_episodes / (collected - started),
        "loop_episodes_per_s": num_episodes / (ended - started),
        "collect_s": collected - started,
        "update_s": update.seconds,
        "update_wait_s": updated - collected,
        "publish_s": ended - updated,
    }


TRIPS = 4
"""Of an overlapped round. The first fills the pipeline and the last empties it; those between are counted."""


async def overlapped_round(run: Parts, config: Config, num_collected: int) -> dict[str, float]:
    """Trips of the loop with look-ahead; `num_collected` batches were collected before."""
    num_episodes, started, seconds = 0, 0.0, 0.0
    async with (
        run.collector as collector,
        Lookahead(
            collector.collect,
            depth=config.train.max_staleness,
            num_batches=TRIPS,
            allow=lambda num_batches: collector.allow(num_collected + num_batches),
        ) as ahead,
    ):
        for trip in range(TRIPS):
            if trip == 1:
                started = time.monotonic()
            async with run.updates as updates:
                batch = await ahead.take()
                await updates.finish(batch)
            await run.weights.publish()
            if 0 < trip < TRIPS - 1:
                num_episodes += len(batch.scored) * config.rollout.group_size
                seconds = time.monotonic() - started
    return {"loop_episodes_per_s": num_episodes / seconds, "step_s": seconds / (TRIPS - 2)}


async def score_in_turn(fleet: Fleet, config: Config, group: UnscoredGroup) -> ScoredGroup | LostGroup:
    """Judges the group as ever, then gives its episodes rewards of 1 and 0 in turn."""
    scored = await score_group(fleet, config, group)
    assert isinstance(scored, ScoredGroup), scored
    totals = [float(index % 2) for index in range(len(scored.rewards))]
    rewards = tuple(Reward(total=each, accuracy=each, format=0.0, penalty=0.0, is_correct=each > 0) for each in totals)
    return replace(scored, rewards=rewards, advantages=group_advantages(totals))


async def our_rounds(run: Parts, config: Config, number: int) -> dict[str, float]:
    """A round of each kind that the config allows; `number` rounds came before."""
    alone = await on_policy_round(run, config)
    if not config.train.max_staleness:
        return alone
    overlapped = await overlapped_round(run, config, number * (TRIPS + 1) + 1)
    longest = max(alone["collect_s"], alone["update_s"])
    stages = {name: alone[name] for name in ("collect_s", "update_s", "publish_s", "collect_episodes_per_s")}
    return {**stages, **overlapped, "step_over_longest": overlapped["step_s"] / longest}


async def measure(config: Config, num_rounds: int) -> dict[str, float]:
    peer = Peer(config)
    rounds: list[dict[str, float]] = []
    try:
        async with launch(config, resume=False, display=Display(config), started_at=time.monotonic()) as run:
            await run.weights.publish()
            for number in range(num_rounds + 1):
                bare = await asyncio.to_thread(peer.round)
                ours = await our_rounds(run, config, number)
                ratios = {
                    name.replace("_episodes_per_s", "_ratio"): figure / bare
                    for name, figure in ours.items()
                    if name.endswith("_episodes_per_s")
                }
                rounds.append({"bare_episodes_per_s": bare, **ours, **ratios})
    finally:
        peer.close()
    counted = rounds[1:]
    return {name: median(each[name] for each in counted) for name in counted[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    if arguments.bare:
        text = json.loads(sys.stdin.readline())
        from tempfile import NamedTemporaryFile

        with NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(text)
            file.flush()
            bare_rounds(load_config(file.name, []))
        return
    config = load_config(arguments.config, arguments.overrides)
    # Every prompt drawn counts once on both sides, and learning must not change what is played.
    config = replace(
        config,
        run=replace(config.run, name="bench-loop"),
        train=replace(config.train, max_draws=1.0),
        learner=replace(config.learner, learning_rate=1e-12),
    )
    make_missing_data(config)
    gives_rewards = (
        patch("cluster.collect.score_group", score_in_turn) if config.model.load == "random" else nullcontext()
    )
    with gives_rewards:
        figures = asyncio.run(measure(config, arguments.rounds))
    for name, figure in figures.items():
        print(f"{name:28} {figure:8.2f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
