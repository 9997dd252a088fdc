"""The log of updates against a list that forgets nothing."""

from hypothesis import given
from hypothesis import strategies as st

from learner.elastic.history import UpdateLog

OPERATIONS = st.lists(st.sampled_from(["update", "part", "snapshot", "forget"]), max_size=30)


@given(OPERATIONS)
def test_what_follows_a_snapshot_is_what_was_logged_after_it(operations):
    log, everything, marks, number = UpdateLog(), [], {0: 0}, 0
    for operation in operations:
        match operation:
            case "update":
                log.begin()
                log.current.parts.append([f"group {number}"])
                log.current.is_finished = True
                everything.append(log.current)
            case "part" if everything:
                everything[-1].parts.append([f"more of {number}"])
            case "snapshot":
                number += 1
                log.mark(number)
                marks[number] = len(everything)
            case "forget" if number:
                log.forget(number)
                marks = {number: marks[number]}
    for snapshot, position in marks.items():
        assert log.since(snapshot) == everything[position:]


def test_only_the_present_state_is_known_after_everything_was_forgotten():
    log = UpdateLog()
    log.mark(1)
    log.begin()
    log.current.parts.append(["group"])
    log.forget()
    assert log.since(0) is None
    assert log.since(1) is None


def test_an_update_without_parts_is_none():
    log = UpdateLog()
    log.begin()
    log.begin()
    log.current.parts.append(["group"])
    assert [update.num_groups for update in log.since(0)] == [1]


def test_a_snapshot_of_a_restored_state_stands_where_that_stood():
    log = UpdateLog()
    log.mark(1)
    log.begin()
    log.current.parts.append(["group"])
    log.mark(2, like=1)
    assert log.since(2) == log.since(1) == [log.current]
