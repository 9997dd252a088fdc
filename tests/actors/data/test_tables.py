"""How much of a file is in memory, and how often it is decoded."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.data import tables
from actors.data.tables import open_rows
from actors.errors import DataError

HUB = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
COLUMNS = ("problem", "images")


def write_pictures(path, *, num_rows, num_bytes, **options):
    """Rows in one row group, each with a picture of its own."""
    rng = np.random.default_rng(0)
    pictures = [[{"bytes": rng.bytes(num_bytes), "path": None}] for _ in range(num_rows)]
    table = pa.table({"problem": [f"{row}?" for row in range(num_rows)], "images": pa.array(pictures, HUB)})
    pq.write_table(table, path, row_group_size=num_rows, **options)
    return pictures


@pytest.fixture
def decoded(monkeypatch):
    """Number of rows of each batch that was decoded."""
    num_rows = []
    iter_batches = pq.ParquetFile.iter_batches

    def counted(self, *args, **kwargs):
        for batch in iter_batches(self, *args, **kwargs):
            num_rows.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    return num_rows


def test_a_large_row_group_is_read_in_parts(tmp_path, monkeypatch, decoded):
    pictures = write_pictures(tmp_path / "a.parquet", num_rows=60, num_bytes=10_000)
    monkeypatch.setattr(tables, "MAX_CACHED_BYTES", 100_000)
    monkeypatch.setattr(tables, "MAX_BATCH_BYTES", 30_000)
    rows = open_rows(str(tmp_path / "a.parquet"))
    for row in (0, 59, 30, 31, 1, 58, *range(60)):
        assert rows.read(row, COLUMNS) == (0, {"problem": f"{row}?", "images": pictures[row]})
    assert max(decoded) <= 3


def test_parts_of_a_large_row_group_stay_within_the_bound(tmp_path, monkeypatch):
    write_pictures(tmp_path / "a.parquet", num_rows=60, num_bytes=10_000)
    monkeypatch.setattr(tables, "MAX_CACHED_BYTES", 100_000)
    monkeypatch.setattr(tables, "MAX_BATCH_BYTES", 30_000)
    parts = []
    cached = tables.TableCache.get
    monkeypatch.setattr(tables.TableCache, "get", lambda *args: parts.append(cached(*args)) or parts[-1])
    rows = open_rows(str(tmp_path / "a.parquet"))
    for row in (59, 0, 30):
        rows.read(row, COLUMNS)
        assert row in parts[-1]
        assert parts[-1].num_bytes <= 100_000


def test_neighbours_in_a_part_are_decoded_once(tmp_path, monkeypatch, decoded):
    write_pictures(tmp_path / "a.parquet", num_rows=60, num_bytes=10_000)
    monkeypatch.setattr(tables, "MAX_CACHED_BYTES", 100_000)
    rows = open_rows(str(tmp_path / "a.parquet"))
    rows.read(0, COLUMNS)
    once = len(decoded)
    for row in range(3):
        rows.read(row, COLUMNS)
    assert len(decoded) == once


def test_a_picture_larger_than_the_bound_is_read_all_the_same(tmp_path, monkeypatch):
    pictures = write_pictures(tmp_path / "a.parquet", num_rows=3, num_bytes=10_000)
    monkeypatch.setattr(tables, "MAX_CACHED_BYTES", 5_000)
    rows = open_rows(str(tmp_path / "a.parquet"))
    assert [rows.read(row, COLUMNS)[1]["images"] for row in (2, 0, 1)] == [pictures[row] for row in (2, 0, 1)]


def test_values_stored_once_are_decoded_a_bounded_number_at_a_time(tmp_path, monkeypatch, decoded):
    """A dictionary holds what repeats once, so that the metadata tell of a few bytes a row."""
    picture = [{"bytes": b"x" * 100_000, "path": None}]
    table = pa.table({"problem": ["?"] * 2000, "images": pa.array([picture] * 2000, HUB)})
    pq.write_table(table, tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 500_000
    monkeypatch.setattr(tables, "MAX_CACHED_BYTES", 30_000_000)
    rows = open_rows(str(tmp_path / "a.parquet"))
    assert rows.read(1999, COLUMNS)[1]["images"] == picture
    assert max(decoded) <= tables.MAX_BATCH_ROWS


def test_all_files_of_a_folder_share_one_budget_of_kept_row_groups(tmp_path, monkeypatch, decoded):
    for number in range(4):
        write_pictures(tmp_path / f"{number}.parquet", num_rows=4, num_bytes=10_000)
    monkeypatch.setattr(tables, "MAX_CACHED_BYTES", 100_000)  # two files of 40 KB, not three
    rows = open_rows(str(tmp_path))
    for row, num_reads in ((0, 1), (4, 2), (1, 2), (5, 2), (2, 2), (8, 3), (3, 3), (6, 4)):
        assert rows.read(row, COLUMNS)[1]["problem"] == f"{row % 4}?"
        assert len(decoded) == num_reads, row


def test_an_arrow_file_is_opened_by_its_name(tmp_path):
    table = pa.table({"problem": ["a", "b"]})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    assert open_rows(str(tmp_path / "a.arrow")).read(1, ["problem"]) == (0, {"problem": "b"})


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_pointer_of_git_lfs_names_the_command_that_fetches_the_file(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(DataError, match=f"{name} is a Git LFS pointer.*git lfs pull"):
        open_rows(str(tmp_path / name))


def test_threads_read_what_one_would(tmp_path, monkeypatch):
    pictures = write_pictures(tmp_path / "a.parquet", num_rows=60, num_bytes=10_000)
    monkeypatch.setattr(tables, "MAX_CACHED_BYTES", 100_000)
    rows = open_rows(str(tmp_path / "a.parquet"))
    wanted = [row * 37 % 60 for row in range(240)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda row: rows.read(row, COLUMNS)[1]["images"], wanted))
    assert found == [pictures[row] for row in wanted]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.arrow", "rows.parquet", "picture.png"])
def test_a_file_of_another_format_is_refused_in_one_line_with_the_remedy(tmp_path, name):
    (tmp_path / name).write_text('{"problem": "what?"}\n{"problem": "why?"}\n')
    with pytest.raises(DataError, match=rf"{name} cannot be opened: .*: write it as Parquet, or download") as caught:
        open_rows(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_path_that_the_system_refuses_is_one_line():
    with pytest.raises(DataError, match=r"cannot be read: .*; give a readable file or folder"):
        open_rows("x" * 300)
