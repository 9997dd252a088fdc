"""How old the samples of a batch are, in steps (`train.max_staleness`). Pure.

Batch n (from 0) is trained on with publication n. Its samples may come from publication n - max_staleness or later, and
an episode is as old as its oldest token. Look-ahead starts no group too early, so a group that is too old, or of a
version that never was published, is a fault: it is lost, with the reason, and counted as any lost group.
"""

from __future__ import annotations

from actors.episode import PlayedGroup


class PublishedVersions:
    """The versions of the weights that rollout workers may serve, in the order of their publication."""

    def __init__(self) -> None:
        self._last_publication: dict[int, int] = {}
        self._num_publications = 0

    def add(self, version: int) -> None:
        """The next publication, before any worker serves it. A version is published again if an update was skipped."""
        self._last_publication[version] = self._num_publications
        self._num_publications += 1

    def staleness(self, version: int, batch: int) -> int | None:
        """Steps between a version and the training on a batch (from 0); None if the version was never published."""
        publication = self._last_publication.get(version)
        return None if publication is None else batch - publication


def staleness_fault(group: PlayedGroup, batch: int, published: PublishedVersions, max_staleness: int) -> str | None:
    """Why a group must not be trained on in this batch; None if it may."""
    for version in (min(e.oldest_version for e in group.episodes), max(e.newest_version for e in group.episodes)):
        staleness = published.staleness(version, batch)
        if staleness is None:
            return f"sampled under version {version}, which was not published"
        if staleness > max_staleness:
            return f"sampled under version {version}, {staleness} steps old (train.max_staleness={max_staleness})"
    return None
