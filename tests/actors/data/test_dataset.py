import json
import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.data.dataset import MIN_SKIPPED, CursorState, Dataset, PromptCursor, SkipLedger
from actors.data.shapes import write_split
from actors.episode import SampleRef
from actors.errors import DataError

PICTURE = b"bytes of a picture"


def ref(row: int) -> SampleRef:
    return SampleRef(dataset="d", row=row, uid=f"0-{row}")


def write_rows(path, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), path, **options)


def a_row(**changes):
    return {"problem": "what?", "images": [PICTURE], "original_answer": "this"} | changes


def save_to_disk(folder, tables, indices=None):
    """The layout of Hugging Face's `save_to_disk`, written by hand."""
    folder.mkdir()
    names = []
    for number, table in enumerate(tables):
        names.append(f"data-{number:05d}-of-{len(tables):05d}.arrow")
        with pa.OSFile(str(folder / names[-1]), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
    state = {"_data_files": [{"filename": name} for name in names], "_indices_data_files": indices}
    (folder / "state.json").write_text(json.dumps(state))


def read_all(path):
    dataset = Dataset.open(str(path))
    return [dataset.read(ref(row)) for row in range(len(dataset))]


def test_what_was_made_is_read_back(tmp_path):
    write_split(tmp_path / "train.parquet", num_rows=300, seed=0, split="train")
    samples = read_all(tmp_path / "train.parquet")
    written = pq.read_table(tmp_path / "train.parquet").to_pylist()
    assert len(samples) == 300
    for sample, row in zip(samples, written, strict=True):
        assert (sample.question, sample.answer) == (row["problem"], row["original_answer"])
        assert sample.image == row["images"][0]["bytes"]
        assert sample.needs_full is row["info"]["use_tool"]


def test_parquet_folders_and_arrow_folders_read_like_one_file(tmp_path):
    write_split(tmp_path / "all.parquet", num_rows=10, seed=0, split="train")
    table = pq.read_table(tmp_path / "all.parquet")
    (tmp_path / "parts").mkdir()
    pq.write_table(table.slice(0, 4), tmp_path / "parts" / "a.parquet", row_group_size=3)
    pq.write_table(table.slice(4), tmp_path / "parts" / "b.parquet")
    save_to_disk(tmp_path / "arrow", [table.slice(0, 7), table.slice(7)])
    expected = read_all(tmp_path / "all.parquet")
    assert read_all(tmp_path / "parts") == expected
    assert read_all(tmp_path / "arrow") == expected


@pytest.mark.parametrize(
    "image",
    [PICTURE, {"bytes": PICTURE, "path": None}, [PICTURE], [{"bytes": PICTURE, "path": "a.png"}]],
    ids=["bytes", "struct", "list of bytes", "list of structs"],
)
@pytest.mark.parametrize("column", ["image", "images"])
def test_every_form_of_a_picture_is_read(tmp_path, column, image):
    write_rows(tmp_path / "a.parquet", [{"problem": "what?", column: image, "answer": "this"}])
    (sample,) = read_all(tmp_path / "a.parquet")
    assert (sample.image, sample.answer, sample.needs_full) == (PICTURE, "this", None)


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        ({"use_tool": True, "tgt_width": 1}, True),
        ('{"use_tool": false}', False),
        ("not json", None),
        ('["use_tool"]', None),
        ('{"use_tool": "yes"}', None),
        ("[" * 100_000, None),
        (None, None),
    ],
)
def test_use_tool_says_whether_the_full_view_is_needed(tmp_path, notes, expected):
    write_rows(tmp_path / "a.parquet", [a_row(info=notes)])
    assert read_all(tmp_path / "a.parquet")[0].needs_full is expected


def test_the_mark_of_a_picture_is_taken_out_of_the_question(tmp_path):
    write_rows(tmp_path / "a.parquet", [a_row(problem="<image>\nHow many? ", original_answer=7)])
    (sample,) = read_all(tmp_path / "a.parquet")
    assert (sample.question, sample.answer) == ("How many?", "7")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": [PICTURE, PICTURE]}, "2 pictures"),
        ({"images": []}, "0 pictures"),
        ({"images": [{"bytes": None, "path": "/etc/passwd"}]}, "embed the pictures"),
        ({"images": [b""]}, "holds no picture"),
        ({"images": ["text"]}, "holds no picture"),
        ({"problem": "  "}, "problem is empty"),
        ({"original_answer": None}, "NoneType"),
        ({"original_answer": True}, "bool"),
    ],
)
def test_an_unusable_row_gives_its_reason(tmp_path, changes, reason):
    write_rows(tmp_path / "a.parquet", [a_row(**changes)])
    with pytest.raises(DataError, match=f"row 0 of .*{reason}"):
        read_all(tmp_path / "a.parquet")


