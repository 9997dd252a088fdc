"""Sets of other public layouts, made here, read by a few settings."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from actors.data.columns import WRITTEN_HERE
from actors.data.dataset import Dataset
from actors.episode import SampleRef
from actors.errors import DataError
from configs.load import load_config
from configs.schema import ColumnsConfig


def picture() -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(encoded, "PNG")
    return encoded.getvalue()


STRUCT = {"bytes": picture(), "path": "a.png"}


def opened(tmp_path, rows, schema=None, **columns):
    path = str(tmp_path / "set.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return Dataset.open(path, ColumnsConfig(**columns)), path


def read(tmp_path, rows, row=0, schema=None, **columns):
    dataset, path = opened(tmp_path, rows, schema, **columns)
    sample = dataset.read(SampleRef(dataset=path, row=row, uid="0"))
    return sample.question, sample.answer, sample.image == picture()


def test_multiple_choice_with_an_index(tmp_path):
    """Question, list of choices and index of the right one, as ScienceQA and A-OKVQA have them."""
    rows = [{"question": "Which?", "choices": ["red", "blue", "é"], "hint": "Look.", "answer": 2, "image": STRUCT}]
    columns = {"question": r"{hint} {question}\n{choices}", "answer": "{answer|letter}"}
    assert read(tmp_path, rows, **columns) == ("Look. Which?\nA. red\nB. blue\nC. é", "C", True)


def test_conversations_with_a_picture_by_path(tmp_path):
    """Turns in a list, the picture beside the table, as LLaVA's sets have them."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(picture())
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
    rows = [{"id": "1", "image": "images/1.png", "conversations": turns}]
    columns = {"question": "conversations.0.value", "answer": "conversations.1.value"}
    assert read(tmp_path, rows, **columns) == ("What is it?", "A cat.", True)
    as_json = [{**rows[0], "conversations": json.dumps(turns)}]
    assert read(tmp_path, as_json, **columns) == ("What is it?", "A cat.", True)


def test_several_right_answers(tmp_path):
    """A list of accepted texts (DocVQA), or ten answers of people with their confidence (VQA v2)."""
    rows = [{"question": "Name?", "image": STRUCT, "answers": ["ITC", "itc", "ITC"]}]
    assert read(tmp_path, rows, question="question", answer="answers")[1] == '["ITC", "itc"]'
    assert read(tmp_path, rows, question="question", answer="{answers|most}")[1] == "ITC"
    votes = [{"answer": word, "answer_confidence": "yes"} for word in ("net", "netting", "net")]
    rows = [{"question": "What?", "image": STRUCT, "answers": votes}]
    assert read(tmp_path, rows, question="question", answer="{answers.*.answer|most}")[1] == "net"
    assert read(tmp_path, rows, question="question", answer="answers.*.answer")[1] == '["net", "netting"]'


def test_options_in_a_text_and_numbered_pictures(tmp_path):
    """A Python list in a text and the picture in `image_1`, as MMMU has them."""
    rows = [{"question": "Pick:", "options": "['$6', '7\\'s']", "image_1": STRUCT, "answer": "B"}]
    columns = {"question": r"{question}\n{options.*}", "image": "image_1", "answer": "{answer|letter}"}
    assert read(tmp_path, rows, **columns) == ("Pick:\nA. $6\nB. 7's", "B", True)


def test_nested_pictures_and_a_flag(tmp_path):
    rows = [{"q": {"text": "Why?"}, "shots": [STRUCT, STRUCT], "gold": 0.1, "meta": {"hard": True}}]
    schema = pa.schema(
        [
            ("q", pa.struct([("text", pa.string())])),
            ("shots", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
            ("gold", pa.float32()),
            ("meta", pa.struct([("hard", pa.bool_())])),
        ]
    )
    columns = {"question": "q.text", "answer": "gold", "needs_full": "meta.hard"}
    assert read(tmp_path, rows, schema=schema, image="shots.0", **columns) == ("Why?", "0.1", True)
    dataset, path = opened(tmp_path, rows, schema, image="shots", **columns)
    with pytest.raises(DataError, match=r"row 0 of .* shots has 2 pictures: an episode shows exactly 1"):
        dataset.read(SampleRef(dataset=path, row=0, uid="0"))
    dataset, path = opened(tmp_path, rows, schema, image="shots.1", **columns)
    assert dataset.read(SampleRef(dataset=path, row=0, uid="0")).needs_full is True


def test_names_of_classes_are_written(tmp_path):
    metadata = {
        "huggingface": json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}}})
    }
    kinds = [("question", pa.string()), ("image", pa.binary()), ("label", pa.int64())]
    schema = pa.schema(kinds, metadata=metadata)
    rows = [{"question": "?a", "image": picture(), "label": 1}]
    assert read(tmp_path, rows, schema=schema, question="question", answer="label")[1] == "dog"


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"answer": "anwser"}, "data.columns.answer='anwser': there is no column anwser; the columns are question,"),
        ({"answer": "choices.first"}, "there is no 'first' in list"),
        ({"answer": "meta.x"}, "there is no 'x' in struct"),
        ({"answer": "{question|upper}"}, "there is no filter 'upper'; give letter or most"),
        ({"answer": "{}"}, "there is no column in it"),
        ({"answer": "meta"}, "must be a text or a number"),
        ({"image": "question.x"}, "names 'what\\?'|holds no picture|has no 'x'|is not JSON"),
        ({"needs_full": "no"}, "data.columns.needs_full='no': there is no column no"),
    ],
)
def test_a_mapping_that_leads_nowhere_is_refused_when_the_set_is_opened(tmp_path, columns, told):
    rows = [{"question": "what?", "choices": ["a"], "meta": {"y": 1}, "image": STRUCT}]
    columns = {"question": "question", "answer": "meta.y"} | columns
    with pytest.raises(DataError, match=told):
        read(tmp_path, rows, **columns)


