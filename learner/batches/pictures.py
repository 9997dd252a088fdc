"""The images of a plan: where a rank gets them, and how it re-creates lost ones from the data set.

A full view stays with the worker that played its group until a rank fetches it. If that worker or node dies meanwhile,
the step must not fail, so each picture also refers to its row in the data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from actors.data.dataset import Dataset
from actors.episode import SampleRef
from actors.errors import DataError, LearnerError
from actors.images import View_HW3, ViewSpec, check_and_decode, full_view
from configs.schema import DataConfig
from learner.batches.batch import TrainingGroup
from learner.batches.plan import RankPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One full view that a plan refers to."""

    handle: object
    """Reference of the view uint8 [H, W, 3] in a run's object store, or the array itself in tests."""
    ref: SampleRef
    """The row it was made from."""
    full_size: tuple[int, int]
    """(height, width) in pixels."""
    image_sha256: str
    """Hash of the encoded image."""


def pictures_of(plan: RankPlan, groups: Sequence[TrainingGroup]) -> list[Picture]:
    """The images of a rank's plan, by index."""
    chosen = [groups[index] for index in plan.image_groups]
    return [
        Picture(
            handle=group.image,
            ref=group.played.ref,
            full_size=group.played.full_size,
            image_sha256=group.played.image_sha256,
        )
        for group in chosen
    ]


class PictureReader:
    """Makes full views from the data set, with the same functions as the rollout workers."""

    def __init__(self, spec: ViewSpec, limits: DataConfig) -> None:
        self._spec = spec
        self._limits = limits
        self._datasets: dict[str, Dataset] = {}

    def read(self, picture: Picture) -> View_HW3:
        """The full view, uint8 [H, W, 3].

        Raises:
            LearnerError: the row cannot be read here, or has another image than the one that was played.
        """
        ref = picture.ref
        try:
            if ref.dataset not in self._datasets:
                self._datasets[ref.dataset] = Dataset.open(ref.dataset, self._limits.columns_of(ref.dataset))
            encoded = self._datasets[ref.dataset].read(ref).image
            found = hashlib.sha256(encoded).hexdigest()
            if found != picture.image_sha256:
                raise LearnerError(
                    f"row {ref.row} of {ref.dataset} has changed since it was played: the SHA-256 of its image is "
                    f"{found[:12]}, not {picture.image_sha256[:12]}"
                )
            image = check_and_decode(
                encoded, max_pixels=self._limits.max_source_pixels, max_side_ratio=self._limits.max_side_ratio
            )
        except DataError as error:
            raise LearnerError(f"the image of row {ref.row} of {ref.dataset} cannot be read again: {error}") from error
        view = full_view(image, self._spec)
        if view.shape[:2] != picture.full_size:
            raise LearnerError(
                f"row {ref.row} of {ref.dataset} gives a full view of {view.shape[:2]} pixels, and was played with "
                f"{picture.full_size}: the model or its pixel budget differs here"
            )
        return view
