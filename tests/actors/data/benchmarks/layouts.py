"""Small files in the published layout of each benchmark."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

PLACES = {
    "chartqa": "ChartQA/data/test-00000-of-00001.parquet",
    "ocrbench": "OCRBench/data/test-00000-of-00001.parquet",
    "docvqa": "DocVQA/DocVQA/validation-00000-of-00002.parquet",
    "mme": "MME/data/test-00000-of-00001.parquet",
    "mmvet": "MMVet/data/test-00000-of-00001.parquet",
    "realworldqa": "RealworldQA/data/test-00000-of-00001.parquet",
    "pope": "POPE/data/test-00000-of-00001.parquet",
    "mathvista": "MathVista/data/testmini-00000-of-00001.parquet",
    "mathverse": "MathVerse/testmini.parquet",
}
"""Where `hf download --local-dir SETS/NAME` puts the split that is scored."""
NOTES = {"category": "math-targeted-vqa", "task": "geometry problem solving", "skills": ["arithmetic reasoning"]}
VERSE = {"question_type": "multi-choice", "metadata": {"subject": "Plane Geometry", "subfield": "Angle"}}
ROWS: dict[str, list[dict[str, Any]]] = {
    "chartqa": [
        {"type": "human_test", "question": "How many bars?", "answer": "14"},
        {"type": "augmented_test", "question": "Share of men?", "answer": "25%"},
    ],
    "ocrbench": [
        {"dataset": "IIIT5K", "question": "what is written?", "question_type": "Regular Text Recognition"}
        | {"answer": ["CENTRE"]},
        {"dataset": "HME100k", "question": "the formula?", "question_type": "Handwritten Mathematical Expression"}
        | {"answer": ["x^{2}"]},
    ],
    "docvqa": [
        {"questionId": "337", "question": "what date?", "question_types": ["handwritten"], "docId": 279}
        | {"answers": ["1/8/93", "January 8"], "data_split": "val"},
    ],
    "mme": [
        {"question_id": "code_reasoning/0020.png", "question": f"{what} Please answer yes or no.", "answer": answer}
        | {"category": "code_reasoning"}
        for what, answer in (("Is it 4?", "Yes"), ("Is it 5?", "No"))
    ],
    "mmvet": [
        {"question_id": "v1_0", "question": "What is x?", "answer": "-1<AND>-5", "image_source": "web"}
        | {"capability": "ocr,math"},
    ],
    "realworldqa": [{"image_path": "0.webp", "question": "Which?\nA. Left\nB. Right", "answer": "B"}],
    "pope": [
        {"id": "0", "question_id": "1", "question": "Is there a dog?", "answer": "yes", "image_source": "coco"}
        | {"category": "adversarial"},
    ],
    "mathvista": [
        {"pid": "1", "question": "Which?", "image": "images/1.jpg", "choices": ["3/11", "8/11"], "unit": None}
        | {"precision": None, "answer": "8/11", "question_type": "multi_choice", "answer_type": "text"}
        | {"metadata": NOTES, "query": "Hint: give the letter.\nQuestion: Which?\nChoices:\n(A) 3/11\n(B) 8/11"},
        {"pid": "2", "question": "How far?", "image": "images/2.jpg", "choices": None, "unit": "m"}
        | {"precision": 1.0, "answer": "1.2", "question_type": "free_form", "answer_type": "float"}
        | {"metadata": NOTES, "query": "Hint: one decimal.\nQuestion: How far?"},
    ],
    "mathverse": [
        {"sample_index": "1", "problem_index": "1", "problem_version": "Text Dominant", "question": "Find x.\nA:1"}
        | {"answer": "A", "query_wo": "Directly answer.\nFind x.\nA:1", "query_cot": "Reason.\nFind x.\nA:1"}
        | {"question_for_eval": "Find x. A:1", **VERSE},
    ],
}


def picture(size: int = 224) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (size, size), (200, 30, 30)).save(encoded, "PNG")
    return encoded.getvalue()


def write_suite(name: str, folder: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    """The file of a benchmark below a folder of several. Rows without a picture get one."""
    file = folder / PLACES[name]
    file.parent.mkdir(parents=True, exist_ok=True)
    image = "decoded_image" if name == "mathvista" else "image"
    filled = [{image: {"bytes": picture(), "path": None}, **row} for row in rows or ROWS[name]]
    pq.write_table(pa.Table.from_pylist(filled), file)
    return file
