"""`visionthink data select`: rolls the model out on both views of each sample and keeps what teaches the choice.

OUT/samples.jsonl     a line for each finished sample: what a killed command goes on from
    settings.json     what the counts depend on; a command with others is refused
    train.parquet     the selected samples, for `data.train`
    summary.json      counts and the histogram of (full - quarter)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.data.columns import WRITTEN_HERE
from actors.data.dataset import Dataset, PromptCursor, SkipLedger
from actors.data.shapes import SCHEMA
from actors.episode import SampleRef, SkippedSample
from actors.errors import RolloutError, RunError
from actors.play import Kind, PlayRequest
from cluster.datasets.selection import Need, Rule, Selected, Tried, figures, select_balanced
from cluster.display import Display
from cluster.fleet import Fleet
from cluster.identity import identify
from cluster.preflight.checks import data_problems, raise_all
from cluster.preflight.model_files import model_folder_problems
from cluster.records.files import append_line, replace_atomically, write_atomically
from cluster.runs.lease import Elsewhere, lease
from configs.schema import Config
from judge.verdict import JudgeCounts, NoVerdict, Verdict

SAMPLES, SETTINGS, TABLE, SUMMARY = "samples.jsonl", "settings.json", "train.parquet", "summary.json"
COUNTS = ("quarter_correct", "full_correct", "num_rollouts", "source_row")
SELECTED = pa.schema(
    [*SCHEMA, *((name, pa.int32()) for name in COUNTS[:3]), (COUNTS[3], pa.int64())], metadata=WRITTEN_HERE
)
ROWS_PER_GROUP = 64
MIN_LOST = 10
"""The fraction of lost samples is only checked from this many on."""
TOLD_EVERY_S = 30.0
VIEWS: tuple[Kind, Kind] = ("always_quarter", "always_full")
KEPT_SETTINGS = ("data.", "model.", "judge.", "rollout.temperature", "rollout.max_turn", "rollout.max_prompt")
"""Prefixes of the settings that the counts depend on, beside data, model, prompt and judge themselves."""


class Trials:
    """Finished samples of an output folder, each once. Mutable: grows by a line per sample.

    A sample whose judges failed is tried again by the next command; the last line of a row counts.
    """

    def __init__(self, folder: Path, rule: Rule) -> None:
        self._path = folder / SAMPLES
        self._rule = rule
        self.by_row: dict[int, Tried] = {}
        self.num_by_need: Counter[Need | None] = Counter()
        content = self._path.read_bytes() if self._path.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # a kill has cut its last line off
            os.truncate(self._path, len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                entry = json.loads(line)
                self._keep(Tried(**{**entry, "full_size": tuple(entry["full_size"])}))
            except (ValueError, TypeError, KeyError) as error:
                raise RunError(f"{self._path}: line {number} is damaged ({error}): remove it") from error

    def is_done(self, row: int) -> bool:
        return row in self.by_row and self.by_row[row].status != "no_verdict"

    def add(self, tried: Tried) -> None:
        with _told_of_disk(self._path):
            append_line(self._path, asdict(tried))
        self._keep(tried)

    def _keep(self, tried: Tried) -> None:
        if tried.row in self.by_row:
            self.num_by_need[self._rule.need_of(self.by_row[tried.row])] -= 1
        self.by_row[tried.row] = tried
        self.num_by_need[self._rule.need_of(tried)] += 1


@contextlib.contextmanager
def _told_of_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = "make room, then give the same command again: it goes on"
        raise RunError(f"{error.filename or path} cannot be written: {error.strerror}; {remedy}") from error


def check_settings(folder: Path, config: Config, dataset: Dataset, rule: Rule) -> None:
    """Write down what the counts depend on; refuse to add to counts that depend on something else.

    Raises:
        RunError: with both values.
    """
    identity = asdict(identify(config, dataset))
    flat = {name: value for name, value in identity.pop("settings").items() if name.startswith(KEPT_SETTINGS)}
    wanted = {name: identity[name] for name in ("dataset", "model", "chat_template", "prompt", "judge")}
    wanted = json.loads(json.dumps({**wanted, **flat, "rollouts": rule.num_rollouts}))
    path = folder / SETTINGS
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else wanted
    for name, value in wanted.items():
        if name in found and found[name] != value:
            raise RunError(
                f"{folder} was started with {name}={found[name]!r}, this command has {value!r}: "
                "give the same again, or another --out"
            )
    write_atomically(path, json.dumps(wanted, indent=1))


async def try_samples(
    fleet: Fleet, order: Sequence[SampleRef], trials: Trials, config: Config, rule: Rule, display: Display
) -> int:
    """Play and judge all samples that are not finished, until both classes are full; returns how many were lost.

    Raises:
        RunError, DataError: too many samples were lost, or are unreadable.
        JudgeError: an outage of the judges outlasted its limit.
    """
    left = [ref for ref in order if not trials.is_done(ref.row)]
    num_before = len(order) - len(left)
    remaining = iter(left)
    skips = SkipLedger(max_skipped_fraction=config.data.max_skipped_fraction)
    lost: list[str] = []
    started, told = time.monotonic(), time.monotonic()

    async def work() -> None:
        nonlocal told
        while not rule.has_enough(trials.num_by_need) and (ref := next(remaining, None)) is not None:
            try:
                tried = await try_sample(fleet, ref, config, rule)
            except RolloutError as error:
                lost.append(str(error))
                display.warn(lost[-1])
                if len(lost) >= max(MIN_LOST, config.train.max_lost_fraction * len(left)):
                    raise RunError(f"{len(lost)} samples were lost, the last: {error}") from error
            else:
                trials.add(tried)
                skips.add(ref, tried.reason) if tried.status == "unreadable" else skips.count_read()
            display.evaluation_played()
            if time.monotonic() - told > TOLD_EVERY_S:
                told = time.monotonic()
                num_done = skips.num_read + len(lost)
                eta_s = (told - started) / num_done * (len(left) - num_done)
                display.say(f"{num_before + num_done} of {len(order)} samples, at most {eta_s / 60:.0f} min left")

    display.work_started("samples", len(left))
    width = config.rollout.workers.maximum * config.rollout.max_groups_in_flight
    async with asyncio.TaskGroup() as group:
        for _ in range(min(width, len(left))):
            group.create_task(work())
    return len(lost)


async def try_sample(fleet: Fleet, ref: SampleRef, config: Config, rule: Rule) -> Tried:
    """Roll one sample out on both views, and have all answers judged."""
    views = (_try_view(fleet, ref, kind, config, rule) for kind in VIEWS)
    quarter, full = await asyncio.gather(*views)
    if isinstance(quarter, Tried):
        return quarter
    if isinstance(full, Tried):
        return full
    return Tried(row=ref.row, num_quarter=quarter[0], num_full=full[0], full_size=full[1])


async def _try_view(
    fleet: Fleet, ref: SampleRef, kind: Kind, config: Config, rule: Rule
) -> tuple[int, tuple[int, int]] | Tried:
    """Right answers on one view, and the size of the full one; or why the sample is in no class."""
    run, num_episodes = config.run.name, rule.num_rollouts
    request = PlayRequest(ref=ref, kind=kind, greedy=False, num_episodes=num_episodes, run=run, step=0, attempt=0)
    played, _ = await fleet.rollouts.play(request)
    if isinstance(played, SkippedSample):
        return Tried(row=ref.row, status="unreadable", reason=played.reason)
    if kind == "always_quarter" and played.episodes[0].turns[0].view == "full":
        return Tried(row=ref.row, status="too_small", reason="the image is too small to be quartered")
    outcomes = await fleet.judge(played)
    for outcome in outcomes:
        if isinstance(outcome, NoVerdict):
            return Tried(row=ref.row, status="no_verdict", reason=outcome.reason)
    return sum(isinstance(outcome, Verdict) and outcome.is_correct for outcome in outcomes), played.full_size


def drawing_order(config: Config, num_rows: int, limit: int | None) -> list[SampleRef]:
    """The rows in the order in which they are tried: random by `run.seed`."""
    cursor = PromptCursor(dataset=config.data.train, num_rows=num_rows, seed=config.run.seed)
    return cursor.take(num_rows if limit is None else min(limit, num_rows))


def write_selected(folder: Path, dataset: Dataset, selected: Sequence[Selected], path: str, rule: Rule) -> Path:
    """Write the samples in the order of their source, which is read in sequence; returns the table."""
    ordered = sorted(selected, key=lambda one: one.tried.row)
    with (
        replace_atomically(folder / TABLE) as partial,
        pq.ParquetWriter(partial, SELECTED, compression="zstd", write_page_checksum=True) as writer,
    ):
        for start in range(0, len(ordered), ROWS_PER_GROUP):
            rows = [_row(dataset, one, path, rule) for one in ordered[start : start + ROWS_PER_GROUP]]
            writer.write_table(pa.Table.from_pylist(rows, schema=SELECTED))
    return folder / TABLE


def _row(dataset: Dataset, selected: Selected, path: str, rule: Rule) -> dict[str, Any]:
    tried = selected.tried
    sample = dataset.read(SampleRef(dataset=path, row=tried.row, uid=str(tried.row)))
    height, width = tried.full_size
    return {
        "problem": sample.question,
        "images": [{"bytes": sample.image, "path": None}],
        "original_answer": sample.answer,
        "doc_id": f"row-{tried.row}",
        "info": {"tgt_width": width, "tgt_height": height, "use_tool": selected.need == "full"},
        "quarter_correct": tried.num_quarter,
        "full_correct": tried.num_full,
        "num_rollouts": rule.num_rollouts,
        "source_row": tried.row,
    }


async def run_selection(
    config: Config, out: Path, rule: Rule, *, limit: int | None, display: Display
) -> dict[str, Any]:
    """Try the rows of `data.train`, choose, and write the result; returns the summary.

    Args:
        config: with paths of this machine.
        limit: number of rows to try; None is all.

    Raises:
        RunError: OUT is in use or was started otherwise, nothing could be selected, or too much was lost.
        DataError, JudgeError: as `try_samples`.
    """
    from cluster.launch import launch_fleet

    started = time.monotonic()
    flaws = model_folder_problems("model.path", config.model.path, needs_weights=config.model.load == "weights")
    raise_all([*map(ValueError, flaws), *data_problems("data.train", config.data.train, config.data.columns)])
    dataset = Dataset.open(config.data.train, config.data.columns)
    data = replace(config.data, heldout=config.data.train)  # the only set that this command needs
    elsewhere = Elsewhere(if_unwritable="give another --out", if_in_use="give another --out")
    with lease(out, say=display.say, elsewhere=elsewhere):
        check_settings(out, config, dataset, rule)
        trials, order = Trials(out, rule), drawing_order(config, len(dataset), limit)
        num_lost, judging = 0, JudgeCounts()
        if not rule.has_enough(trials.num_by_need) and not all(trials.is_done(ref.row) for ref in order):
            async with launch_fleet(replace(config, data=data), display=display) as fleet:
                num_lost = await try_samples(fleet, order, trials, config, rule, display)
                judging = fleet.judges.counters
        tried = [trials.by_row[ref.row] for ref in order if ref.row in trials.by_row]
        selected = select_balanced(tried, rule)
        counts = figures(tried, rule)
        if not selected:
            raise RunError(
                f"nothing is selected: of {counts['num_judged']} judged samples the quarter view is enough for "
                f"{counts['num_low']} and the full view is needed for {counts['num_full']}, and both are wanted; try "
                "more rows (--rows) or a smaller --margin"
            )
        with _told_of_disk(out):
            summary = {
                **counts,
                "num_lost": num_lost,
                "num_selected": len(selected),
                "table": str(write_selected(out, dataset, selected, config.data.train, rule)),
                "llm_calls": judging.num_llm_calls,
                "cost_usd": judging.cost_usd,
                "seconds": round(time.monotonic() - started, 1),
            }
            write_atomically(out / SUMMARY, json.dumps(summary, indent=1))
    return summary
