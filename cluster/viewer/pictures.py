"""The picture of an episode, read from its data set and cut as the engine cut it."""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from actors.data.dataset import Dataset
from actors.episode import SampleRef
from actors.errors import DataError
from actors.images import View_HW3, ViewSpec, can_quarter, check_and_decode, full_view, quarter_view
from actors.views import View, cut_view
from configs.schema import Config

Views = tuple[View_HW3 | None, View_HW3]
"""Quarter view (None where the picture is too small to quarter) and full view."""
MAX_LOSSLESS = 1 << 20
"""Pixels up to which a picture is sent as PNG; a larger one is JPEG."""
NUM_KEPT = 16
NUM_SETS_OPEN = 8


class Pictures:
    """Views of the pictures of one run. The last ones are kept, since quarter and full view are asked for in turn."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._opened: OrderedDict[str, Dataset] = OrderedDict()
        self._views: OrderedDict[tuple[str, int, str], Views | str] = OrderedDict()
        self._lock = threading.Lock()

    def views(self, row: Mapping[str, Any]) -> Views | str:
        """The two views of an episode's picture, or the reason why it cannot be shown."""
        key = (str(row["dataset"]), int(row["row"] or 0), str(row["image_sha256"]))
        with self._lock:
            found = self._views[key] if key in self._views else self._load(*key, uid=str(row["sample"]))
            if not isinstance(found, str):  # a data set may come back
                self._views[key] = found
                self._views.move_to_end(key)
            while len(self._views) > NUM_KEPT:
                self._views.popitem(last=False)
        return found

    def _load(self, path: str, row: int, sha256: str, *, uid: str) -> Views | str:
        model, limits = self._config.model, self._config.data
        try:
            if path not in self._opened:
                self._opened[path] = Dataset.open(path, self._config.data.columns_of(path))
                while len(self._opened) > NUM_SETS_OPEN:
                    self._opened.popitem(last=False)
            image = self._opened[path].read(SampleRef(dataset=path, row=row, uid=uid)).image
            if len(sha256) == 64 and hashlib.sha256(image).hexdigest() != sha256:
                return f"row {row} of {path} holds another picture now than when the episode was played"
            spec = ViewSpec.from_model(model)
            decoded = check_and_decode(image, max_pixels=limits.max_source_pixels, max_side_ratio=limits.max_side_ratio)
            full = full_view(decoded, spec)
        except (DataError, OSError, ValueError, IndexError) as error:
            return f"the picture is not stored with the run, and cannot be read from its data set: {error}"
        return (quarter_view(full) if can_quarter(full.shape[0], full.shape[1], spec) else None), full


def picture_of(views: Views, view: View) -> View_HW3 | None:
    """The pixels of a view, which lies inside the full one; None for the quarter view of a picture too small for it."""
    quarter, full = views
    return quarter if view == "quarter" else cut_view(full, view)


def encode(view: View_HW3, max_side: int | None = None) -> tuple[str, bytes]:
    """Media type and bytes of a view, reduced until no side is longer than `max_side` pixels; lossless while small."""
    image = Image.fromarray(np.ascontiguousarray(view))
    is_small = image.width * image.height <= MAX_LOSSLESS and (max_side is None or max(image.size) <= max_side)
    if max_side is not None:
        image.thumbnail((max_side, max_side))
    encoded = io.BytesIO()
    if is_small:
        image.save(encoded, format="PNG", compress_level=3)
    else:
        image.save(encoded, format="JPEG", quality=88)
    return ("image/png" if is_small else "image/jpeg"), encoded.getvalue()
