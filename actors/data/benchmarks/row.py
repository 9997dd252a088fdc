"""One row of a benchmark, without its picture: what the policy is asked and what the metric needs to know."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkRow:
    question: str
    """What the policy is asked, with the form of the answer where the benchmark wants one."""
    references: tuple[str, ...]
    """At least one. What several mean is up to the metric."""
    categories: tuple[str, ...] = ()
    """What the benchmark breaks its score down by: sub-task, capability, problem version."""
    unit: str = ""
    """Rows with the same unit are scored, and resampled, together: the two questions of an MME image. Empty: alone."""
    judged_question: str = ""
    """What the judge is told was asked; empty: the question."""
    choices: tuple[str, ...] = ()
    question_type: str = ""
    answer_type: str = ""
    precision: int | None = None
    """Decimals of a float answer (MathVista)."""

    @property
    def reference(self) -> str:
        """The references as one text: a JSON array of several."""
        return self.references[0] if len(self.references) == 1 else json.dumps(self.references, ensure_ascii=False)
