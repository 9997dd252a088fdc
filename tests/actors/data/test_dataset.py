import hashlib
import json
import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.data.dataset import Dataset
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


@pytest.mark.parametrize(
    ("notes", "needs", "region"),
    [
        ({"needs": "region", "region": [0.5, 0, 0.75, 1]}, "region", (0.5, 0, 0.75, 1)),
        ({"needs": "quarter", "region": None}, "quarter", None),
        ({"needs": "full"}, "full", None),
        ({"needs": "everything"}, None, None),
        ({"needs": "region", "region": [0.5, 0.5, 0.5, 1.0]}, "region", None),
        ({"needs": "region", "region": [0.5, 0.5, 1.5, 1.0]}, "region", None),
        ({"needs": "region", "region": [0.0, 0.0, 1.0]}, "region", None),
        ({"needs": "region", "region": [0.0, 0.0, float("nan"), 1.0]}, "region", None),
        ({"use_tool": True}, None, None),
    ],
)
def test_a_set_may_say_what_is_needed_and_where(tmp_path, notes, needs, region):
    write_rows(tmp_path / "a.parquet", [a_row(info=json.dumps(notes))])
    (sample,) = read_all(tmp_path / "a.parquet")
    assert (sample.needs, sample.region) == (needs, region)


def test_the_mark_of_a_picture_is_taken_out_of_the_question(tmp_path):
    write_rows(tmp_path / "a.parquet", [a_row(problem="<image>\nHow many? ", original_answer=7)])
    (sample,) = read_all(tmp_path / "a.parquet")
    assert (sample.question, sample.answer) == ("How many?", "7")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": [PICTURE, PICTURE]}, "images has 2 pictures"),
        ({"images": []}, "images has 0 pictures"),
        ({"images": [b""]}, "images holds no picture"),
        ({"images": None}, "images holds no picture"),
        ({"problem": "  "}, "problem is empty"),
        ({"problem": "<image>\n"}, "problem has no text besides marks"),
        ({"problem": "<image>\u200b<image>"}, "problem has no text besides marks"),
        ({"problem": "<|vision_start|><|image_pad|><|vision_end|>"}, "problem has no text besides marks"),
        ({"problem": "<im<|image_pad|>age> <|a<|b|>|>"}, "problem has no text besides marks"),
        ({"problem": "<|a" * 5000 + "|>" * 5000}, "problem has no text besides marks"),
        ({"original_answer": None}, "original_answer is null"),
        ({"original_answer": ""}, "original_answer is empty"),
    ],
)
def test_an_unusable_row_gives_its_reason_and_spoils_no_other(tmp_path, changes, reason):
    write_rows(tmp_path / "a.parquet", [a_row(), a_row(**changes), a_row()])
    dataset = Dataset.open(str(tmp_path / "a.parquet"))
    with pytest.raises(DataError, match=f"^row 1 of .*a.parquet: {reason}"):
        dataset.read(ref(1))
    assert [dataset.read(ref(row)).answer for row in (0, 2)] == ["this", "this"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"original_answer": True}, "original_answer is bool: write it as text"),
        ({"original_answer": None}, "original_answer has no value in any row: fill it"),
        ({"images": []}, "images has no value in any row: fill it"),
        ({"images": [[1, 2, 3]]}, "images is list.*store each picture as the bytes of a PNG or JPEG file"),
        ({"images": ["gone.png"]}, "row 0 of .*images names 'gone.png', which is no file .*embed the pictures"),
        ({"images": ["https://x.org/a.png"]}, "row 0 of .*nothing is downloaded: embed the pictures"),
        ({"images": [{"bytes": None, "path": "/etc/passwd"}]}, "row 0 of .*outside .*embed the pictures"),
    ],
)
def test_what_the_schema_or_the_first_rows_show_is_refused_when_the_set_is_opened(tmp_path, changes, reason):
    write_rows(tmp_path / "a.parquet", [a_row(**changes)] * 3)
    save_to_disk(tmp_path / "arrow", [pq.read_table(tmp_path / "a.parquet")])
    for name in ("a.parquet", "arrow"):
        with pytest.raises(DataError, match=reason) as caught:
            Dataset.open(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_some_pictures_that_are_not_there_do_not_close_a_set(tmp_path):
    (tmp_path / "a.png").write_bytes(PICTURE)
    write_rows(tmp_path / "a.parquet", [a_row(images="gone.png"), a_row(images="a.png")])
    dataset = Dataset.open(str(tmp_path / "a.parquet"))
    assert dataset.read(ref(1)).image == PICTURE
    with pytest.raises(DataError, match=r"row 0 of .*gone\.png"):
        dataset.read(ref(0))


@pytest.mark.parametrize("doubled", ["problem", "images", "original_answer", "doc_id"])
def test_a_doubled_column_is_refused(tmp_path, doubled):
    table = pa.Table.from_pylist([a_row(doc_id="0")])
    table = table.append_column(doubled, table.column(doubled))
    pq.write_table(table, tmp_path / "a.parquet")
    save_to_disk(tmp_path / "arrow", [table])
    for name in ("a.parquet", "arrow"):
        with pytest.raises(DataError, match=f"{name} has the column {doubled} twice: rename or drop one"):
            Dataset.open(str(tmp_path / name))


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (a_row(), a_row(images=["a.png"]), r"images is list.*binary.* in 0.parquet and list.*string.* in 1.parquet"),
        (a_row(), a_row(images=PICTURE), r"images is list.* in 0.parquet and binary in 1.parquet"),
        (a_row(), a_row(original_answer=["this"]), r"answer is string in 0.parquet and list.* in 1.parquet"),
        (
            a_row(),
            {"problem": "?", "images": [PICTURE], "answer": "this"},
            "0.parquet has .*; 1.parquet has .*same col",
        ),
        (a_row(), a_row(original_answer=True), "in 1.parquet, original_answer is bool"),
    ],
)
def test_files_that_are_read_in_different_ways_are_refused_with_both(tmp_path, first, second, reason):
    for number, row in enumerate((first, second)):
        write_rows(tmp_path / f"{number}.parquet", [row])
    with pytest.raises(DataError, match=reason):
        Dataset.open(str(tmp_path))


