"""Names of the Hub, against a hub on localhost: pinned, offline, refused, broken off, and on other machines."""

import io
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from PIL import Image

from actors.data.dataset import Dataset
from actors.data.files import find_files
from actors.data.hub_files import choose_files
from actors.episode import SampleRef
from actors.errors import DataError
from actors.hub import HubName, download, local_copy, model_name, parse_name, pin, snapshot_of
from tests.fake_hub import fake_hub

MODEL = {
    "config.json": b"{}",
    "model.safetensors": b"w" * 5000,
    "run.py": b"evil",
    "pytorch_model.bin": b"pickle",
    "x/y.json": b"{}",
}


def picture() -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(encoded, "PNG")
    return encoded.getvalue()


def table(*answers: str, image: object = None) -> bytes:
    rows = {
        "problem": ["what?"] * len(answers),
        "images": [[image or {"bytes": picture(), "path": None}]] * len(answers),
        "original_answer": list(answers),
    }
    out = io.BytesIO()
    pq.write_table(pa.table(rows), out)
    return out.getvalue()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub, with an empty cache. Constants are read from the environment when the library is imported."""
    with fake_hub() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", served.url, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield served


@pytest.fixture
def offline(monkeypatch):
    def switch(is_on: bool = True) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_on)
        from huggingface_hub.utils import close_session

        close_session()

    yield switch
    switch(False)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("model", "org/name", HubName(kind="model", id="org/name")),
        ("model", "org/name@v1.0", HubName(kind="model", id="org/name", revision="v1.0")),
        ("model", "hf://org/name@refs/pr/3", HubName(kind="model", id="org/name", revision="refs/pr/3")),
        ("model", "models/name", None),
        ("model", "/a/b", None),
        ("dataset", "org/name", None),
        ("dataset", "hf://org/name@r/train", HubName(kind="dataset", id="org/name", revision="r", part="train")),
        ("dataset", "hf://datasets/org/name/a/t-*", HubName(kind="dataset", id="org/name", part="a/t-*")),
        (
            "dataset",
            "hf://org/name@refs/convert/parquet/default/train",
            HubName(kind="dataset", id="org/name", revision="refs/convert/parquet", part="default/train"),
        ),
        ("dataset", "https://huggingface.co/datasets/org/name", HubName(kind="dataset", id="org/name")),
    ],
)
def test_a_name_is_told_from_a_path(kind, text, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_name(kind, text) == expected
    (tmp_path / "org" / "name").mkdir(parents=True)
    if text == "org/name":
        assert parse_name(kind, text) is None, "a folder that exists is a path"


@pytest.mark.parametrize(
    ("kind", "text", "told"),
    [
        ("model", "hf://datasets/org/name", "names a dataset; give a model"),
        ("dataset", "hf://models/org/name", "names a model; give a dataset"),
        ("model", "hf://org/name/config.json", "names a part of a model"),
        ("dataset", "hf://org", "namespace/name"),
        ("dataset", "hf://org/name@", "[Rr]evision"),
        ("model", "hf://a b/c", "'hf://a b/c' is invalid"),
        ("dataset", "hf://", "'hf://' is invalid"),
    ],
)
def test_what_is_no_name_is_refused(kind, text, told):
    with pytest.raises(ValueError, match=told):
        parse_name(kind, text)


def test_a_model_is_pinned_and_neither_code_nor_pickles_come_along(hub):
    repo = hub.repo("models", "org/name")
    first = repo.push(MODEL, "v1")
    folder = download(HubName(kind="model", id="org/name"))
    assert snapshot_of(folder) == HubName(kind="model", id="org/name", revision=first)
    assert sorted(file.name for file in Path(folder).iterdir()) == ["config.json", "model.safetensors"]
    second = repo.push({**MODEL, "config.json": b'{"new": 1}'})
    latest = HubName(kind="model", id="org/name")
    assert snapshot_of(download(pin(latest, [folder]))).revision == first, "a resumed run goes on with its commit"
    assert snapshot_of(download(latest)).revision == second
    for asked in ("v1", first):
        assert download(HubName(kind="model", id="org/name", revision=asked)) == folder


def test_offline_a_warm_cache_serves_and_a_cold_one_says_how_to_fill_it(hub, offline):
    hub.repo("models", "org/name").push(MODEL, "v1")
    name = HubName(kind="model", id="org/name", revision="v1")
    offline()
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set: unset it, or run `hf download org/name --revision v1`"):
        download(name)
    offline(False)
    folder = download(name)
    offline()
    num_requests = len(hub.requests)
    assert download(name) == folder
    assert local_copy(folder) == folder
    assert len(hub.requests) == num_requests


def test_a_hub_that_is_away_is_told_and_a_warm_cache_serves(hub, monkeypatch):
    hub.repo("models", "org/name").push(MODEL)
    folder = download(HubName(kind="model", id="org/name"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert download(HubName(kind="model", id="org/name")) == folder
    with pytest.raises(
        DataError,
        match=r"in the cache .*9 cannot be reached: check the network or HF_ENDPOINT",
    ):
        download(HubName(kind="model", id="org/other"))


@pytest.mark.parametrize(
    ("access", "name", "told"),
    [
        ("open", "org/wrong", "org/wrong is no model that you can read at .*check the name"),
        ("private", "org/name", "org/name is no model that you can read .*HF_TOKEN"),
        ("gated", "org/name", "org/name is gated: accept its terms at http://.*/org/name, then `hf auth login`"),
    ],
)
def test_refusals_are_one_line_with_the_remedy(hub, monkeypatch, access, name, told):
    hub.repo("models", "org/name", access=access).push(MODEL)
    with pytest.raises(DataError, match=told) as caught:
        download(HubName(kind="model", id=name))
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    if name == "org/name":
        assert snapshot_of(download(HubName(kind="model", id=name)))


def test_a_revision_that_is_not_there(hub):
    hub.repo("models", "org/name").push(MODEL)
    with pytest.raises(DataError, match=r"org/name has no revision 'v9': .*/commits/main lists them"):
        download(HubName(kind="model", id="org/name", revision="v9"))


def test_a_download_that_breaks_off_goes_on_and_its_part_is_never_taken_for_the_whole(hub, offline, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    files = {"data/train-00000-of-00002.parquet": table("a"), "data/train-00001-of-00002.parquet": table("b", "c")}
    hub.repo("datasets", "org/set").push(files, "v1")
    name = HubName(kind="dataset", id="org/set", revision="v1")
    hub.breaks = {"data/train-00001-of-00002.parquet"}
    with pytest.raises(DataError, match="give the command again: it goes on") as caught:
        download(name)
    assert "\n" not in str(caught.value)
    offline()
    with pytest.raises(DataError, match="is not, or not completely, in the cache"):
        download(name)
    offline(False)
    hub.breaks = set()
    assert len(Dataset.open(download(name))) == 3


def test_a_split_is_downloaded_alone_and_reads_rows(hub):
    hub.repo("datasets", "org/set").push(
        {
            "README.md": b"hello",
            "data/train-00000-of-00001.parquet": table("a", "b"),
            "data/test-00000-of-00001.parquet": table("c"),
        }
    )
    with pytest.raises(DataError, match=r"holds several splits .*name one, as in hf://org/set/data/train-00000"):
        download(HubName(kind="dataset", id="org/set"))
    path = download(HubName(kind="dataset", id="org/set", part="train"))
    assert len(Dataset.open(path)) == 2
    assert not any("test-" in asked for asked in hub.requests)


def test_pictures_beside_the_table_are_read_through_the_links_of_the_cache(hub, tmp_path):
    files = {"train.parquet": table("a", image={"bytes": None, "path": "images/one.png"}), "images/one.png": picture()}
    hub.repo("datasets", "org/set").push(files)
    path = download(HubName(kind="dataset", id="org/set"))
    sample = Dataset.open(path).read(SampleRef(dataset=path, row=0, uid="0"))
    assert sample.image == picture()
    (tmp_path / "cache" / "secret").write_bytes(picture())
    (tmp_path / "cache" / "datasets--org--set" / "snapshots" / "link.png").symlink_to(tmp_path / "cache" / "secret")
    files = {"train.parquet": table("a", image={"bytes": None, "path": "../link.png"})}
    hub.repo("datasets", "org/set").push(files)
    path = download(HubName(kind="dataset", id="org/set"))
    with pytest.raises(DataError, match="outside the data set's folder"):
        Dataset.open(path)


def test_another_machine_gets_the_same_commit_into_its_own_cache(hub, tmp_path, monkeypatch):
    repo = hub.repo("datasets", "org/set")
    repo.push({"train.parquet": table("a")})
    path = download(HubName(kind="dataset", id="org/set"))
    repo.push({"train.parquet": table("a", "b", "c")})
    shutil.move(tmp_path / "cache", tmp_path / "gone")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "other"))
    assert len(Dataset.open(path)) == 1, "the pinned commit, not the newest"
    assert (tmp_path / "other" / "datasets--org--set").is_dir()
    assert local_copy("/nowhere/else") == "/nowhere/else"


def test_plain_files_are_put_where_they_are_wanted(hub, tmp_path):
    hub.repo("datasets", "org/set").push({"data/train.parquet": table("a"), "data/test.parquet": table("b")})
    path = download(HubName(kind="dataset", id="org/set", part="test"), out=tmp_path / "mine")
    assert path == str(tmp_path / "mine" / "data" / "test.parquet")
    assert not (tmp_path / "mine" / "data" / "train.parquet").exists()


SHARDS = [f"data/{split}-0000{i}-of-00002.parquet" for split in ("train", "test") for i in (0, 1)]
VALIDATION = ["data/val-1.parquet", "data/val-2.parquet", "data/validation-1.parquet", "data/train-1.parquet"]
NUMBERED = ["val-1.parquet", "interval-1.parquet", "val-2.parquet"]
PREFIXED = ["data/train-00000-of-00001.parquet", "data/train_small-00000-of-00001.parquet"]
BRACKETS = ["[x]/a.parquet", *(f"w[1]/{name}-00000-of-00002.parquet" for name in ("train", "test"))]
BRACKETS.append("w[1]/train-00001-of-00002.parquet")


@pytest.mark.parametrize(
    ("files", "part", "path", "num_files"),
    [
        (SHARDS, "train", "data/train-*-of-00002.parquet", 2),
        (SHARDS, "data/train-*", "data/train-*", 2),
        (SHARDS, "data/test-*-of-00002.parquet", "data/test-*-of-00002.parquet", 2),
        (["a.parquet", "pictures/x.PNG", "x.zip"], "", "", 2),
        (["train/state.json", "train/d.arrow", "test/d.arrow", "test/state.json"], "train", "train", 2),
        (["default/train/0000.parquet", "default/test/0000.parquet"], "default/test", "default/test", 1),
        (["default/train/0000.parquet", "default/validation/0000.parquet"], "dev", "default/validation", 1),
        (["train.parquet", "test.parquet"], "train.parquet", "train.parquet", 1),
        (VALIDATION, "val", "data/val*.parquet", 3),
        (VALIDATION, "VALIDATION", "data/val*.parquet", 3),
        (VALIDATION, "val-1", "data/val-1.parquet", 1),
        (NUMBERED, "val", "val-*.parquet", 2),
        (PREFIXED, "train_small", "data/train_small-00000-of-00001.parquet", 1),
        (["a/train.parquet", "a/training.parquet", "b/x.parquet"], "train", "a", 2),
        (BRACKETS, "[x]", "[x]", 1),
        (BRACKETS, "w[1]/train-00000-of-00002.parquet", "w[1]/train-00000-of-00002.parquet", 1),
        (BRACKETS, "w[[]1]/train-*", "w[[]1]/train-*", 2),
        (["x/train.parquet", "x/y/train.parquet"], "x/*", "x/*", 1),
        (["x/train.parquet", "x/y/train.parquet"], "x/**/*.parquet", "x/**/*.parquet", 2),
    ],
)
def test_a_part_names_a_split(files, part, path, num_files):
    chosen = choose_files("hf://o/n", files, part)
    assert (chosen.path, len(chosen.files)) == (path, num_files)


@pytest.mark.parametrize(
    ("files", "part", "told"),
    [
        (["a.jsonl", "images.zip"], "", r"no Parquet or Arrow files \(.jsonl, .zip\).*@refs/convert/parquet"),
        (SHARDS, "heldout", "has no 'heldout': it has data/test-.*, data/train"),
        (SHARDS, "data", "several splits"),
        (["x/train/0.parquet", "y/train/0.parquet"], "train", "several splits"),
        (
            ["train.parquet", "pretrain.parquet", "constrain.parquet"],
            "",
            r"several splits \(constrain.parquet",
        ),
        (["a-val.parquet", "validation.parquet", "train.parquet"], "val", "no pattern names a-val.*: name one of them"),
        (["data/train.parquet"], "*", r"has no '\*'"),
    ],
)
def test_a_part_that_names_no_split_is_told(files, part, told):
    with pytest.raises(DataError, match=told):
        choose_files("hf://o/n", files, part)


@pytest.mark.parametrize(
    ("files", "part"),
    [(SHARDS, "train"), (VALIDATION, "val"), (VALIDATION, "val-1"), (NUMBERED, "val"), (PREFIXED, "train_small")]
    + [(BRACKETS, part) for part in ("[x]", "w[1]/test-00000-of-00002.parquet", "w[[]1]/train-*")],
)
def test_what_a_part_names_is_what_is_found_after_the_download(files, part, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    chosen = choose_files("hf://o/n", files, part)
    found = find_files(str(tmp_path / chosen.path)).files
    assert sorted(file.relative_to(tmp_path).as_posix() for file in found) == sorted(chosen.files)


def test_a_model_is_called_by_its_name_and_not_by_its_commit():
    assert model_name(f"/cache/models--Qwen--Qwen2.5-VL-3B-Instruct/snapshots/{'a' * 40}") == (
        "Qwen/Qwen2.5-VL-3B-Instruct"
    )
    assert model_name("/somewhere/tiny/") == "tiny"
