"""The viewer on a run of 100,000 episodes: seconds from the command to the first page, and to the answers of filters.

    python -m tests.bench.viewer [--episodes 100000] [--tokens 200] [--keep FOLDER] [--json]

The run is drawn: 200 steps of groups of 16, with texts, tokens and log-probabilities of the size of a real one. Times
are those of a client over HTTP, the server being the command itself in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.records.episodes import EPISODES, TURN
from configs.load import to_yaml
from configs.schema import Config

GROUP_SIZE = 16
NUM_STEPS = 200
FILTERS = (
    "", "preset=needless", "preset=missed", "preset=wrong", "preset=masked", "preset=malformed", "preset=disagree",
    "q=colour+17", "q=nowhere+to+be+found", "step=50-90&tool=asked", "sort=-reward", "sort=answer&verdict=wrong",
)  # fmt: skip
LIMIT_OPEN_S, LIMIT_FILTER_S = 2.0, 0.5


def draw_step(step: int, num_groups: int, num_tokens: int, rng: np.random.Generator) -> pa.Table:
    """The episodes of one step."""
    num = num_groups * GROUP_SIZE
    group = np.repeat(np.arange(num_groups), GROUP_SIZE)
    asked = rng.random(num) < 0.4
    needs = np.repeat(rng.random(num_groups) < 0.4, GROUP_SIZE)
    is_right = rng.random(num) < 0.8
    given = np.where(rng.random(num) < 0.999, group + ~is_right, 0)  # some answers are judged both right and wrong
    has_verdict = rng.random(num) > 0.01
    reward = np.where(has_verdict, is_right * 1.0 + 0.5, np.nan)
    question = [f"In chart {g}, what colour {(step * 7 + g) % 997} has the tallest bar left of 2015?" for g in group]
    columns = {
        "step": np.full(num, step),
        "kind": ["policy"] * num,
        "sample": [f"{step // 50}-{step * num_groups + g}" for g in group],
        "index": np.tile(np.arange(GROUP_SIZE), num_groups),
        "attempt": np.zeros(num, int),
        "dataset": ["/data/charts/train.parquet"] * num,
        "row": step * num_groups + group,
        "question": question,
        "reference": [f"colour {g}" for g in group],
        "needs_full": needs,
        "needed_view": np.where(needs, "full", "quarter").tolist(),
        "is_right_tool": asked == needs,
        "least_visual_tokens": np.where(needs, 1280, 256),
        "image_sha256": ["0" * 64] * num,
        "status": np.where(rng.random(num) < 0.98, "answered", "malformed").tolist(),
        "asked": asked,
        "answer": [f"colour {number}" for number in given],
        "is_well_formed": rng.random(num) < 0.98,
        "is_correct": pa.array(is_right, mask=~has_verdict),
        "judge": rng.choice(["rules", "openai"], num).tolist(),
        "reason": rng.choice(["same text", "the same number within 5 %", "another colour"], num).tolist(),
        "reward": pa.array(reward, mask=~has_verdict),
        "advantage": pa.array(rng.normal(size=num), mask=~has_verdict),
        "is_trained": np.repeat(rng.random(num_groups) < 0.7, GROUP_SIZE),
        "oldest_version": np.full(num, step - 1),
        "newest_version": np.full(num, step - 1),
        "turns": draw_turns(asked, step, num_tokens, rng),
    }
    arrays = [
        pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(num, field.type)
        for field in EPISODES
    ]
    return pa.Table.from_arrays(arrays, schema=EPISODES)


def draw_turns(asked: np.ndarray, step: int, num_tokens: int, rng: np.random.Generator) -> pa.Array:
    num_turns = asked + 1
    offsets = np.concatenate([[0], np.cumsum(num_turns)])
    num = int(offsets[-1])
    is_first = np.isin(np.arange(num), offsets[:-1])
    length = np.maximum(1, rng.poisson(num_tokens / 1.4, num))
    ends = np.concatenate([[0], np.cumsum(length)]).astype(np.int32)
    ids = pa.array(rng.integers(0, 150_000, ends[-1]), pa.int32())
    logprobs = pa.array(-rng.exponential(0.2, ends[-1]), pa.float32())
    span = pa.StructArray.from_arrays(
        [pa.array(np.full(num, step - 1), pa.int64()), pa.array(length, pa.int32())],
        fields=list(TURN["version_spans"].type.value_type),
    )
    words = ["the", "tallest", "bar", "left", "of", "year", "is", "blue", "and", "beside", "it", "green", "so"]
    text = [" ".join(rng.choice(words, int(n))) for n in length]
    fields = {
        "text": pa.array(text),
        "view": pa.array(np.where(is_first, "quarter", "full")),
        "num_visual_tokens": pa.array(np.where(is_first, 256, 1024), pa.int32()),
        "num_prompt_tokens": pa.array(np.full(num, 400), pa.int32()),
        "completion_ids": pa.ListArray.from_arrays(ends, ids),
        "logprobs": pa.ListArray.from_arrays(ends, logprobs),
        "version_spans": pa.ListArray.from_arrays(np.arange(num + 1, dtype=np.int32), span),
        "finish_reason": pa.array(["stop"] * num),
        "tool": pa.array([None if first else "resize_image" for first in is_first], pa.string()),
        "fault": pa.nulls(num, pa.string()),
    }
    turns = pa.StructArray.from_arrays([fields[field.name] for field in TURN], fields=list(TURN))
    return pa.ListArray.from_arrays(offsets.astype(np.int32), turns)


def draw_run(folder: Path, num_episodes: int, num_tokens: int, *, num_steps: int = NUM_STEPS) -> Path:
    """A run folder with at least `num_episodes` episodes of `num_tokens` sampled tokens on average."""
    rng = np.random.default_rng(0)
    (folder / "episodes").mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(Config()))
    num_groups = -(-num_episodes // (num_steps * GROUP_SIZE))
    lines = []
    for step in range(1, num_steps + 1):
        table = draw_step(step, num_groups, num_tokens, rng)
        pq.write_table(table, folder / "episodes" / f"step-{step:06d}.parquet", compression="zstd")
        share = step / num_steps
        lines.append({"step": step, "reward/accuracy": 0.5 + share / 3, "policy/ask_share": 0.8 - share / 3})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


class Client:
    """A browser's part: the token once, then the cookie."""

    def __init__(self, run: Path) -> None:
        self.started_at = time.perf_counter()
        command = [sys.executable, "-m", "cluster.cli", "view", str(run), "--no-open", "--json"]
        self.server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.server.stdout is not None
        url = urlsplit(json.loads(self.server.stdout.readline())["url"])
        self.base = f"http://{url.netloc}"
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        self.get(f"{self.base}/?{url.query}")  # the page of runs, which reads no episodes

    def get(self, url: str) -> bytes:
        with self._opener.open(url, timeout=60) as reply:
            return bytes(reply.read())

    def cpu_s(self) -> float:
        times = psutil.Process(self.server.pid).cpu_times()
        return times.user + times.system

    def timed(self, path: str) -> tuple[float, bytes]:
        started = time.perf_counter()
        body = self.get(self.base + path)
        return time.perf_counter() - started, body

    def close(self) -> None:
        self.server.terminate()
        self.server.wait(timeout=30)


