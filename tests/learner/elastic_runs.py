"""Runs of an elastic learner on scripted ranks, and what an undisturbed one remembers."""

from dataclasses import replace

from tests.learner.builders import make_group

GROUPS = [make_group(seed) for seed in range(8)]
GROUPS = [
    replace(group, played=replace(group.played, ref=replace(group.played.ref, row=row)))
    for row, group in enumerate(GROUPS)
]
UPDATE = (frozenset(range(8)), "step", "step")
"""What an undisturbed rank remembers of one update."""


def once(matches, act):
    """What happens at the first call that matches."""
    happened = []

    def on_call(rank, what):
        if not happened and matches(rank, what):
            happened.append(act(rank))

    return on_call


async def trained(world, updates=3, **settings):
    learner = world.learner(**settings)
    await learner.start()
    for _ in range(updates):
        await learner.update(GROUPS)
    return learner
