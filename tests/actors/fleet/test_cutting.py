"""Pictures are cut off the event loop, and only so many at a time."""

import asyncio
import io
import threading

import numpy as np
import pytest
from PIL import Image

from actors.errors import ImageError
from actors.fleet.cutting import ByteBudget, PictureCutter
from actors.images import BYTES_PER_PIXEL, ViewSpec, check_and_decode, decode, full_view
from configs.schema import DataConfig

SPEC = ViewSpec(patch_size=14, merge_size=2, min_pixels=56 * 56, max_pixels=224 * 224)
SIDE = 120
PICTURE_BYTES = SIDE * SIDE * BYTES_PER_PIXEL


def encoded(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class StuckDecoder:
    """Holds every picture until it is told to go on."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.num_inside = self.most_inside = 0
        self._lock = threading.Lock()

    def __call__(self, image: Image.Image) -> Image.Image:
        with self._lock:
            self.num_inside += 1
            self.most_inside = max(self.most_inside, self.num_inside)
        assert self.go_on.wait(30)
        with self._lock:
            self.num_inside -= 1
        return decode(image)


async def until(condition) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def test_the_event_loop_goes_on_while_a_picture_is_decoded():
    """On the loop itself this decoder would stop everything, the ticks that let it go on included."""
    decoder, num_ticks = StuckDecoder(), 0
    cutter = PictureCutter(SPEC, DataConfig(), decoder=decoder)
    cutting = asyncio.create_task(cutter.cut(encoded()))
    await until(lambda: decoder.num_inside)
    while num_ticks < 100:
        await asyncio.sleep(0)
        num_ticks += 1
    assert not cutting.done()
    decoder.go_on.set()
    await cutting
    cutter.shutdown()


async def test_a_cut_picture_is_what_cutting_in_place_gives():
    cutter = PictureCutter(SPEC, DataConfig())
    cuts = await asyncio.gather(*(cutter.cut(encoded(seed)) for seed in range(12)))
    for seed, cut in enumerate(cuts):
        expected = full_view(check_and_decode(encoded(seed), max_pixels=10**6, max_side_ratio=100), SPEC)
        assert np.array_equal(cut.full, expected)
        assert np.array_equal(np.asarray(cut.views.full.picture), expected)
    assert len({cut.sha256 for cut in cuts}) == 12
    cutter.shutdown()


@pytest.mark.parametrize(("room", "most"), [(1, 1), (1.5, 1), (2, 2), (3.9, 3), (100, 4), (0.1, 1)])
async def test_no_more_pictures_are_decoded_at_once_than_there_is_memory_and_threads_for(room, most):
    decoder = StuckDecoder()
    cutter = PictureCutter(
        SPEC, DataConfig(), num_threads=4, max_bytes=int(room * PICTURE_BYTES), small_bytes=0, decoder=decoder
    )
    cutting = asyncio.gather(*(cutter.cut(encoded()) for _ in range(8)))
    await until(lambda: decoder.num_inside == most)
    await asyncio.sleep(0.02)
    decoder.go_on.set()
    await cutting
    assert decoder.most_inside == most
    cutter.shutdown()


@pytest.mark.parametrize(("small_bytes", "waits"), [(PICTURE_BYTES, False), (PICTURE_BYTES - 1, True)])
async def test_a_small_picture_does_not_wait_for_the_memory_of_others(small_bytes, waits):
    decoder, image = StuckDecoder(), encoded()
    cutter = PictureCutter(SPEC, DataConfig(), num_threads=4, max_bytes=1, small_bytes=small_bytes, decoder=decoder)
    cutting = asyncio.gather(*(cutter.cut(image) for _ in range(4)))
    await until(lambda: decoder.num_inside == (1 if waits else 4))
    await asyncio.sleep(0.02)
    decoder.go_on.set()
    cuts = await cutting
    assert decoder.most_inside == (1 if waits else 4)
    assert len({cut.sha256 for cut in cuts}) == 1
    cutter.shutdown()


async def test_a_group_that_is_given_up_keeps_its_share_of_memory_until_its_thread_is_done():
    decoder = StuckDecoder()
    cutter = PictureCutter(SPEC, DataConfig(), num_threads=4, max_bytes=PICTURE_BYTES, small_bytes=0, decoder=decoder)
    given_up, next_one = (asyncio.create_task(cutter.cut(encoded(seed))) for seed in range(2))
    await until(lambda: decoder.num_inside == 1)
    given_up.cancel()
    await asyncio.sleep(0.02)
    assert decoder.most_inside == 1
    decoder.go_on.set()
    await next_one
    assert given_up.cancelled() or await asyncio.wait([given_up])
    assert decoder.most_inside == 1
    cutter.shutdown()


@pytest.mark.parametrize("broken", [b"", b"no picture", encoded()[:200], encoded()[:-2000]])
@pytest.mark.parametrize("small_bytes", [0, PICTURE_BYTES])
async def test_a_picture_that_cannot_be_decoded_is_an_error_and_leaves_room_for_others(broken, small_bytes):
    cutter = PictureCutter(SPEC, DataConfig(), max_bytes=PICTURE_BYTES, small_bytes=small_bytes)
    for _ in range(5):
        with pytest.raises(ImageError):
            await cutter.cut(broken)
    await cutter.cut(encoded())
    cutter.shutdown()


async def test_a_picture_over_the_limits_is_refused_before_it_takes_memory():
    decoder = StuckDecoder()
    cutter = PictureCutter(SPEC, DataConfig(max_source_pixels=100), decoder=decoder)
    with pytest.raises(ImageError, match=r"data\.max_source_pixels=100"):
        await cutter.cut(encoded())
    assert decoder.most_inside == 0
    cutter.shutdown()


async def test_a_budget_admits_in_order_and_forgets_those_that_gave_up():
    budget, order = ByteBudget(10), []
    leave = asyncio.Event()

    async def hold(name, num_bytes):
        async with budget.hold(num_bytes):
            order.append(name)
            await leave.wait()

    tasks = [asyncio.create_task(hold(name, size)) for name, size in (("a", 6), ("b", 8), ("c", 2), ("d", 99))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert order == ["a"], "c would fit, but b came first"
    tasks[1].cancel()
    await asyncio.sleep(0.01)
    assert order == ["a", "c"]
    leave.set()
    await asyncio.wait(tasks)
    assert order == ["a", "c", "d"], "one that is over the limit is admitted alone"
    async with asyncio.timeout(1), budget.hold(10):
        pass
