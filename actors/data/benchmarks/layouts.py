"""How the nine benchmarks of the paper's Table 2 lie on the hub: files, columns, and what a row means.

The columns are those of the lmms-lab sets and of the originals. A value that may stand in either of two columns is
looked for in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from actors.data.benchmarks.row import BenchmarkRow
from actors.errors import DataError

Values = Mapping[str, Any]
"""A row as it is stored, without its picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where one benchmark lies, and how a row of it is read."""

    hub_id: str
    """Where the set is published."""
    files: tuple[str, ...]
    """Patterns of the split that is scored, relative to the set's folder; the first that matches counts."""
    read: Callable[[Values], BenchmarkRow]
    images: tuple[str, ...] = ("image",)
    """Columns that may hold the picture; the first that is there counts."""
    needs_llm: bool = False
    """Its official metric asks an LLM."""


def chartqa(values: Values) -> BenchmarkRow:
    origin = _text(values, "type", "human_or_machine", default="")
    part = "human" if origin in ("human_test", "human", "0") else "augmented"
    return BenchmarkRow(
        question=f"{_question(values, 'question', 'query')}\nAnswer with one word or one number.",
        references=_texts(values, "answer", "label"),
        categories=(part,) if origin else (),
    )


def ocrbench(values: Values) -> BenchmarkRow:
    return BenchmarkRow(
        question=_question(values, "question"),
        references=_texts(values, "answer", "answers"),
        categories=(_text(values, "question_type", "type"),),
        answer_type=_text(values, "dataset", "dataset_name"),
    )


def docvqa(values: Values) -> BenchmarkRow:
    return BenchmarkRow(
        question=f"{_question(values, 'question')}\nAnswer with the words of the document alone.",
        references=_texts(values, "answers"),
        categories=_texts(values, "question_types", default=()),
    )


def mme(values: Values) -> BenchmarkRow:
    task = _text(values, "category")
    return BenchmarkRow(
        question=_question(values, "question"),
        references=_texts(values, "answer"),
        categories=(task,),
        unit=f"{task}/{_text(values, 'question_id')}",
    )


def mmvet(values: Values) -> BenchmarkRow:
    skills = ",".join(_texts(values, "capability")).split(",")
    return BenchmarkRow(
        question=_question(values, "question"),
        references=_texts(values, "answer"),
        categories=tuple(skill.strip() for skill in skills),
    )


def realworldqa(values: Values) -> BenchmarkRow:
    return BenchmarkRow(question=_question(values, "question"), references=_texts(values, "answer"))


def pope(values: Values) -> BenchmarkRow:
    return BenchmarkRow(
        question=f"{_question(values, 'question')}\nAnswer yes or no.",
        references=_texts(values, "answer", "label"),
        categories=_texts(values, "category", default=()),
    )


def mathvista(values: Values) -> BenchmarkRow:
    precision, notes = values.get("precision"), values.get("metadata") or {}
    return BenchmarkRow(
        question=_question(values, "query", "question"),
        references=_texts(values, "answer"),
        categories=(str(notes.get("task") or "unknown"),),
        choices=tuple(map(str, values.get("choices") or ())),
        question_type=_text(values, "question_type"),
        answer_type=_text(values, "answer_type"),
        precision=None if precision is None else int(precision),
    )


def mathverse(values: Values) -> BenchmarkRow:
    return BenchmarkRow(
        question=_question(values, "query_wo", "question"),
        references=_texts(values, "answer"),
        categories=(_text(values, "problem_version"),),
        judged_question=_text(values, "question_for_eval", "question", default=""),
        question_type=_text(values, "question_type"),
    )


TEST = ("data/test-*.parquet", "test-*.parquet", "test.parquet", "test/*.parquet")
TESTMINI = ("data/testmini-*.parquet", "testmini-*.parquet", "testmini.parquet", "testmini/*.parquet")
LAYOUTS: dict[str, Layout] = {
    "chartqa": Layout(hub_id="lmms-lab/ChartQA", files=TEST, read=chartqa),
    "ocrbench": Layout(hub_id="echo840/OCRBench", files=TEST, read=ocrbench),
    "docvqa": Layout(
        hub_id="lmms-lab/DocVQA",
        files=("DocVQA/validation-*.parquet", "data/validation-*.parquet", "validation-*.parquet", "val*.parquet"),
        read=docvqa,
    ),
    "mme": Layout(hub_id="lmms-lab/MME", files=TEST, read=mme),
    "mmvet": Layout(hub_id="lmms-lab/MMVet", files=TEST, read=mmvet, needs_llm=True),
    "realworldqa": Layout(hub_id="xai-org/RealworldQA", files=TEST, read=realworldqa),
    "pope": Layout(hub_id="lmms-lab/POPE", files=TEST, read=pope),
    "mathvista": Layout(
        hub_id="AI4Math/MathVista", files=TESTMINI, read=mathvista, images=("decoded_image",), needs_llm=True
    ),
    "mathverse": Layout(hub_id="AI4Math/MathVerse", files=TESTMINI, read=mathverse, needs_llm=True),
}
"""By the name that `--suite` takes, in the order of the paper's Table 2."""


def _text(values: Values, *names: str, default: str | None = None) -> str:
    """The first of these columns that has a value, as text."""
    found = _texts(values, *names, default=None if default is None else (default,))
    return found[0]


def _texts(values: Values, *names: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """The values of the first of these columns that has any; a single one, or a list of them."""
    for name in names:
        value = values.get(name)
        several: Iterable[Any] = value if isinstance(value, list | tuple) else (value,)
        if texts := tuple(str(one) for one in several if one is not None and str(one).strip()):
            return texts
    if default is not None:
        return default
    raise DataError(f"{' or '.join(names)} has no value: this split holds no answers, or it is not the published set")


def _question(values: Values, *names: str) -> str:
    return _text(values, *names).strip()
