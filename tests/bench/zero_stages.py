"""What ZeRO-3 costs beside ZeRO-2: the same updates by both, each on its own GPUs' memory, in alternating order.

    python3 -m tests.bench.zero_stages --json                        # two GPUs, the 3B shape, random weights: 5 minutes
    python3 -m tests.bench.zero_stages --zero3 '{"overlap_comm": false}'         # another setting of DeepSpeed's
    python3 -m tests.bench.zero_stages --shape small --cpu                       # no figure of speed, but it runs

Needs neither Ray nor vLLM. Every row starts its ranks anew, so that its peak memory is its own; the first update of a
row warms up and is not counted. `--json` prints one JSON object as the last line: the median of tokens/s by stage, and
the ratio.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from learner.batches.batch import TrainingGroup
from tests.bench.model_shape import write_shape
from tests.learner.builders import make_group, save_model, small_model
from tests.learner.ranks import play

ORDER = (2, 3, 3, 2)
"""Stages of the rows, so that both meet a warm and a cold machine."""
SIZES = ((224, 224), (448, 448), (336, 560))
VOCABULARY = {"3b": 151_936, "7b": 152_064, "small": 96}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--shape", choices=tuple(VOCABULARY), default="3b")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--updates", type=int, default=3, help="counted updates per row")
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--budget", type=int, default=16384, help="tokens per micro-batch")
    parser.add_argument("--words", type=int, default=900, help="most generated tokens per turn")
    parser.add_argument("--kl", type=float, default=0.01, help="0 loads no reference policy")
    parser.add_argument("--offload-reference", action="store_true")
    parser.add_argument("--zero2", type=json.loads, default={}, help="DeepSpeed's zero_optimization for ZeRO-2 rows")
    parser.add_argument("--zero3", type=json.loads, default={}, help="and for ZeRO-3 rows")
    parser.add_argument("--stages", type=int, nargs="+", default=list(ORDER))
    parser.add_argument("--deadline-s", type=float, default=540.0, help="no row starts that would end after it")
    return parser.parse_args()


def drawn_groups(chosen: argparse.Namespace, seed: int) -> list[TrainingGroup]:
    rng = random.Random(seed)
    return [
        make_group(
            100 * seed + index,
            group_size=8,
            size=rng.choice(SIZES),
            num_words=rng.randint(min(50, chosen.words), chosen.words),
            ask_share=rng.random(),
            vocab_size=VOCABULARY[chosen.shape],
        )
        for index in range(chosen.groups)
    ]


def settings_of(chosen: argparse.Namespace, stage: int, model: Path) -> dict[str, Any]:
    learner = {
        "num_gpus": 0 if chosen.cpu else 1,
        "num_threads": 1,
        "zero_stage": stage,
        "prompts_per_mini_batch": chosen.groups,
        "max_tokens_per_micro_batch": chosen.budget,
        "kl_coefficient": chosen.kl,
        "offload_reference": chosen.offload_reference,
        "gradient_checkpointing": True,
        "learning_rate": 1e-6,
        "update_timeout_s": 240.0,
    }
    dtype = "float32" if chosen.cpu else "bfloat16"
    zero = chosen.zero3 if stage == 3 else chosen.zero2
    return {"learner": learner, "model": {"path": str(model), "load": "random", "dtype": dtype}, "zero": zero}


def measure(
    chosen: argparse.Namespace, stage: int, model: Path, batches: list[list[TrainingGroup]], deadline_s: float
) -> dict[str, Any]:
    """One row: its ranks from start to end."""
    started = time.monotonic()
    script = [(settings_of(chosen, stage, model), [("update", groups) for groups in batches])]
    try:
        ranks = play(chosen.ranks, script, chunk_logits=None, on_gpus=not chosen.cpu, deadline_s=deadline_s)
    except AssertionError as error:
        return {"stage": stage, "error": str(error)}
    counts = [sum(len(e.token_ids) for group in groups for e in group.played.episodes) for groups in batches]
    speeds = [count / report.seconds for count, report in zip(counts, ranks[0], strict=True)]
    last = ranks[0][-1].metrics
    return {
        "stage": stage,
        "tokens_per_s": [round(speed) for speed in speeds[1:]],
        "warm_up_tokens_per_s": round(speeds[0]),
        "tokens_per_update": counts[1:],
        "peak_memory_gib": round(max(reports[-1].metrics["learner/peak_memory_gib"] for reports in ranks), 1),
        "start_s": round(time.monotonic() - started - sum(report.seconds for report in ranks[0]), 1),
        "grad_norms": [float(f"{report.metrics['learner/grad_norm']:.4g}") for report in ranks[0]],
        **{name: round(value, 2) for name, value in last.items() if name.startswith("time/")},
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"rows": rows}
    for stage in (2, 3):
        mine = [row for row in rows if row["stage"] == stage and "error" not in row]
        if mine:
            found[f"zero_{stage}_tokens_per_s"] = statistics.median(s for row in mine for s in row["tokens_per_s"])
            found[f"zero_{stage}_peak_memory_gib"] = max(row["peak_memory_gib"] for row in mine)
    if "zero_2_tokens_per_s" in found and "zero_3_tokens_per_s" in found:
        found["ratio"] = round(found["zero_3_tokens_per_s"] / found["zero_2_tokens_per_s"], 3)
    return found


def main() -> None:
    chosen = parse()
    started, longest, rows = time.monotonic(), 0.0, []
    batches = [drawn_groups(chosen, seed) for seed in range(chosen.updates + 1)]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        if chosen.shape == "small":
            model.mkdir()
            save_model(model, small_model())
        else:
            write_shape(chosen.shape, model)
        for number, stage in enumerate(chosen.stages, start=1):
            left = chosen.deadline_s - (time.monotonic() - started)
            if left < longest:
                print(f"no time for row {number}: {left:.0f} s left, a row took {longest:.0f} s", flush=True)
                break
            print(f"row {number} of {len(chosen.stages)}: ZeRO-{stage} ...", flush=True)
            begun = time.monotonic()
            rows.append(measure(chosen, stage, model, batches, left))
            longest = max(longest, time.monotonic() - begun)
            print(json.dumps(rows[-1]), flush=True)
    found = summary(rows)
    for name, value in found.items():
        if name != "rows":
            print(f"{name:28} {value}")
    if chosen.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
