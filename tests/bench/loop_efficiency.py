"""M1: episodes per second through the whole loop, against a bare vLLM script playing the same two-turn episodes.

    uv run python -m tests.bench.loop_efficiency [--rounds 5] [section.key=value ...]

Both run on this machine in one command, in alternating rounds over equal prompts: ours collects, updates and publishes
(the judges included); the peer calls `LLM.generate` once for all first turns and once for all second turns. Also
printed: where a step's seconds go, and the ratio for collecting alone. With `train.max_staleness=1` a round is
three trips of the loop, the first not counted, in which the next batch is collected while this one is learned from, so
that collecting has no time of its own. Medians over the rounds, after one warm-up each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from dataclasses import replace
from statistics import median

from actors.data.dataset import Dataset, PromptCursor
from actors.engine.vllm_engine import collapse_placeholders, set_engine_environment
from actors.images import ViewSpec, check_and_decode, full_view
from actors.play import make_views
from actors.prompts import ChatRenderer, ToolCall, load_prompt_style, load_tokenizer, parse_reply, vision_token_ids
from cluster.cli import make_missing_data
from cluster.display import Display
from cluster.launch import Parts, launch
from cluster.lookahead import Lookahead
from configs.load import load_config, to_yaml
from configs.schema import Config


def bare_rounds(config: Config) -> None:
    """The peer, in a process of its own: one round per line of stdin; prints episodes and seconds as JSON."""
    set_engine_environment(config.rollout)
    from vllm import LLM, SamplingParams

    tokenizer = load_tokenizer(config.model.path)
    renderer = ChatRenderer(tokenizer, load_prompt_style(config.model.prompt))
    spec = ViewSpec.from_model(
        config.model.path, min_pixels=config.model.min_pixels, max_pixels=config.model.max_pixels
    )
    engine = LLM(
        model=config.model.path,
        dtype=config.model.dtype,
        load_format="dummy" if config.model.load == "random" else "auto",
        max_model_len=config.rollout.max_model_len,
        max_num_seqs=config.rollout.max_groups_in_flight * config.rollout.group_size,
        limit_mm_per_prompt={"image": 2, "video": 0},
        enforce_eager=config.rollout.enforce_eager,
        generation_config="vllm",
    )
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
            ids = renderer.first_turn(sample.question, views.quarter.num_visual_tokens)
            first += [(ids, views)] * config.rollout.group_size
        replies = engine.generate([prompt(ids, [v.quarter]) for ids, v in first], params, use_tqdm=False)
        second = []
        for (ids, views), reply in zip(first, replies, strict=True):
            said = tuple(reply.outputs[0].token_ids)
            if isinstance(parse_reply(renderer.reply_text(said)), ToolCall):
                follow = renderer.second_turn(ids, said, views.full.num_visual_tokens)
                second.append(prompt(follow, [views.quarter, views.full]))
        if second:
            engine.generate(second, params, use_tqdm=False)
        print(json.dumps({"episodes": len(first), "seconds": time.monotonic() - started}), flush=True)
    engine.llm_engine.engine_core.shutdown()


class Peer:
    def __init__(self, config: Config) -> None:
        command = [sys.executable, "-m", "tests.bench.loop_efficiency", "--bare"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
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


SETTLE_S = 5.0
"""After a round with look-ahead: until the engine has finished what was begun for a batch that nobody takes."""


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


async def overlapped_round(run: Parts, config: Config) -> dict[str, float]:
    """Two trips of the loop with look-ahead, after one that fills it."""
    num_episodes, depth = 0, config.train.max_staleness
    async with (
        run.collector as collector,
        Lookahead(collector.collect, depth=depth, num_batches=3 + depth, allow=collector.allow) as ahead,
    ):
        for trip in range(3):
            if trip == 1:
                started, num_episodes = time.monotonic(), 0
            async with run.updates as updates:
                batch = await ahead.take()
                await updates.finish(batch)
            await run.weights.publish()
            num_episodes += len(batch.scored) * config.rollout.group_size
        seconds = time.monotonic() - started
    await asyncio.sleep(SETTLE_S)
    return {"loop_episodes_per_s": num_episodes / seconds, "step_s": seconds / 2}


async def measure(config: Config, num_rounds: int) -> dict[str, float]:
    peer = Peer(config)
    rounds: list[dict[str, float]] = []
    our_round = overlapped_round if config.train.max_staleness else on_policy_round
    try:
        async with launch(config, resume=False, display=Display(config), started_at=time.monotonic()) as run:
            await run.weights.publish()
            for _ in range(num_rounds + 1):
                bare = await asyncio.to_thread(peer.round)
                ours = await our_round(run, config)
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
    figures = asyncio.run(measure(config, arguments.rounds))
    for name, figure in figures.items():
        print(f"{name:28} {figure:8.2f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
