"""M7: tokens per second of the rollout engine, against plain `LLM.generate` on the same prompts.

    uv run python -m tests.bench.decode_speed [--json] [--shape mini|3b] [--gpus 0|1] [--turns 128] [KEY=VALUE ...]

Both engines live in this process and take turns; none ends a reply before its last token. Plain vLLM runs as it comes,
then with each of the features that the rollouts need, so that the table shows what a feature costs:

    plain          LLM.generate, temperature 1, no log-probabilities
    logprobs       and the sampled tokens' log-probabilities
    forbidden      and the vision tokens ruled out
    rollout        our engine: all of it, in the asynchronous engine, with the extension that takes weights, salts
    unscored       our engine without log-probabilities, as a served policy runs it

Every prompt shows one picture of its own, which both engines have seen before the first counted round.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from actors.engine.vllm_engine import collapse_placeholders
from actors.play import Sampling, ShownImage, Views
from actors.prompts import load_tokenizer, vision_token_ids
from configs.schema import Config
from tests.bench.playing import QUESTION, Player, bench_config, noise_views, start_player

Prompt = tuple[tuple[int, ...], tuple[ShownImage, ...]]


def start_plain(config: Config) -> Any:
    """vLLM's own class with its own defaults."""
    from vllm import LLM

    on_gpu = {"gpu_memory_utilization": config.rollout.gpu_memory_fraction} if config.rollout.num_gpus else {}
    return LLM(
        model=config.model.path,
        dtype=config.model.dtype,
        load_format="dummy" if config.model.load == "random" else "auto",
        max_model_len=config.rollout.max_model_len,
        max_num_seqs=config.rollout.max_groups_in_flight * config.rollout.group_size + 1,
        limit_mm_per_prompt={"image": 2, "video": 0},
        mm_processor_kwargs={"min_pixels": 1, "max_pixels": config.model.max_pixels},
        enforce_eager=config.rollout.enforce_eager,
        generation_config="vllm",
        seed=config.run.seed,
        **on_gpu,
    )


def prompts_for(player: Player, views: list[Views]) -> list[Prompt]:
    return [(player.renderer.first_turn(QUESTION, view.full.num_visual_tokens, None), (view.full,)) for view in views]


def plain_round(engine: Any, prompts: list[Prompt], image_pad_id: int, params: Any) -> int:
    """Tokens generated."""
    requests = [
        {
            "prompt_token_ids": collapse_placeholders(ids, image_pad_id),
            "multi_modal_data": {"image": [image.picture for image in images]},
            "multi_modal_uuids": {"image": [image.key for image in images]},
        }
        for ids, images in prompts
    ]
    outputs = engine.generate(requests, params, use_tqdm=False)
    return sum(len(output.outputs[0].token_ids) for output in outputs)


async def our_round(player: Player, prompts: list[Prompt], sampling: Sampling) -> int:
    completions = await asyncio.gather(*(player.engine(ids, images, sampling) for ids, images in prompts))
    return sum(len(completion.token_ids) for completion in completions)


def measure(runner: asyncio.Runner, config: Config, *, num_turns: int, num_tokens: int, side: int, rounds: int) -> Any:
    tokenizer = load_tokenizer(config.model.path)

    player = runner.run(start_player(config, also_forbidden=[tokenizer.eos_token_id]))  # so that no reply ends early
    plain = start_plain(config)
    from vllm import SamplingParams

    endless = {"temperature": 1.0, "max_tokens": num_tokens, "ignore_eos": True, "detokenize": False}
    forbidden = dict.fromkeys((*vision_token_ids(tokenizer), tokenizer.eos_token_id), -math.inf)
    prompts = prompts_for(player, noise_views(player.spec, [(side, side)] * num_turns))
    pad = player.renderer.image_pad_id

    def plainly(**more: Any) -> Callable[[], int]:
        return lambda: plain_round(plain, prompts, pad, SamplingParams(**endless, **more))

    def ours(*, has_logprobs: bool) -> Callable[[], int]:
        sampling = Sampling(temperature=1.0, max_tokens=num_tokens, has_logprobs=has_logprobs)
        return lambda: runner.run(our_round(player, prompts, sampling))

    ways: dict[str, Callable[[], int]] = {
        "plain": plainly(),
        "logprobs": plainly(logprobs=0),
        "forbidden": plainly(logprobs=0, logit_bias=forbidden),
        "rollout": ours(has_logprobs=True),
        "unscored": ours(has_logprobs=False),
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for index in range(rounds + 1):
        for name, play in ways.items():
            gc.collect()
            started_at = time.perf_counter()
            count = play()
            assert count == num_turns * num_tokens, (name, count)
            if index:  # the first warms up
                speeds[name].append(count / (time.perf_counter() - started_at))
    player.engine.shutdown()
    plain.llm_engine.engine_core.shutdown()
    figures = {f"{name}_tokens_per_s": median(each) for name, each in speeds.items()}
    ratios = {
        f"{name}_ratio": median(ours / theirs for ours, theirs in zip(each, speeds["plain"], strict=True))
        for name, each in speeds.items()
        if name != "plain"
    }
    return figures | ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--shape", default="mini")
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--turns", type=int, default=16, help="at once")
    parser.add_argument("--tokens", type=int, default=64, help="of a reply")
    parser.add_argument("--side", type=int, default=224, help="pixels of the pictures' sides, a multiple of 56")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    fraction = ["rollout.gpu_memory_fraction=0.4"] if arguments.gpus else []
    config = bench_config(
        arguments.shape,
        side=arguments.side,
        on_gpu=arguments.gpus > 0,
        overrides=[f"rollout.max_turn_tokens={arguments.tokens}", *fraction, *arguments.overrides],
    )
    with asyncio.Runner() as runner:
        figures = measure(
            runner,
            config,
            num_turns=arguments.turns,
            num_tokens=arguments.tokens,
            side=arguments.side,
            rounds=arguments.rounds,
        )
    for name, figure in figures.items():
        print(f"{name:28} {figure:10.3f}")
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