@pytest.mark.parametrize(
    ("value", "told"),
    [("[]", "is an empty list"), ("nothing", "is not JSON"), ('{"a": 1}', "has no '\\*'"), (None, "has no '\\*'")],
)
def test_a_row_that_lacks_it_is_unusable_and_no_other(tmp_path, value, told):
    rows = [
        {"question": "what?", "image": STRUCT, "answers": value},
        {"question": "what?", "image": STRUCT, "answers": '["b"]'},
    ]
    dataset, path = opened(tmp_path, rows, question="question", answer="answers.*")
    with pytest.raises(DataError, match=f"row 0 of .*{told}"):
        dataset.read(SampleRef(dataset=path, row=0, uid="0"))
    assert dataset.read(SampleRef(dataset=path, row=1, uid="1")).answer == "b"


def test_a_set_that_we_wrote_is_read_by_its_own_columns(tmp_path):
    path = str(tmp_path / "selected.parquet")
    rows = {"problem": ["what?"], "images": [[STRUCT]], "original_answer": ["red"]}
    pq.write_table(pa.table(rows).replace_schema_metadata(WRITTEN_HERE), path)
    dataset = Dataset.open(path, ColumnsConfig(question="question", answer="answers"))
    assert dataset.read(SampleRef(dataset=path, row=0, uid="0")).answer == "red"


def test_the_mapping_is_for_the_configured_sets_alone():
    overrides = [r"data.columns.question={question}\n{choices}", "data.train=/a", "data.heldout=/b"]
    data = load_config("tiny", overrides).data
    assert data.columns_of("/a").question == data.columns_of("/b").question == r"{question}\n{choices}"
    assert data.columns_of("/c") == ColumnsConfig()


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("{[]: 1}", "is not JSON"),  # a Python literal with a key that cannot be one
        ("[" * 100_000, "is not JSON"),
        ('{"a": ' + "9" * 5000 + "}", "is not JSON"),
        ('{"a": {"b": 1}}', "is a dict, not a text or a number"),
        ('{"a": [[1, 2]]}', "is a list, not a text or a number"),
        ("{'a': {1, 2}}", "is a set, not a text or a number"),
        ("{'a': 1j}", "is a complex, not a text or a number"),
        ('{"a": true}', "is True: write it as text"),
        ('{"a": [false]}', "is False: write it as text"),
        ('{"a": 1e999}', "is inf, not a number that can be an answer"),
        ('{"a": NaN}', "is nan, not a number that can be an answer"),
        (r'{"a": "red \ud83d"}', "has a lone surrogate"),
        ('{"a": null}', "is null"),
        ("null", "has no 'a'"),
    ],
)
@pytest.mark.parametrize("answer", ["answers.a", "{answers.a|letter}", "{answers.a|most}"])
def test_a_value_that_is_no_answer_makes_its_row_unusable(tmp_path, value, told, answer):
    rows = [{"question": "what?", "image": STRUCT, "answers": value}]
    with pytest.raises(DataError, match=f"row 0 of .*{told}"):
        read(tmp_path, rows, question="question", answer=answer)


@pytest.mark.parametrize(("index", "letter"), [("25", "Z"), ("26", "26"), ("9" * 5000, "9" * 5000), ("²", "²")])
def test_an_index_beyond_the_letters_stays(tmp_path, index, letter):
    rows = [{"question": "what?", "image": STRUCT, "answer": index}]
    assert read(tmp_path, rows, question="question", answer="{answer|letter}")[1] == letter


def test_what_is_needed_and_where_may_lie_in_columns_of_any_name(tmp_path):
    rows = [{"problem": "Which?", "answer": "a", "image": STRUCT, "how": "region", "at": [0.0, 0.25, 0.5, 0.75]}]
    dataset, path = opened(tmp_path, rows, needs="how", region="at")
    sample = dataset.read(SampleRef(dataset=path, row=0, uid="0"))
    assert (sample.needs, sample.region, sample.needs_full) == ("region", (0.0, 0.25, 0.5, 0.75), None)
