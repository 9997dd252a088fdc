import base64
import os

import pyarrow as pa
import pytest

from actors.data.pictures import PictureColumn
from actors.errors import DataError

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256))
WEBP = b"RIFF\x24\x00\x00\x00WEBPVP8 " + bytes(range(256))
HUB = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def read(kind, value, folder):
    return PictureColumn.of(pa.schema([("image", kind)]), "image", folder).read(value)


@pytest.fixture
def folder(tmp_path):
    """A data set's folder with pictures in it, beside a file that is not its own."""
    (tmp_path / "secret.png").write_bytes(b"secret")
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a b.png").write_bytes(PNG)
    (folder / "9j.jpg").write_bytes(JPEG)
    (folder / "link.png").symlink_to(folder / "images" / "a b.png")
    (folder / "escape.png").symlink_to(tmp_path / "secret.png")
    (folder / "up").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "empty.png").touch()
    (folder / "lfs.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    os.mkfifo(folder / "pipe")
    return folder


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.binary(), PNG),
        (pa.large_binary(), PNG),
        (pa.binary_view(), PNG),
        (pa.list_(pa.binary()), [PNG]),
        (HUB, {"bytes": PNG, "path": None}),
        (HUB, {"bytes": PNG, "path": "/home/someone/elsewhere.png"}),
        (HUB, {"bytes": None, "path": "images/a b.png"}),
        (pa.large_list(HUB), [{"bytes": PNG, "path": None}]),
        (pa.struct([("bytes", pa.null()), ("path", pa.string())]), {"bytes": None, "path": "images/a b.png"}),
        (pa.struct([("bytes", pa.string())]), {"bytes": base64.b64encode(PNG).decode()}),
        (pa.dictionary(pa.int32(), pa.string()), "images/a b.png"),
        (pa.list_(pa.string()), ["images/a b.png"]),
    ],
    ids=str,
)
def test_every_type_that_people_store_pictures_in_is_read(folder, kind, value):
    assert read(kind, value, folder) == PNG


@pytest.mark.parametrize("picture", [PNG, JPEG, WEBP, b"GIF89a" + bytes(99)], ids=["png", "jpeg", "webp", "gif"])
@pytest.mark.parametrize(
    "write",
    [
        lambda encoded: encoded,
        lambda encoded: encoded.rstrip("="),
        lambda encoded: encoded.replace("+", "-").replace("/", "_") if not encoded.startswith("/") else encoded,
        lambda encoded: "\n".join(encoded[start : start + 76] for start in range(0, len(encoded), 76)),
        lambda encoded: f"data:image/png;base64,{encoded}",
        lambda encoded: f"DATA:image/jpeg;charset=utf-8;BASE64,{encoded}\n",
    ],
    ids=["plain", "unpadded", "URL-safe", "lines", "data URI", "data URI in capitals"],
)
def test_base64_in_every_way_of_writing_it_is_read(tmp_path, picture, write):
    assert read(pa.string(), write(base64.b64encode(picture).decode()), tmp_path) == picture


@pytest.mark.parametrize("name", ["images/a b.png", "./images/../images/a b.png", "link.png", " images/a b.png "])
def test_a_path_is_relative_to_the_folder_of_the_set(folder, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    assert read(pa.string(), name, folder) == PNG
    assert read(pa.string(), str(folder / name.strip()), folder) == PNG


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "/etc/passwd", "escape.png", "up/secret.png", "images/../../secret.png", "../set2/a.png"],
)
def test_no_path_or_link_leads_out_of_the_folder(folder, name):
    with pytest.raises(DataError, match=r"image names .*outside the data set's folder .*: copy it there, or embed"):
        read(pa.string(), name, folder)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("absent.png", "which is no file in the data set's folder"),
        ("images", "which is no file"),
        ("pipe", "which is no file"),
        ("loop", "names 'loop'"),
        ("a\0b.png", r"names 'a\x00b.png'"),
        ("a\nb.png", r"names 'a\nb.png'"),
        ("x" * 300, "embed the pictures"),
        ("!" * 5000, "neither a path nor base64"),
        ("/9j/!!!!", "neither a path nor base64"),
        ("https://example.com/a.png", "nothing is downloaded: embed the pictures as bytes"),
        ("s3://bucket/a.png", "nothing is downloaded"),
        ("data:image/svg+xml,%3Csvg%3E", "without ';base64,'"),
        ("data:image/png;base64,@@@", "neither a path nor base64"),
        ("empty.png", "which is empty"),
        ("lfs.png", "git lfs pull"),
        ("", "holds no picture"),
        (None, "holds no picture"),
    ],
)
def test_a_text_that_leads_to_no_picture_gives_one_line(folder, value, reason):
    with pytest.raises(DataError) as caught:
        read(pa.string(), value, folder)
    assert str(caught.value).startswith("image ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_picture_over_the_limit_is_not_read(folder, monkeypatch):
    monkeypatch.setattr("actors.data.pictures.MAX_PICTURE_BYTES", len(PNG) - 1)
    encoded = base64.b64encode(PNG).decode()
    for value in ("images/a b.png", encoded + "AAAA", f"data:image/png;base64,{encoded}AAAA"):
        with pytest.raises(DataError, match=f"over {len(PNG) - 1}"):
            read(pa.string(), value, folder)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (pa.list_(pa.uint8()), "an array, not an encoded picture"),
        (pa.list_(pa.list_(pa.list_(pa.uint8()))), "an array, not an encoded picture"),
        (pa.list_(pa.float32(), 12), "an array, not an encoded picture"),
        (pa.fixed_shape_tensor(pa.uint8(), (2, 2, 3)), "an array, not an encoded picture"),
        (pa.int64(), "an array"),
        (pa.bool_(), "no picture"),
        (pa.map_(pa.string(), pa.binary()), "no picture"),
        (pa.struct([("url", pa.string()), ("width", pa.int64())]), "without bytes or path"),
        (pa.struct([("bytes", pa.null()), ("path", pa.null())]), "without bytes or path"),
        (pa.struct([("bytes", pa.list_(pa.uint8()))]), "has the field bytes as list"),
        (pa.struct([("bytes", pa.binary()), ("bytes", pa.binary())]), "has the field bytes twice"),
    ],
    ids=str,
)
def test_types_that_hold_no_picture_are_refused_with_the_remedy(tmp_path, kind, reason):
    with pytest.raises(DataError, match=rf"^image .*{reason}.*(store|rename)"):
        PictureColumn.of(pa.schema([("image", kind)]), "image", tmp_path)
