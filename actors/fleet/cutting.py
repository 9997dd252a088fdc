"""Decodes images and makes their views in threads, with bounded memory.

The event loop of a rollout worker feeds the engine. Decoding a JPEG of 6.6 megapixels takes 94 ms: on the loop, 32
groups that start together would stall every turn for 3 s. Pillow and hashlib release the interpreter's lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from actors.images import BYTES_PER_PIXEL, View_HW3, ViewSpec, decode, full_view, open_picture
from actors.play import Views, make_views
from configs.schema import DataConfig

MAX_THREADS = 4
MAX_DECODING_BYTES = 1 << 30
SMALL_BYTES = 4 << 20
"""A picture of at most this size, decoded, is cut by the thread that has read its header: all threads together hold
little of such, and each way into a thread and back costs 0.1 ms."""


class ByteBudget:
    """Admits holders in order of arrival while their total bytes stay within `limit`.

    A holder larger than the limit is admitted once it is alone.
    """

    def __init__(self, limit: int) -> None:
        self._limit = self._free = limit
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def hold(self, num_bytes: int) -> AsyncIterator[None]:
        num_bytes = min(num_bytes, self._limit)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((num_bytes, turn))
        self._admit()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._free += num_bytes
            self._admit()

    def _admit(self) -> None:
        while self._waiting and (self._waiting[0][1].cancelled() or self._waiting[0][0] <= self._free):
            num_bytes, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._free -= num_bytes
                turn.set_result(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class CutPicture:
    """One decoded image with its views."""

    full: View_HW3
    views: Views
    sha256: str
    """Hash of the encoded image."""


class PictureCutter:
    """Turns encoded images into views, off the event loop. `decoder` can be replaced in tests."""

    def __init__(
        self,
        spec: ViewSpec,
        limits: DataConfig,
        *,
        num_threads: int | None = None,
        max_bytes: int = MAX_DECODING_BYTES,
        small_bytes: int = SMALL_BYTES,
        decoder: Callable[[Image.Image], Image.Image] = decode,
    ) -> None:
        self._spec = spec
        self._limits = limits
        self._decoder = decoder
        self._budget = ByteBudget(max_bytes)
        self._small_bytes = small_bytes
        num_threads = num_threads or min(MAX_THREADS, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="cut-pictures")

    async def cut(self, encoded: bytes) -> CutPicture:
        """Check, decode and hash an image, and make its views; ImageError if it cannot or must not be decoded."""
        loop = asyncio.get_running_loop()
        image = await loop.run_in_executor(self._threads, self._open_or_cut, encoded)
        if isinstance(image, CutPicture):
            return image
        async with self._budget.hold(_decoded_bytes(image)):
            cutting = loop.run_in_executor(self._threads, self._cut, encoded, image)
            try:
                return await asyncio.shield(cutting)
            except asyncio.CancelledError:
                await asyncio.wait([cutting])  # threads cannot be cancelled: the memory is in use until it ends
                raise

    def _open_or_cut(self, encoded: bytes) -> Image.Image | CutPicture:
        limits = self._limits
        image = open_picture(encoded, max_pixels=limits.max_source_pixels, max_side_ratio=limits.max_side_ratio)
        return self._cut(encoded, image) if _decoded_bytes(image) <= self._small_bytes else image

    def _cut(self, encoded: bytes, image: Image.Image) -> CutPicture:
        full = full_view(self._decoder(image), self._spec)
        sha256 = hashlib.sha256(encoded).hexdigest()
        return CutPicture(full=full, views=make_views(full, self._spec, sha256), sha256=sha256)

    def shutdown(self) -> None:
        """Start nothing new; running threads end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _decoded_bytes(image: Image.Image) -> int:
    return image.width * image.height * BYTES_PER_PIXEL