def test_files_may_differ_in_kinds_of_numbers_and_be_empty_or_without_an_answer(tmp_path):
    write_rows(tmp_path / "0.parquet", [a_row(original_answer=2020)])
    write_rows(tmp_path / "1.parquet", [a_row(original_answer=2020.0)])
    write_rows(tmp_path / "2.parquet", [a_row(original_answer=None)])
    pq.write_table(pa.table({"problem": pa.array([], pa.null())}), tmp_path / "3.parquet")
    write_rows(tmp_path / "4.parquet", [a_row(original_answer="2020")])
    dataset = Dataset.open(str(tmp_path))
    assert len(dataset) == 4
    assert [dataset.read(ref(row)).answer for row in (0, 1, 3)] == ["2020"] * 3
    with pytest.raises(DataError, match=r"row 2 .*original_answer is null"):
        dataset.read(ref(2))


@pytest.mark.parametrize("kind", ["string", "large_string"])
@pytest.mark.parametrize("name", ["a.parquet", "arrow"])
def test_a_text_that_is_not_utf_8_is_one_skipped_row(tmp_path, name, kind):
    texts = pa.array([b"fine", b"\xff\xfe"]).view(pa.string()).cast(kind)
    table = pa.Table.from_pylist([a_row(), a_row()]).set_column(0, "problem", texts)
    pq.write_table(table, tmp_path / "a.parquet")
    save_to_disk(tmp_path / "arrow", [table])
    dataset = Dataset.open(str(tmp_path / name))
    assert dataset.read(ref(0)).question == "fine"
    with pytest.raises(DataError, match=r"row 1 of .*utf-8"):
        dataset.read(ref(1))


def test_pictures_beside_the_set_are_found_from_any_working_directory(tmp_path, monkeypatch):
    (tmp_path / "set" / "images").mkdir(parents=True)
    (tmp_path / "set" / "images" / "0.png").write_bytes(PICTURE)
    rows = [a_row(images=[{"bytes": None, "path": "images/0.png"}])]
    write_rows(tmp_path / "set" / "a.parquet", rows)
    save_to_disk(tmp_path / "arrow", [pa.Table.from_pylist(rows)])
    (tmp_path / "set" / "images").rename(tmp_path / "arrow" / "images")
    (tmp_path / "set" / "images").mkdir()
    (tmp_path / "set" / "images" / "0.png").write_bytes(PICTURE)
    monkeypatch.chdir(tmp_path)
    for path in ("set", "set/a.parquet", "set/*.parquet", str(tmp_path / "arrow")):
        assert [sample.image for sample in read_all(path)] == [PICTURE], path


def test_identity_is_what_it_was(tmp_path):
    """A run that was started before can be resumed: names, sizes, rows and columns are all that counts."""
    save_to_disk(tmp_path / "arrow", [pa.table({"problem": ["?"], "images": [PICTURE], "answer": ["this"]})])
    (file,) = (tmp_path / "arrow").glob("*.arrow")
    schema = ["problem: string", "images: binary", "answer: string"]
    described = json.dumps([[(file.name, file.stat().st_size)], 1, schema])
    expected = hashlib.sha256(described.encode()).hexdigest()[:16]
    assert Dataset.open(str(tmp_path / "arrow")).identity() == expected


def test_a_missing_default_set_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(DataError, match="generate it with `visionthink data make`"):
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