def test_an_unusable_row_spoils_no_other(tmp_path):
    write_rows(tmp_path / "a.parquet", [a_row(), a_row(problem=None), a_row(original_answer="日本 🐈")])
    dataset = Dataset.open(str(tmp_path / "a.parquet"))
    assert [dataset.read(ref(row)).answer for row in (2, 0)] == ["日本 🐈", "this"]
    with pytest.raises(DataError, match="row 1 of"):
        dataset.read(ref(1))


def test_a_missing_default_set_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(DataError, match="make it with `visionthink data make`"):
        Dataset.open(str(tmp_path / "data" / "shapes" / "train.parquet"))
    with pytest.raises(DataError) as caught:
        Dataset.open(str(tmp_path / "mine.parquet"))
    assert "data make" not in str(caught.value)


def test_a_missing_column_names_those_found_and_wanted(tmp_path):
    write_rows(tmp_path / "a.parquet", [{"problem": "what?", "picture": PICTURE, "answer": "this"}])
    with pytest.raises(DataError, match="no column images or image: its columns are problem, picture, answer"):
        Dataset.open(str(tmp_path / "a.parquet"))


def test_a_row_beyond_the_end_is_an_error(tmp_path):
    write_rows(tmp_path / "a.parquet", [a_row()])
    for row in (1, -1):
        with pytest.raises(DataError, match="there is no row"):
            Dataset.open(str(tmp_path / "a.parquet")).read(ref(row))


def test_what_is_no_data_set_is_refused(tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing PAR1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dict").mkdir()
    (tmp_path / "dict" / "dataset_dict.json").write_text("{}")
    (tmp_path / "dict" / "train").mkdir()
    write_rows(tmp_path / "rowless.parquet", [a_row()])
    pq.write_table(pq.read_table(tmp_path / "rowless.parquet").slice(0, 0), tmp_path / "rowless.parquet")
    for name, reason in {
        "absent": "does not exist",
        "broken.parquet": "cannot be opened",
        "empty": "neither",
        "dict": "dict/train",
        "rowless.parquet": "no rows",
    }.items():
        with pytest.raises(DataError, match=reason):
            Dataset.open(str(tmp_path / name))


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "a/b.arrow", ".."])
def test_a_listed_file_outside_the_folder_is_refused(tmp_path, name):
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(DataError, match="plain file names"):
        Dataset.open(str(tmp_path))


@pytest.mark.parametrize("state", ["{", "[]", "{}", '{"_data_files": [1]}', '{"_data_files": []}'])
def test_a_malformed_state_is_refused(tmp_path, state):
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(DataError, match=r"state\.json"):
        Dataset.open(str(tmp_path))


def test_an_indirect_arrow_folder_is_refused(tmp_path):
    save_to_disk(tmp_path / "d", [pa.Table.from_pylist([a_row()])], indices=[{"filename": "i.arrow"}])
    with pytest.raises(DataError, match="flatten_indices"):
        Dataset.open(str(tmp_path / "d"))


def test_a_flipped_byte_fails_its_checksum(tmp_path):
    path = tmp_path / "a.parquet"
    picture = np.random.default_rng(0).bytes(5000)
    write_rows(path, [a_row(images=[picture])], write_page_checksum=True, compression="none", use_dictionary=False)
    stored = bytearray(path.read_bytes())
    stored[stored.index(picture) + 2500] ^= 1
    path.write_bytes(stored)
    with pytest.raises(DataError, match=r"row 0 .* cannot be read"):
        read_all(path)


