"""Each benchmark is read from small files of its published layout."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.data.benchmarks.dataset import BenchmarkSet, find_suite, open_samples
from actors.data.benchmarks.layouts import LAYOUTS
from actors.errors import DataError
from tests.actors.data.benchmarks.layouts import PLACES, ROWS, picture, write_suite


def opened(name, folder):
    return BenchmarkSet.open(name, find_suite(name, folder))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_row_of_every_benchmark_is_found_and_read(name, tmp_path):
    for other in LAYOUTS:
        write_suite(other, tmp_path)
    rows = opened(name, tmp_path)
    assert len(rows) == len(ROWS[name])
    for ref in rows.refs:
        sample, row = open_samples(ref.dataset).read(ref), rows.row(ref.row)
        assert sample.image == picture()
        assert (sample.question, sample.answer) == (row.question, row.reference)
        assert row.references
        assert sample.ref.uid == f"{name}-{ref.row}"


def test_what_a_metric_needs_is_there(tmp_path):
    for name in LAYOUTS:
        write_suite(name, tmp_path)
    rows = {name: opened(name, tmp_path).row(0) for name in LAYOUTS}
    assert rows["chartqa"].categories == ("human",)
    assert (rows["ocrbench"].answer_type, rows["ocrbench"].references) == ("IIIT5K", ("CENTRE",))
    assert rows["docvqa"].references == ("1/8/93", "January 8")
    assert rows["docvqa"].reference == '["1/8/93", "January 8"]'
    assert rows["mme"].unit == opened("mme", tmp_path).row(1).unit != ""
    assert rows["mmvet"].categories == ("ocr", "math")
    assert rows["pope"].question.endswith("yes or no.")
    assert rows["mathvista"].choices == ("3/11", "8/11")
    assert rows["mathvista"].question.startswith("Hint")
    assert opened("mathvista", tmp_path).row(1).precision == 1
    assert rows["mathverse"].judged_question == "Find x. A:1"
    assert rows["mathverse"].question.startswith("Directly")


def test_the_originals_of_chartqa_and_mmvet_are_read_as_well(tmp_path):
    chart = [{"query": "How many?", "label": ["14"], "human_or_machine": at} for at in (0, 1)]
    write_suite("chartqa", tmp_path, chart)
    rows = opened("chartqa", tmp_path)
    assert [rows.row(at).categories for at in (0, 1)] == [("human",), ("augmented",)]
    assert rows.row(0).references == ("14",)
    vet = {"question": "What?", "answer": "a cat", "capability": ["rec", "know"]}
    write_suite("mmvet", tmp_path, [vet])
    assert opened("mmvet", tmp_path).row(0).categories == ("rec", "know")


def test_a_benchmark_alone_in_its_folder_is_found(tmp_path):
    write_suite("chartqa", tmp_path)
    assert find_suite("chartqa", tmp_path / "ChartQA") == find_suite("chartqa", tmp_path)
    named = tmp_path / "sets" / "lmms-lab"
    write_suite("chartqa", named)
    assert find_suite("chartqa", tmp_path / "sets").startswith(str(named))


def test_a_set_that_is_not_there_is_told_with_the_way_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"hf download lmms-lab/POPE .*--local-dir"):
        find_suite("pope", tmp_path / "nowhere")


def test_a_split_without_answers_and_another_set_are_refused_with_the_column(tmp_path):
    write_suite("docvqa", tmp_path, [{**ROWS["docvqa"][0], "answers": None}])
    with pytest.raises(DataError, match="answers has no value"):
        opened("docvqa", tmp_path).row(0)
    file = tmp_path / PLACES["mme"]
    file.parent.mkdir(parents=True)
    pq.write_table(pa.table({"question": ["?"]}), file)
    with pytest.raises(DataError, match="has no column image"):
        opened("mme", tmp_path)


def test_a_row_without_its_picture_is_skipped_alone(tmp_path):
    file = write_suite("pope", tmp_path)
    row = pq.read_table(file).to_pylist()[0]
    pq.write_table(pa.Table.from_pylist([row, {**row, "image": None}]), file)
    rows = opened("pope", tmp_path)
    assert rows.read(rows.refs[0]).image
    with pytest.raises(DataError, match="row 1"):
        rows.read(rows.refs[1])


def test_a_path_with_a_colon_that_names_no_benchmark_is_a_data_set(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        open_samples(str(tmp_path / "a:b"))
