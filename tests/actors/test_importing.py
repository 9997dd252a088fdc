"""What imports cost others."""

import gc
import os
import sys
import threading

import pytest

from actors.importing import LOWEST_PRIORITY, in_background, no_collections, without


def priority():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_work_in_the_background_has_the_lowest_priority_and_its_caller_keeps_its_own():
    before = priority()
    assert before < LOWEST_PRIORITY
    assert in_background(priority) == LOWEST_PRIORITY
    assert priority() == before


def test_its_errors_are_the_callers():
    with pytest.raises(ZeroDivisionError):
        in_background(lambda: 1 / 0)


def test_collections_go_on_after_a_failure_and_stay_off_where_they_were_off():
    def fail():
        with no_collections():
            assert not gc.isenabled()
            raise ImportError

    with pytest.raises(ImportError):
        fail()
    assert gc.isenabled()
    gc.disable()
    try:
        with no_collections():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_was_there_after_imports_is_not_looked_through_again():
    gc.unfreeze()
    mine = [[]]
    try:
        with no_collections():
            pass
        assert not any(each is mine for each in gc.get_objects())
    finally:
        gc.unfreeze()
    assert any(each is mine for each in gc.get_objects())


def test_what_is_left_out_counts_as_not_installed_and_is_there_afterwards():
    assert "tabnanny" not in sys.modules
    with without("tabnanny"), pytest.raises(ImportError):
        import tabnanny
    import tabnanny

    with without("tabnanny"):
        assert sys.modules["tabnanny"] is tabnanny, "it was there before"
