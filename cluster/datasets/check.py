"""`visionthink data check`: reads every row as a run would, and says what is in a data set and what is wrong with it.

Rows are streamed: of a row only a hash and some counts stay in memory, and the pictures of the contact sheet.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actors.data.dataset import MIN_SKIPPED, Dataset
from actors.episode import Sample, SampleRef
from actors.errors import DataError
from actors.fleet.cutting import MAX_THREADS
from actors.images import View_HW3, ViewSpec, can_quarter, check_and_decode, full_view, num_visual_tokens, view_size
from configs.schema import Config, DataConfig

MAX_READ_AHEAD = 4 * MAX_THREADS
"""Encoded pictures in memory."""
NUM_BINS = 10
NUM_EXAMPLES = 3
_VARYING = re.compile(r"'[^']*'|\d+(\.\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is kept of a row that could be read."""

    row: int
    needs_full: bool | None
    answers_are_list: bool
    full_tokens: int
    quarter_tokens: int
    """As `full_tokens` where the picture is too small to be quartered."""
    picture: bytes
    """Hash of the decoded pixels: the same picture in another file is the same."""
    pair: bytes
    """Hash of picture and question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A row of the contact sheet."""

    sample: Sample
    full: View_HW3


@dataclass(kw_only=True)
class SetReport:
    """What was found in one set. Mutable: grows row by row."""

    path: str
    num_rows: int
    num_readable: int = 0
    unreadable: dict[str, list[int]] = field(default_factory=dict)
    """Reason, without what differs from row to row, to the rows."""
    examples: dict[str, str] = field(default_factory=dict)
    """Reason to the whole message of its first row."""
    needs: Counter[bool | None] = field(default_factory=Counter)
    full_tokens: Counter[int] = field(default_factory=Counter)
    quarter_tokens: Counter[int] = field(default_factory=Counter)
    num_too_small: int = 0
    """Pictures without a quarter view."""
    num_too_long: int = 0
    """Rows whose two views alone exceed `rollout.max_prompt_tokens`."""
    num_answer_lists: int = 0
    duplicates: list[tuple[int, int]] = field(default_factory=list)
    """Rows with picture and question of an earlier row, which comes first."""
    pairs: dict[bytes, int] = field(default_factory=dict)
    pictures: dict[bytes, int] = field(default_factory=dict)
    """Hash to the first row that has it."""
    shown: list[Shown] = field(default_factory=list)

    @property
    def num_unreadable(self) -> int:
        return sum(map(len, self.unreadable.values()))

    def add(self, seen: Seen, max_prompt_tokens: int) -> None:
        self.num_readable += 1
        self.needs[seen.needs_full] += 1
        self.full_tokens[seen.full_tokens] += 1
        self.quarter_tokens[seen.quarter_tokens] += 1
        self.num_too_small += seen.quarter_tokens == seen.full_tokens
        self.num_too_long += seen.full_tokens + seen.quarter_tokens > max_prompt_tokens
        self.num_answer_lists += seen.answers_are_list
        if (first := self.pairs.setdefault(seen.pair, seen.row)) != seen.row:
            self.duplicates.append((first, seen.row))
        self.pictures.setdefault(seen.picture, seen.row)

    def add_unreadable(self, row: int, reason: str, path: str) -> None:
        reason = reason.removeprefix(f"row {row} of {path}: ")
        kind = _VARYING.sub("…", reason)
        self.unreadable.setdefault(kind, []).append(row)
        self.examples.setdefault(kind, reason)

    def figures(self) -> dict[str, Any]:
        needs = {"true": self.needs[True], "false": self.needs[False], "unknown": self.needs[None]}
        return {
            "path": self.path,
            "num_rows": self.num_rows,
            "num_readable": self.num_readable,
            "num_unreadable": self.num_unreadable,
            "unreadable": [
                {"reason": kind, "count": len(rows), "rows": rows[:NUM_EXAMPLES], "example": self.examples[kind]}
                for kind, rows in sorted(self.unreadable.items(), key=lambda item: -len(item[1]))
            ],
            "num_duplicates": len(self.duplicates),
            "duplicates": self.duplicates[:NUM_EXAMPLES],
            "num_pictures": len(self.pictures),
            "use_tool": needs,
            "full_tokens": token_figures(self.full_tokens),
            "quarter_tokens": token_figures(self.quarter_tokens),
            "num_too_small": self.num_too_small,
            "num_too_long": self.num_too_long,
            "num_answer_lists": self.num_answer_lists,
        }


