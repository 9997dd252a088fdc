"""From the scores of single answers to the score of a benchmark, in sums over units: any resampling is a product.

U units: questions, or the images of MME with their two questions; F sums per unit; B samples of units
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.data.benchmarks.row import BenchmarkRow
from judge.benchmarks.ocrbench import FULL_SCORE

Floats = np.ndarray[Any, np.dtype[np.float64]]
PERCEPTION = frozenset(
    {"existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"}
)
"""MME's perception tasks; the others are its cognition tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How a benchmark's score comes about."""

    name: str
    best: float
    """The full score."""
    sums: Callable[[Sequence[BenchmarkRow], Floats], Floats]
    """(rows, their scores in 0..1) to [U, F]: what adds up. Rows of one unit stand together."""
    of: Callable[[Floats], Floats]
    """[B, F] to [B]: the score of each sum over units."""


def mean_score(name: str, best: float = 100.0) -> Score:
    """The mean of all scores."""
    return Score(
        name=name,
        best=best,
        sums=lambda rows, scores: np.stack([scores, np.ones_like(scores)], axis=1),
        of=lambda sums_BF: best * sums_BF[:, 0] / sums_BF[:, 1],
    )


def _mme_sums(rows: Sequence[BenchmarkRow], scores: Floats) -> Floats:
    """Per image: accuracy, whether both are right, and one; in the columns of its sub-task."""
    pairs_U2 = scores.reshape(-1, 2)
    tasks = [row.categories[0] for row in rows[::2]]
    names = sorted(set(tasks))
    sums_UF = np.zeros((len(pairs_U2), len(names), 3))
    of_task = [names.index(task) for task in tasks]
    values = [pairs_U2.mean(axis=1), pairs_U2.min(axis=1), np.ones(len(pairs_U2))]
    sums_UF[np.arange(len(pairs_U2)), of_task] = np.stack(values, axis=1)
    return sums_UF.reshape(len(pairs_U2), -1)


def _mme_score(sums_BF: Floats) -> Floats:
    """acc + acc+ of each sub-task in percent, added up: 200 for a task, 2,000 perception, 800 cognition."""
    sums_BT3 = sums_BF.reshape(len(sums_BF), -1, 3)
    total: Floats = (100 * (sums_BT3[..., 0] + sums_BT3[..., 1]) / sums_BT3[..., 2]).sum(axis=1)
    return total


def _pope_sums(rows: Sequence[BenchmarkRow], scores: Floats) -> Floats:
    """True positives, false positives, false negatives, all. An answer that is wrong is the other one."""
    is_yes = np.array([row.references[0].strip().lower() == "yes" for row in rows], dtype=bool)
    right = scores > 0
    return np.stack([is_yes & right, ~is_yes & ~right, is_yes & ~right, np.ones(len(rows))], axis=1).astype(float)


def _f1(sums_BF: Floats) -> Floats:
    true, other = sums_BF[:, 0], sums_BF[:, 1] + sums_BF[:, 2]
    shares: Floats = 200 * true / np.maximum(2 * true + other, 1)
    return shares


SCORES: dict[str, Score] = {
    "chartqa": mean_score("relaxed accuracy"),
    "ocrbench": mean_score("score of 1000", FULL_SCORE),
    "docvqa": mean_score("ANLS"),
    "mme": Score(name="acc + acc+", best=2800.0, sums=_mme_sums, of=_mme_score),
    "mmvet": mean_score("GPT grade"),
    "realworldqa": mean_score("exact match"),
    "pope": Score(name="F1", best=100.0, sums=_pope_sums, of=_f1),
    "mathvista": mean_score("accuracy"),
    "mathverse": mean_score("accuracy"),
}
"""By suite; any other set is scored by `mean_score`. Of a part of MME, each sub-task that is there gives up to 200."""


def complete_rows(rows: Sequence[BenchmarkRow]) -> list[int]:
    """Places of the rows that can be scored, those of a unit together: an image of MME counts with both questions."""
    units: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        units.setdefault(row.unit or f"row {place}", []).append(place)
    return [place for places in units.values() if not rows[places[0]].unit or len(places) == 2 for place in places]


def parts_of(suite: str, rows: Sequence[BenchmarkRow], scores: Floats) -> dict[str, dict[str, float]]:
    """The published breakdown: per category the score and its number of questions, and what else the metric reports."""
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        for category in row.categories:
            groups.setdefault(category, []).append(place)
            if suite == "mme":
                groups.setdefault("perception" if category in PERCEPTION else "cognition", []).append(place)
    if suite == "pope":
        groups["all"] = list(range(len(rows)))
    return {name: _part(suite, [rows[at] for at in places], scores[places]) for name, places in groups.items()}


def _part(suite: str, rows: Sequence[BenchmarkRow], scores: Floats) -> dict[str, float]:
    metric = SCORES.get(suite, mean_score("accuracy")) if suite != "ocrbench" else mean_score("accuracy")
    sums_1F = metric.sums(rows, scores).sum(axis=0, keepdims=True)
    part = {"score": float(metric.of(sums_1F)[0]), "n": float(len(rows))}
    return part | _pope_figures(sums_1F[0]) if suite == "pope" else part


def _pope_figures(sums_F: Floats) -> dict[str, float]:
    """Accuracy, precision, recall and the share of predicted yes, in percent."""
    true, false, missed, num_all = map(float, sums_F)
    return {
        "accuracy": 100 * (num_all - false - missed) / num_all,
        "precision": 100 * true / max(true + false, 1),
        "recall": 100 * true / max(true + missed, 1),
        "yes_ratio": 100 * (true + false) / num_all,
    }
