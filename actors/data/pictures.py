"""Reads images from the forms in which data sets store them: bytes, base64, data URIs, or separate files.

Returns encoded bytes; `actors.images` checks and decodes them.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import pyarrow as pa

from actors.data.arrow_types import duplicates, is_bytes, is_text, plain_type, without_list
from actors.data.files import LFS_POINTER
from actors.errors import DataError
from actors.hub import blobs_of

MAX_PICTURE_BYTES = 128 * 2**20
"""Maximum size of an encoded image; 64 million pixels take less in any format."""
MAX_PATH_CHARS = 4096
"""Longer texts are not paths (Linux: PATH_MAX)."""
BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD")
"""Base64 of the first bytes of JPEG, PNG, WEBP and GIF files."""
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_URL_SAFE = str.maketrans("-_", "+/")
EMBED = "embed the pictures as bytes"


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureColumn:
    """How the values of a column are turned into an image."""

    name: str
    form: Literal["bytes", "text", "struct", "missing"]
    """`struct`: {bytes, path} of Hugging Face, one of the two filled. `missing`: no row has a value."""
    is_list: bool
    folder: Path
    """Paths are relative to it and must stay inside it."""

    @classmethod
    def of(cls, schema: pa.Schema, name: str, folder: Path) -> Self:
        """For a column of a file.

        Raises:
            DataError: values of its type are no pictures.
        """
        field = schema.field(name)
        kind, is_list = without_list(field.type)
        if pa.types.is_struct(kind):
            _check_struct(name, kind)
            form: Literal["bytes", "text", "struct", "missing"] = "struct"
        elif is_bytes(kind):
            form = "bytes"
        elif is_text(kind):
            form = "text"
        elif pa.types.is_null(kind):
            form = "missing"
        else:
            is_array = pa.types.is_integer(kind) or pa.types.is_floating(kind) or without_list(kind)[1]
            what = "an array, not an encoded picture" if is_array else "no picture"
            raise DataError(f"{name} is {field.type}, {what}: store each picture as the bytes of a PNG or JPEG file")
        return cls(name=name, form=form, is_list=is_list, folder=folder)

    def read(self, value: Any) -> bytes:
        """The encoded image; DataError with the reason if there is none."""
        try:
            one = self._one(value)
            if isinstance(one, str):
                return picture_of_text(one.strip(), self.folder)
        except DataError as error:
            raise DataError(f"{self.name} {error}") from error
        return one

    def is_text(self, value: Any) -> bool:
        """Whether the value is a text instead of the image's bytes."""
        try:
            return isinstance(self._one(value), str)
        except DataError:
            return False

    def _one(self, value: Any) -> bytes | str:
        """What a row has of its one picture: its bytes, or a text."""
        if self.is_list and value is not None:
            if len(value) != 1:
                raise DataError(f"has {len(value)} pictures: an episode shows exactly 1")
            value = value[0]
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if not isinstance(value, bytes | str) or not value:
            raise DataError("holds no picture")
        return value


def picture_of_text(text: str, folder: Path) -> bytes:
    """The picture that a text holds as a data URI or base64, or names as a file inside the folder.

    Raises:
        DataError: none of these, or larger than `MAX_PICTURE_BYTES`. The message goes on after the column's name.
    """
    if text[:5].lower() == "data:":
        header, _, encoded = text.partition(",")
        if not header.lower().endswith(";base64"):
            raise DataError(f"is a data URI without ';base64,': {EMBED}, or encode them as base64")
        return _decoded(encoded)
    if text.startswith(BASE64_STARTS) or len(text) > MAX_PATH_CHARS:
        return _decoded(text)
    if _URL.match(text):
        raise DataError(f"names {_short(text)}, but nothing is downloaded: {EMBED}")
    return _file_inside(folder, text)


def _decoded(encoded: str) -> bytes:
    if len(encoded) > MAX_PICTURE_BYTES * 4 // 3:
        raise DataError(f"holds {len(encoded)} characters of base64, over {MAX_PICTURE_BYTES} bytes: store it smaller")
    encoded = "".join(encoded.split()).translate(_URL_SAFE).rstrip("=")
    try:
        return b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"is neither a path nor base64 ({error}): {EMBED}") from error


def _file_inside(folder: Path, name: str) -> bytes:
    """A file of the folder. Links are resolved before the location is checked."""
    try:
        root, file, blobs = folder.resolve(strict=True), (folder / name).resolve(), blobs_of(folder)
        if not file.is_relative_to(root) and not (blobs and file.is_relative_to(blobs.resolve())):
            raise DataError(f"names {_short(name)}, outside the data set's folder {folder}: copy it there, or {EMBED}")
        if not file.is_file():
            raise DataError(
                f"names {_short(name)}, which is no file in the data set's folder {folder}: paths are "
                f"relative to it; copy the pictures there, or {EMBED}"
            )
        if (size := file.stat().st_size) > MAX_PICTURE_BYTES:
            raise DataError(f"names {_short(name)}, {size} bytes, over {MAX_PICTURE_BYTES}: store it smaller")
        encoded = file.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:  # name too long or with a NUL, or a symlink loop
        raise DataError(f"names {_short(name)}, which cannot be read ({error}): {EMBED}") from error
    if encoded.startswith(LFS_POINTER):
        raise DataError(f"names {_short(name)}, which is a Git LFS pointer: run `git lfs pull` in {folder}")
    if not encoded:
        raise DataError(f"names {_short(name)}, which is empty: copy it again")
    return encoded


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _check_struct(name: str, kind: pa.DataType) -> None:
    names = [kind.field(index).name for index in range(kind.num_fields)]
    if twice := duplicates(names):
        raise DataError(f"{name} has the field {twice[0]} twice: rename or drop one of them")
    types = {part: plain_type(kind.field(part).type) for part in ("bytes", "path") if part in names}
    if not types or all(map(pa.types.is_null, types.values())):
        raise DataError(f"{name} is {kind}, without bytes or path: store struct<bytes, path>, or the bytes alone")
    for part, field in types.items():
        if not (is_text(field) or pa.types.is_null(field) or (part == "bytes" and is_bytes(field))):
            raise DataError(f"{name} has the field {part} as {field}: store the bytes of a PNG or JPEG file")
