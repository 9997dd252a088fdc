"""Requests for benches of a served policy: the shapes task, or pictures for a model with random weights."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from actors.data.shapes import draw_row, encode_png, paint
from actors.images import ViewSpec, num_visual_tokens, view_size
from configs.schema import Config
from tests.bench.forced_policy import ASK

SHARES = (0.3, 0.7)
NUM_PICTURES = 128
SIZES = ((1.0, 1.0), (1.25, 0.75), (0.75, 1.25), (0.5, 1.5))
"""Of pictures with random weights, in units of their side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request."""

    picture: bytes
    question: str
    resolution: str
    expected: tuple[Any, ...] | None
    """What identifies the right reply; None where it is not known yet."""
    streams: bool
    truth: str | None = None


def shapes_jobs(seed: int) -> list[Job]:
    """One job per picture of the shapes task."""
    rng = np.random.default_rng(seed)
    rows = [draw_row(rng, "heldout", needs_full_share=0.5) for _ in range(NUM_PICTURES)]
    return [
        Job(
            picture=encode_png(paint(row.scene)),
            question=row.question,
            resolution="auto",
            expected=None,
            streams=False,
            truth=row.answer,
        )
        for row in rows
    ]


def fresh_copy(picture: bytes, index: int, *, changes_pixel: bool = False) -> bytes:
    """The same picture in other bytes, by which our caches know it; with a pixel of a corner changed for vLLM's own."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    if changes_pixel:
        image.putpixel((image.width - 1, image.height - 1), (index % 256, index // 256 % 256, 128))
    note, out = PngImagePlugin.PngInfo(), io.BytesIO()
    note.add_text("copy", str(index))
    image.save(out, "PNG", pnginfo=note)
    return out.getvalue()


def mix(jobs: Sequence[Job], asks: Sequence[bool], share: float, num_jobs: int, *, seed: int) -> list[Job]:
    """`num_jobs` copies of jobs, of which this share is asked about; every fourth is streamed."""
    rng = random.Random(seed)
    pools = {
        wanted: [job for job, asked in zip(jobs, asks, strict=True) if asked == wanted] for wanted in (True, False)
    }
    num_asked = round(share * num_jobs)
    drawn = [rng.choice(pools[index < num_asked]) for index in range(num_jobs)]
    rng.shuffle(drawn)
    return [
        replace(job, picture=fresh_copy(job.picture, seed * num_jobs + index), streams=index % 4 == 0)
        for index, job in enumerate(drawn)
    ]


def smooth_jobs(config: Config, side: int, num_jobs: int, share: float, *, seed: int) -> list[Job]:
    """Pictures of soft noise in several sizes, known by their visual tokens; this share of them is asked about."""
    rng = np.random.default_rng(seed)
    model = config.model
    spec = ViewSpec.from_model(model)
    asks = rng.permutation(num_jobs) < round(share * num_jobs)
    noise = rng.integers(0, 256, (num_jobs, 12, 12, 3), dtype=np.uint8)

    def job(index: int) -> Job:
        across, down = SIZES[index % len(SIZES)]
        size, out = (int(across * side), int(down * side)), io.BytesIO()
        Image.fromarray(noise[index]).resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=85)
        full = num_visual_tokens(*view_size(size[1], size[0], spec), spec)
        return Job(
            picture=out.getvalue(),
            question=f"{ASK if asks[index] else ''} what is it?",
            resolution="auto",
            expected=(bool(asks[index]), full // 4 + (full if asks[index] else 0)),
            streams=False,
        )

    with ThreadPoolExecutor() as threads:
        return list(threads.map(job, range(num_jobs)))


def shapes_phases(known: Sequence[tuple[Job, bool]], number: int, *, seed: int) -> dict[str, list[Job]]:
    """Phase to its requests, where it is known which pictures are asked about."""
    jobs, asks = [job for job, _ in known], [asked for _, asked in known]
    phases = {f"p={share:g}": mix(jobs, asks, share, number, seed=seed + n) for n, share in enumerate(SHARES)}
    full = mix(jobs, asks, 0.5, number, seed=seed + len(SHARES))
    return {**phases, "full": [replace(job, resolution="full", expected=None) for job in full]}


def smooth_phases(config: Config, sides: Sequence[int], number: int, *, seed: int) -> dict[str, list[Job]]:
    """As `shapes_phases`, per size of the pictures, whose asking is forced."""
    phases: dict[str, list[Job]] = {}
    for side in sides:
        for share in SHARES:
            phases[f"{side} p={share:g}"] = smooth_jobs(config, side, number, share, seed=seed + len(phases))
        full = smooth_jobs(config, side, number, 0.0, seed=seed + len(phases))
        phases[f"{side} full"] = [replace(job, resolution="full", expected=None) for job in full]
    return phases