def test_damage_in_one_row_group_leaves_the_others_readable(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [a_row(problem=f"question {row}?") for row in range(6)]
    write_rows(path, rows, write_page_checksum=True, compression="none", row_group_size=2)
    path.write_bytes(path.read_bytes().replace(b"question 3?", b"question 8?"))
    dataset = Dataset.open(str(path))
    for row in (2, 3):
        with pytest.raises(DataError, match=rf"row {row} of .* cannot be read"):
            dataset.read(ref(row))
    assert [dataset.read(ref(row)).question for row in (0, 1, 4, 5)] == [rows[row]["problem"] for row in (0, 1, 4, 5)]


def test_whatever_bit_of_a_parquet_file_flips_a_row_reads_as_written_or_not_at_all(tmp_path):
    rows = [a_row(problem=f"question {row}?", images=[b"picture %d" % row * 20]) for row in range(6)]
    write_rows(tmp_path / "a.parquet", rows, write_page_checksum=True, compression="zstd", row_group_size=4)
    intact = (tmp_path / "a.parquet").read_bytes()
    rng, num_refused = random.Random(0), 0
    for attempt in range(300):
        position, path = rng.randrange(len(intact)), tmp_path / f"{attempt}.parquet"
        flipped = bytes([intact[position] ^ 1 << rng.randrange(8)])
        path.write_bytes(intact[:position] + flipped + intact[position + 1 :])
        try:
            samples = read_all(path)
        except DataError:
            num_refused += 1
        else:
            read = [(sample.question, sample.answer, [sample.image]) for sample in samples]
            assert read == [(row["problem"], row["original_answer"], row["images"]) for row in rows]
    assert 30 < num_refused < 300


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95])
def test_a_truncated_file_is_refused_when_it_is_opened(tmp_path, share):
    table = pa.Table.from_pylist([a_row() for _ in range(6)])
    pq.write_table(table, tmp_path / "a.parquet")
    save_to_disk(tmp_path / "d", [table])
    (arrow,) = (tmp_path / "d").glob("*.arrow")
    for opened, file in ((tmp_path / "a.parquet", tmp_path / "a.parquet"), (tmp_path / "d", arrow)):
        whole = file.read_bytes()
        file.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(DataError, match=f"{file.name} cannot be opened"):
            Dataset.open(str(opened))


def test_identity_changes_with_the_files_and_not_with_their_folder(tmp_path):
    write_split(tmp_path / "a.parquet", num_rows=5, seed=0, split="train")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(tmp_path / "a.parquet", tmp_path / "elsewhere" / "a.parquet")
    write_split(tmp_path / "elsewhere" / "b.parquet", num_rows=5, seed=0, split="train")
    same, moved = Dataset.open(str(tmp_path / "a.parquet")), Dataset.open(str(tmp_path / "elsewhere" / "a.parquet"))
    assert same.identity() == moved.identity()
    assert Dataset.open(str(tmp_path / "elsewhere")).identity() != same.identity()


@given(num_rows=st.integers(1, 40), seed=st.integers(0, 2**31), num_epochs=st.integers(1, 3))
def test_every_epoch_visits_each_row_once(num_rows, seed, num_epochs):
    cursor = PromptCursor(dataset="d", num_rows=num_rows, seed=seed)
    for epoch in range(num_epochs):
        refs = cursor.take(num_rows)
        assert sorted(ref.row for ref in refs) == list(range(num_rows))
        assert {ref.uid for ref in refs} == {f"{epoch}-{row}" for row in range(num_rows)}
    assert cursor.num_taken == num_epochs * num_rows


@given(num_rows=st.integers(1, 30), taken=st.integers(0, 100), seed=st.integers(0, 1000))
def test_a_restored_cursor_goes_on_identically(num_rows, taken, seed):
    cursor = PromptCursor(dataset="d", num_rows=num_rows, seed=seed)
    cursor.take(taken)
    resumed = PromptCursor(dataset="d", num_rows=num_rows, seed=seed)
    resumed.restore(cursor.state())
    assert resumed.take(2 * num_rows + 3) == cursor.take(2 * num_rows + 3)
    assert resumed.state() == cursor.state()


def test_seeds_and_epochs_draw_in_different_orders():
    cursor = PromptCursor(dataset="d", num_rows=100, seed=0)
    first, second = ([ref.row for ref in cursor.take(100)] for _ in range(2))
    other = [ref.row for ref in PromptCursor(dataset="d", num_rows=100, seed=1).take(100)]
    assert first != second
    assert first != other