def measure(run: Path) -> dict[str, object]:
    client = Client(run)
    try:
        place, before = f"/r/{run.name}", client.cpu_s()
        page_s, _ = client.timed(f"{place}/episodes")
        rows_s, body = client.timed(f"{place}/episodes.json")
        open_cpu_s = client.cpu_s() - before
        from_command_s = time.perf_counter() - client.started_at
        filters = {}
        for query in FILTERS:
            times = [
                sum(client.timed(f"{place}/{page}?{query}")[0] for page in ("episodes", "episodes.json"))
                for _ in range(3)
            ]
            filters[query or "(none)"] = round(median(times), 3)
        scroll = [client.timed(f"{place}/episodes.json?offset={offset}")[0] for offset in range(0, 100_000, 9_973)]
        return {
            "num_episodes": json.loads(body)["total"],
            "open_s": round(page_s + rows_s, 3),
            "open_cpu_s": round(open_cpu_s, 3),
            "open_from_command_s": round(from_command_s, 3),
            "filter_s": filters,
            "filter_max_s": max(filters.values()),
            "scroll_max_s": round(max(scroll), 3),
            "memory_mib": round(psutil.Process(client.server.pid).memory_info().rss / 2**20),
            "overview_s": round(client.timed(f"{place}/")[0], 3),
        }
    finally:
        client.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=200, help="sampled tokens per episode")
    parser.add_argument("--keep", type=Path, help="make the run here, or use the one that is there")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = args.keep or Path(scratch) / "large"
        figures = measure(run if run.exists() else draw_run(run, args.episodes, args.tokens))
    figures |= {"limits_s": {"open": LIMIT_OPEN_S, "filter": LIMIT_FILTER_S}}
    print(json.dumps(figures, indent=None if args.json else 1))


if __name__ == "__main__":
    main()
