"""What is shown of the members, from what each part knows of its own. Pure."""

from __future__ import annotations

from cluster.runtime.seats import WorkerView
from cluster.status.views import MemberView
from learner.elastic.decisions import RankView


def worker_view(worker: WorkerView, now: float) -> MemberView:
    """A rollout worker at `now`, in wall-clock seconds; without a node it waits for one."""
    return MemberView(
        name=worker.name,
        role="rollouts",
        state=worker.state if worker.node is not None else "pending",
        version=worker.version,
        node=worker.node or "",
        in_flight=worker.num_groups,
        since=now - worker.for_s,
        detail=worker.waits_for,
    )


def rank_view(rank: RankView, version: int) -> MemberView:
    """A member of the learner, which holds `version` of the weights if it is one of the ranks."""
    is_rank = rank.rank is not None
    return MemberView(
        name=f"learner rank {rank.rank}" if is_rank else f"learner member {rank.number}",
        role="learner",
        state=rank.state,
        version=version if is_rank else None,
        node=rank.node,
    )