@pytest.mark.parametrize("state", [{"epoch": -1, "position": 0}, {"epoch": 0, "position": 6}])
def test_a_state_of_another_data_set_is_refused(state):
    with pytest.raises(ValueError, match="cannot be restored over 5 rows"):
        PromptCursor(dataset="d", num_rows=5, seed=0).restore(CursorState(seed=0, **state))


def test_a_state_of_another_seed_is_refused_and_changes_nothing():
    cursor = PromptCursor(dataset="d", num_rows=5, seed=0)
    cursor.take(2)
    with pytest.raises(ValueError, match=r"cannot be restored under run\.seed=0: resume with the seed it had"):
        cursor.restore(CursorState(seed=1, epoch=0, position=0))
    assert cursor.take(3) == PromptCursor(dataset="d", num_rows=5, seed=0).take(5)[2:]


def test_an_epoch_is_shuffled_once_however_often_rows_are_taken(monkeypatch):
    epochs = []
    default_rng = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: epochs.append(seed[1]) or default_rng(seed))
    cursor = PromptCursor(dataset="d", num_rows=10, seed=0)
    for _ in range(25):
        cursor.take(1)
    assert epochs == [0, 1, 2]


def test_a_cursor_needs_rows():
    with pytest.raises(ValueError, match="num_rows=0"):
        PromptCursor(dataset="d", num_rows=0, seed=0)


def ledger_after(*, num_usable, max_skipped_fraction):
    ledger = SkipLedger(max_skipped_fraction=max_skipped_fraction)
    for _ in range(num_usable):
        ledger.count_read()
    return ledger


def test_a_few_unusable_rows_are_named_and_too_many_stop_the_run():
    ledger = ledger_after(num_usable=989, max_skipped_fraction=0.01)
    for row in range(MIN_SKIPPED - 1):
        ledger.add(ref(row), "broken")
    assert ledger.skipped[3] == (ref(3), "broken")
    with pytest.raises(DataError, match=r"10 of the 999 rows of d .*max_skipped_fraction=0\.01") as caught:
        ledger.add(ref(9), "row 9 of d: worse")
    assert str(caught.value).endswith("the last ones: row 7: broken; row 8: broken; row 9 of d: worse")


def test_skipped_rows_within_the_share_are_borne():
    ledger = ledger_after(num_usable=2970, max_skipped_fraction=0.01)
    for row in range(30):
        ledger.add(ref(row), "broken")
    assert (len(ledger.skipped), ledger.num_read) == (30, 3000)
    with pytest.raises(DataError, match="31 of the 3001 rows"):
        ledger.add(ref(30), "broken")


def test_whatever_bit_of_an_arrow_file_flips_reading_ends_in_samples_or_data_errors(tmp_path):
    table = pa.Table.from_pylist([a_row(problem=f"question {row}?") for row in range(6)])
    num_refused = 0
    rng = random.Random(0)
    for attempt in range(300):
        save_to_disk(tmp_path / str(attempt), [table])
        (file,) = (tmp_path / str(attempt)).glob("*.arrow")
        stored = bytearray(file.read_bytes())
        stored[rng.randrange(len(stored))] ^= 1 << rng.randrange(8)
        file.write_bytes(stored)
        try:
            read_all(tmp_path / str(attempt))
        except DataError:
            num_refused += 1
    assert 30 < num_refused < 300


def test_all_files_of_a_folder_share_one_budget_of_kept_row_groups(tmp_path, monkeypatch):
    for number in range(4):
        write_rows(tmp_path / f"{number}.parquet", [a_row(images=[bytes([number]) * 10_000]) for _ in range(4)])
    groups_read = []
    read_row_group = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, i, **kw: groups_read.append(i) or read_row_group(self, i, **kw)
    )
    monkeypatch.setattr("actors.data.tables.MAX_CACHED_BYTES", 100_000)  # two files of 40 KB, not three
    dataset = Dataset.open(str(tmp_path))
    for row, num_reads in ((0, 1), (4, 2), (1, 2), (5, 2), (2, 2), (8, 3), (3, 3), (6, 4)):
        assert dataset.read(ref(row)).image == bytes([row // 4]) * 10_000
        assert len(groups_read) == num_reads, row
