"""How old samples are: counted in steps, from the oldest token of an episode."""

import pytest

from cluster.staleness import PublishedVersions, staleness_fault
from tests.fakes import make_episode, make_group


def published(*versions):
    log = PublishedVersions()
    for version in versions:
        log.add(version)
    return log


def test_staleness_counts_steps_and_not_optimizer_steps():
    """Two mini-batches in a step: versions 0, 2, 4."""
    log = published(0, 2, 4)
    assert [log.staleness(version, 2) for version in (0, 2, 4)] == [2, 1, 0]
    assert log.staleness(1, 2) is None, "a version between two mini-batches is never served"
    assert log.staleness(6, 2) is None


def test_a_version_that_was_published_again_is_as_old_as_its_last_publication():
    assert published(0, 1, 1, 1).staleness(1, 3) == 0


@pytest.mark.parametrize(
    ("versions", "most", "fault"),
    [
        ((4, 4), 0, None),
        ((2, 4), 1, None),
        ((2, 4), 0, "sampled under version 2, 1 steps old (train.max_staleness=0)"),
        ((0, 4), 1, "sampled under version 0, 2 steps old (train.max_staleness=1)"),
        ((4, 6), 1, "sampled under version 6, which was not published"),
        ((-1, 4), 5, "sampled under version -1, which was not published"),
    ],
)
def test_a_group_is_as_old_as_its_oldest_episode(versions, most, fault):
    group = make_group([make_episode(version=version) for version in versions])
    assert staleness_fault(group, 2, published(0, 2, 4), most) == fault