def token_figures(counts: Counter[int]) -> dict[str, Any]:
    """Mean, extremes and histogram of visual tokens per picture."""
    if not counts:
        return {"mean": None, "min": None, "max": None, "histogram": {}}
    values, weights = np.array(list(counts)), np.array(list(counts.values()))
    low, high = int(values.min()), int(values.max())
    width = -(-(high - low + 1) // NUM_BINS)
    bins: Counter[int] = Counter()
    for value, count in counts.items():
        bins[(value - low) // width] += count
    starts = [low + index * width for index in range(max(bins) + 1)]
    labels = [str(start) if width == 1 else f"{start}-{start + width - 1}" for start in starts]
    histogram = {label: bins[index] for index, label in enumerate(labels)}
    return {"mean": float(np.average(values, weights=weights)), "min": low, "max": high, "histogram": histogram}


def read_set(
    path: str, config: Config, spec: ViewSpec, *, limit: int | None, num_shown: int, advance: Callable[[int, int], None]
) -> SetReport:
    """Read the rows of a set, or `limit` of them that are evenly spread.

    Raises:
        DataError: the set as a whole cannot be read.
    """
    dataset = Dataset.open(path, config.data.columns)
    rows = spread(len(dataset), limit)
    chosen = {rows[index] for index in spread(len(rows), num_shown)}
    report = SetReport(path=path, num_rows=len(dataset))
    looks = _in_threads(
        lambda sample: look_at(sample, config.data, spec, keeps_view=sample.ref.row in chosen),
        _samples(dataset, path, rows),
    )
    for number, (row, found) in enumerate(looks):
        if isinstance(found, str):
            report.add_unreadable(row, found, path)
        else:
            seen, shown = found
            report.add(seen, config.rollout.max_prompt_tokens)
            report.shown += [shown] if shown else []
        advance(number + 1, len(rows))
    return report


def _samples(dataset: Dataset, path: str, rows: Iterable[int]) -> Iterator[tuple[int, Sample | str]]:
    """Each row as a sample, or the reason why it is none."""
    for row in rows:
        try:
            yield row, dataset.read(SampleRef(dataset=path, row=row, uid=str(row)))
        except DataError as error:
            yield row, str(error)


def _in_threads(
    look: Callable[[Sample], tuple[Seen, Shown | None]], samples: Iterable[tuple[int, Sample | str]]
) -> Iterator[tuple[int, tuple[Seen, Shown | None] | str]]:
    """What is seen of each sample, in their order, or the reason why nothing is. Few samples are in memory at once."""

    def seen_or_reason(sample: Sample | str) -> tuple[Seen, Shown | None] | str:
        try:
            return sample if isinstance(sample, str) else look(sample)
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="check-pictures") as threads:
        looking: deque[tuple[int, Future[tuple[Seen, Shown | None] | str]]] = deque()
        for row, sample in samples:
            looking.append((row, threads.submit(seen_or_reason, sample)))
            if len(looking) > MAX_READ_AHEAD:
                row, first = looking.popleft()
                yield row, first.result()
        for row, rest in looking:
            yield row, rest.result()


def look_at(sample: Sample, limits: DataConfig, spec: ViewSpec, *, keeps_view: bool) -> tuple[Seen, Shown | None]:
    """Decode a picture and measure its views; ImageError where it cannot be decoded."""
    image = check_and_decode(sample.image, max_pixels=limits.max_source_pixels, max_side_ratio=limits.max_side_ratio)
    height, width = view_size(image.height, image.width, spec)
    num_full = num_visual_tokens(height, width, spec)
    picture = hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).digest()
    question = " ".join(sample.question.casefold().split())
    seen = Seen(
        row=sample.ref.row,
        needs_full=sample.needs_full,
        answers_are_list=_is_list(sample.answer),
        full_tokens=num_full,
        quarter_tokens=num_full // 4 if can_quarter(height, width, spec) else num_full,
        picture=picture,
        pair=hashlib.blake2b(picture + question.encode(), digest_size=16).digest(),
    )
    return seen, Shown(sample=sample, full=full_view(image, spec)) if keeps_view else None


def _is_list(answer: str) -> bool:
    """Whether an answer is a JSON array of texts, each of which is right."""
    try:
        found = json.loads(answer) if answer.startswith("[") else None
    except (ValueError, RecursionError):
        return False
    return isinstance(found, list) and all(isinstance(item, str) for item in found)


def spread(num_rows: int, limit: int | None) -> list[int]:
    """At most `limit` numbers below `num_rows`, evenly spread; all of them without a limit."""
    if limit is None or limit >= num_rows:
        return list(range(num_rows))
    return [index * num_rows // limit for index in range(limit)]


def leakage(train: SetReport, heldout: SetReport) -> dict[str, Any]:
    """What the held-out set shares with the training set, by distinct picture and question, and by distinct picture."""
    pairs = [(train.pairs[key], row) for key, row in heldout.pairs.items() if key in train.pairs]
    pictures = [(train.pictures[key], row) for key, row in heldout.pictures.items() if key in train.pictures]
    return {"num_samples": len(pairs), "num_pictures": len(pictures), "rows": (pairs or pictures)[:NUM_EXAMPLES]}


def problems_of(key: str, report: SetReport, config: Config) -> list[str]:
    """What would stop a run on this set, or spoil it; a line each, with the remedy."""
    limit, found = config.data.max_skipped_fraction, []
    num_read = report.num_readable + report.num_unreadable
    if not report.num_readable:
        found.append(f"{key}: no row can be read")
    elif report.num_unreadable >= MIN_SKIPPED and report.num_unreadable > limit * num_read:
        found.append(
            f"{key}: {report.num_unreadable} of {num_read} rows are unreadable, over "
            f"data.max_skipped_fraction={limit}: a run stops on this set; mend or drop them"
        )
    if report.num_too_long:
        found.append(
            f"{key}: {report.num_too_long} rows have more visual tokens in both views than "
            f"rollout.max_prompt_tokens={config.rollout.max_prompt_tokens}: raise it, or lower model.max_pixels"
        )
    if report.num_answer_lists and config.judge.metric != "anls":
        found.append(
            f"{key}: {report.num_answer_lists} answers are lists, which only judge.metric=anls reads: choose one, as "
            "in data.columns.answer={answers|most}"
        )
    return found
