import json

import pytest

from actors.data.files import find_files
from actors.errors import DataError


def lay_out(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(path):
    return [file.name for file in find_files(str(path)).files]


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        ("train-00000-of-00002-0123456789abcdef.parquet", "validation-00000-of-00001-fedcba9876543210.parquet"),
        ("default-train-00000-of-00001.parquet", "default-test-00000-of-00001.parquet"),
        ("testmini-00000-of-00001.parquet", "single-00000-of-00001.parquet"),
        ("train-00000-of-00001.parquet", "train-00000-of-00002.parquet"),
        ("train.parquet", "heldout.parquet"),
        ("train.parquet", "val.parquet"),
        ("my_set.training.parquet", "my_set.dev.parquet"),
        ("train_0.parquet", "train_1.parquet", "eval0.parquet"),
        ("train.parquet", "part-0.parquet"),
    ],
    ids=" ".join,
)
def test_files_of_several_splits_in_one_folder_are_never_one_set(tmp_path, names):
    lay_out(tmp_path, *names)
    with pytest.raises(
        DataError, match=r"holds files of several splits .*: give one file or a pattern, as in"
    ) as caught:
        find_files(str(tmp_path))
    remedy = str(caught.value).rpartition("as in ")[2]
    assert set(found(remedy)) < set(names)


@pytest.mark.parametrize(
    "names",
    [
        ("0000.parquet", "0001.parquet"),
        ("a.parquet", "b.parquet"),
        ("part-00000-0a1b-c000.snappy.parquet", "part-00001-0a1b-c000.snappy.parquet"),
        ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"),
        ("train-00000-of-00002-0123456789abcdef.parquet", "train-00001-of-00002-fedcba9876543210.parquet"),
        ("train_0.parquet", "train_1.parquet"),
        ("contrast-a.parquet", "latest-b.parquet"),
    ],
    ids=" ".join,
)
def test_parts_of_one_set_are_read_in_the_order_of_their_names(tmp_path, names):
    lay_out(tmp_path, *reversed(names), ".hidden-test.parquet", "README.md")
    assert found(tmp_path) == list(names)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("data/train-*", ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]),
        ("data/train-0000[1]-*", ["train-00001-of-00002.parquet"]),
        ("*/test-*.parquet", ["test-00000-of-00001.parquet"]),
        ("**/t?st-*", ["test-00000-of-00001.parquet"]),
        ("year=*/*.parquet", ["0.parquet", "0.parquet"]),
    ],
)
def test_a_pattern_names_files(tmp_path, pattern, expected):
    lay_out(tmp_path, *(f"data/train-0000{shard}-of-00002.parquet" for shard in (0, 1)), "data/train-notes.txt")
    lay_out(tmp_path, "data/test-00000-of-00001.parquet", "year=2020/0.parquet", "year=2021/0.parquet")
    files = find_files(str(tmp_path / pattern))
    assert [file.name for file in files.files] == expected
    assert files.folder == tmp_path / "data" if pattern.startswith("data/") else files.folder == tmp_path


@pytest.mark.parametrize("pattern", ["data/*", "**/*.parquet", "folders/*/*.parquet"])
def test_a_pattern_over_several_splits_is_refused(tmp_path, pattern):
    lay_out(tmp_path, "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet")
    lay_out(tmp_path, "folders/train/0000.parquet", "folders/test/0000.parquet")
    with pytest.raises(DataError, match="several splits"):
        find_files(str(tmp_path / pattern))


def test_a_folder_of_several_sources_is_one_set_where_a_pattern_says_so(tmp_path):
    names = ["chartqa-00000-of-00001.parquet", "docvqa-00000-of-00001.parquet"]
    lay_out(tmp_path, *names)
    assert found(tmp_path / "*.parquet") == names


def test_a_name_with_brackets_is_a_name_before_it_is_a_pattern(tmp_path):
    lay_out(tmp_path, "set [1]/a.parquet")
    assert found(tmp_path / "set [1]") == found(tmp_path / "set [1]" / "a.parquet") == ["a.parquet"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["data/train-00000-of-00001.parquet"], "only in data: give one folder, as in {root}/data,"),
        (
            ["en/train/0.parquet", "en/test/0.parquet"],
            "only in en/test, en/train: give one folder, as in {root}/en/train,",
        ),
        (
            ["year=2020/0.parquet", "year=2021/0.parquet"],
            "all files that are one set by a pattern, as in '{root}/**/*.parq",
        ),
        (["train/state.json", "test/state.json"], "only in test, train: give one folder, as in {root}/train"),
        (["README.md"], "neither"),
        (
            ["dataset_dict.json", "train/a", "test/a"],
            "several splits (test, train): give one of them, as in {root}/train",
        ),
    ],
)
def test_a_folder_without_files_of_its_own_names_those_that_have_some(tmp_path, names, reason):
    lay_out(tmp_path, *names)
    for path in (str(tmp_path), f"{tmp_path}/"):
        with pytest.raises(DataError) as caught:
            find_files(path)
        assert reason.format(root=tmp_path) in str(caught.value)


@pytest.mark.parametrize("path", ["absent", "absent/train-*", "absent.parquet", "[x"])
def test_a_path_that_leads_to_nothing_is_refused(tmp_path, path):
    with pytest.raises(DataError, match=r"does not exist: give a|matches no "):
        find_files(str(tmp_path / path))


def test_arrow_folders_are_read_in_the_order_of_their_state(tmp_path):
    names = ["data-00001-of-00002.arrow", "data-00000-of-00002.arrow"]
    lay_out(tmp_path, *names, "dataset_info.json", "cache-0123.arrow")
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    assert found(tmp_path) == names


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "a/b.arrow", ".."])
def test_a_listed_file_outside_the_folder_is_refused(tmp_path, name):
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(DataError, match="plain file names"):
        find_files(str(tmp_path))


@pytest.mark.parametrize("state", ["{", "[]", "{}", '{"_data_files": [1]}', '{"_data_files": []}', "[" * 100_000])
def test_a_malformed_state_is_refused(tmp_path, state):
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(DataError, match=r"state\.json"):
        find_files(str(tmp_path))


def test_an_indirect_arrow_folder_is_refused(tmp_path):
    state = {"_data_files": [{"filename": "a.arrow"}], "_indices_data_files": [{"filename": "i.arrow"}]}
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match="flatten_indices"):
        find_files(str(tmp_path))
