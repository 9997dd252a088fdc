import itertools
import threading
import time
import weakref
from contextlib import closing

import pytest

from learner.batches.prefetch import prefetch_one


class Item:
    def __init__(self, number):
        self.number = number


def test_items_come_in_order_and_all_of_them():
    assert list(prefetch_one(range(20), timeout_s=5)) == list(range(20))
    assert list(prefetch_one([], timeout_s=5)) == []


def test_the_next_item_is_made_while_the_caller_works_and_no_further_one():
    made = []

    def items():
        for number in range(5):
            made.append(number)
            yield number

    with closing(prefetch_one(items(), timeout_s=5)) as ahead:
        for number in ahead:
            deadline = time.monotonic() + 5
            while len(made) < min(number + 2, 5) and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.01)
            assert made == list(range(min(number + 2, 5)))


def test_never_more_than_two_items_are_alive():
    alive, most = weakref.WeakSet(), 0

    def items():
        nonlocal most
        for number in range(30):
            item = Item(number)
            alive.add(item)
            most = max(most, len(alive))
            yield item
            del item

    ahead = prefetch_one(items(), timeout_s=5)
    for number in range(30):
        item = next(ahead)
        assert item.number == number
        del item
    assert most <= 2


def test_an_error_comes_up_at_its_place():
    def items():
        yield 1
        raise ValueError("the second item")

    ahead = prefetch_one(items(), timeout_s=5)
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="the second item"):
        next(ahead)


def test_closing_early_ends_the_thread():
    before = threading.active_count()
    ahead = prefetch_one(itertools.count(), timeout_s=5)
    assert next(ahead) == 0
    ahead.close()
    assert threading.active_count() == before


def test_an_item_that_takes_too_long_is_an_error():
    released = threading.Event()

    def items():
        released.wait(5)
        yield 1

    ahead = prefetch_one(items(), timeout_s=0.01)
    threading.Timer(0.2, released.set).start()
    with pytest.raises(TimeoutError):
        next(ahead)
