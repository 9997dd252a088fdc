import json
from decimal import Decimal

import pyarrow as pa
import pytest

from actors.data.texts import TextColumn
from actors.errors import DataError


def texts(array, metadata=None):
    """What each value of a column is read as: its text, or the reason why there is none."""
    schema = pa.schema([pa.field("answer", array.type)], metadata=metadata)
    column = TextColumn.of(schema, "answer")
    return [reading(column, value) for value in array.to_pylist()]


def reading(column, value):
    try:
        return column.read(value)
    except DataError as error:
        return error


def features(**columns):
    return {"huggingface": json.dumps({"info": {"features": columns}})}


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (pa.float64(), 2020.0, "2020"),
        (pa.float64(), 1234567.0, "1234567"),
        (pa.float64(), -3.0, "-3"),
        (pa.float64(), -0.0, "0"),
        (pa.float64(), 0.1, "0.1"),
        (pa.float64(), 2.50, "2.5"),
        (pa.float64(), 0.00001, "0.00001"),
        (pa.float64(), 4539578763621486.0, "4539578763621486"),
        (pa.float64(), 6.02e23, "6.02e+23"),
        (pa.float64(), 1.6e-19, "1.6e-19"),
        (pa.float32(), 0.1, "0.1"),
        (pa.float32(), 2020.0, "2020"),
        (pa.float32(), 3.14, "3.14"),
        (pa.float32(), 20_000_000.0, "20000000"),
        (pa.float16(), 0.1, "0.1"),
        (pa.int8(), -7, "-7"),
        (pa.uint64(), 2**64 - 1, "18446744073709551615"),
        (pa.decimal128(10, 2), Decimal("2020.00"), "2020"),
        (pa.decimal128(10, 2), Decimal("12.50"), "12.5"),
        (pa.decimal128(38, 0), Decimal(10**37 + 1), str(10**37 + 1)),
        (pa.string(), "  2020.0 ", "2020.0"),
        (pa.large_string(), "日本 🐈", "日本 🐈"),
        (pa.string_view(), "this", "this"),
        (pa.binary(), "fünf".encode(), "fünf"),
        (pa.dictionary(pa.int32(), pa.string()), "this", "this"),
        (pa.list_(pa.string()), ["this"], "this"),
        (pa.large_list(pa.float64()), [7.0], "7"),
    ],
)
def test_a_value_is_written_as_a_person_would(kind, value, text):
    assert texts(pa.array([value, value], kind)) == [text, text]


def test_whole_numbers_beside_a_gap_stay_whole_and_the_gap_is_skipped():
    year, gap = texts(pa.array([2020.0, None], pa.float64()))
    assert year == "2020"
    assert str(gap) == "answer is null"


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        (pa.float64(), float("nan"), "answer is nan"),
        (pa.float64(), float("inf"), "answer is inf"),
        (pa.float32(), float("-inf"), "answer is -inf"),
        (pa.float64(), 9007199254740993.0, "float64 does not keep every whole number"),
        (pa.float64(), 12345678901234567890.0, "store the column as integers or as text"),
        (pa.float32(), 123456789.0, "float32 does not keep every whole number"),
        (pa.string(), None, "is null"),
        (pa.int64(), None, "is null"),
        (pa.string(), "", "is empty"),
        (pa.string(), " \t\n\u00a0", "is empty"),
        (pa.string(), "\u200b\ufeff", "is empty"),
        (pa.binary(), b"\xff\xfe", "is not UTF-8"),
        (pa.list_(pa.string()), ["this", "that"], "holds 2 values"),
        (pa.list_(pa.string()), [], "holds 0 values"),
        (pa.list_(pa.string()), [None], "is null"),
        (pa.list_(pa.string()), None, "is null"),
    ],
)
def test_a_value_without_a_text_gives_its_reason(kind, value, reason):
    (error,) = texts(pa.array([value], kind))
    assert isinstance(error, DataError)
    assert reason in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    "kind",
    [
        pa.bool_(),
        pa.timestamp("us"),
        pa.date32(),
        pa.struct([("text", pa.string())]),
        pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
        pa.list_(pa.list_(pa.string())),
        pa.map_(pa.string(), pa.string()),
    ],
    ids=str,
)
def test_types_that_are_neither_text_nor_number_are_refused_with_the_remedy(kind):
    with pytest.raises(DataError, match=r"answer is .*write it as text"):
        TextColumn.of(pa.schema([("answer", kind)]), "answer")


def test_numbers_of_a_class_label_are_read_as_its_names():
    label = {"_type": "ClassLabel", "names": ["no", "yes"]}
    found = texts(pa.array([1, 0, -1, 2], pa.int64()), features(answer=label))
    assert found[:2] == ["yes", "no"]
    assert [str(error) for error in found[2:]] == [
        "answer is label -1, which has no name",
        "answer is label 2, which has no name",
    ]
    assert texts(pa.array([[1]]), features(answer={"_type": "List", "feature": label})) == ["yes"]


@pytest.mark.parametrize("metadata", ["{", "[]", "{}", '{"info": {"features": {"answer": null}}}', "[" * 100_000])
def test_features_that_say_nothing_leave_numbers_as_they_are(metadata):
    assert texts(pa.array([1]), {"huggingface": metadata}) == ["1"]
