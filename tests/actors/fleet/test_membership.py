"""The fleet's decisions: one table per rule, and invariants over any course of events."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.fleet.membership import (
    MAX_PAUSE_S,
    Admit,
    Drain,
    GiveUp,
    Kill,
    Member,
    Observed,
    Policy,
    Slot,
    Start,
    State,
    Sync,
    Wait,
    is_lacking,
    reconcile,
    restart_at,
)
from configs.ranges import Range

POLICY = Policy(
    start_timeout_s=100.0,
    progress_timeout_s=30.0,
    drain_timeout_s=20.0,
    max_restarts=2,
    restart_window_s=600.0,
    waits_when_none_left=True,
    wait_timeout_s=300.0,
)
NOW = 1000.0


def member(slot=0, state=State.SERVING, **changes):
    fields = {"since": NOW, "is_ready": state is not State.STARTING, "version": 3, "progress_at": NOW, **changes}
    return Member(slot=slot, state=state, **fields)


def seen(*members, desired=(1, 1), **changes):
    fields = {"now": NOW, "version": 3, "slots": (), "is_running": True, "has_been_up": True, "lacking_since": None}
    size = Range(minimum=desired[0], maximum=desired[1])
    return Observed(members=members, desired=size, **{**fields, **changes})


def decide(*members, policy=POLICY, **changes):
    return reconcile(seen(*members, **changes), policy)


def test_all_members_up_to_the_maximum_are_asked_for_at_once():
    assert decide(desired=(1, 3)) == tuple(Start(slot=slot, is_restart=False) for slot in range(3))


def test_a_fleet_that_is_as_desired_is_left_alone():
    assert decide(member(0), member(1), desired=(1, 2)) == ()


@pytest.mark.parametrize(
    ("version", "confirmed", "expected"),
    [(3, 3, Admit(slot=0)), (3, 2, Sync(slot=0)), (3, None, Sync(slot=0)), (None, None, Sync(slot=0))],
)
def test_a_joiner_serves_once_it_has_confirmed_the_current_version(version, confirmed, expected):
    assert decide(member(state=State.SYNCING, version=confirmed), version=version) == (expected,)


def test_a_member_that_is_ready_takes_the_weights_and_one_that_is_not_is_waited_for():
    assert decide(member(state=State.STARTING, is_ready=True)) == (Sync(slot=0),)
    assert decide(member(state=State.STARTING)) == ()


def test_the_time_to_start_runs_from_when_there_is_room():
    late = member(state=State.STARTING, since=NOW - 101)
    (killed,) = decide(late)
    assert killed == Kill(slot=0, reason="it did not start within rollout.start_timeout_s=100", is_failure=True)
    assert decide(replace(late, is_placed=False)) == ()


def test_a_silent_member_is_killed_if_it_has_groups_and_left_alone_if_not():
    silent = member(progress_at=NOW - 31, num_groups=2)
    (killed,) = decide(silent)
    assert (killed.is_failure, killed.is_wedged) == (True, True)
    assert decide(replace(silent, num_groups=0)) == ()
    assert decide(replace(silent, progress_at=NOW - 29)) == ()


@pytest.mark.parametrize("state", list(State))
def test_the_dead_are_removed_whatever_they_were_at(state):
    assert decide(member(state=state, death="killed")) == (Kill(slot=0, reason="killed", is_failure=True),)


def test_a_member_of_a_node_that_leaves_drains_until_the_node_goes_at_the_latest():
    (soon,) = decide(member(num_groups=1, leaves_at=NOW + 5))
    assert soon == Drain(slot=0, reason="its node is being drained", deadline=NOW + 5)
    (late,) = decide(member(num_groups=1, leaves_at=NOW + 500))
    assert late.deadline == NOW + POLICY.drain_timeout_s


def test_a_draining_member_may_finish_and_is_cut_at_its_deadline():
    draining = member(state=State.DRAINING, num_groups=1, leaves_at=NOW + 5)
    assert decide(draining) == ()
    (cut,) = decide(replace(draining, leaves_at=NOW))
    assert (cut.is_failure, "1 groups left" in cut.reason) == (False, True)
    assert decide(replace(draining, num_groups=0)) == (Kill(slot=0, reason="drained", is_failure=False),)


def test_a_fleet_that_shrinks_loses_those_that_do_least():
    members = (
        member(0),
        member(1),
        member(2, State.SYNCING, version=1),
        member(3, State.STARTING),
        member(4, State.STARTING, is_placed=False),
    )
    assert [d.slot for d in decide(*members, desired=(1, 4)) if isinstance(d, Kill)] == [4]
    smaller = decide(*members, desired=(1, 1))
    assert {(type(d), d.slot) for d in smaller} == {(Kill, 4), (Kill, 3), (Kill, 2), (Drain, 1)}


def test_who_leaves_counts_until_it_is_gone():
    assert decide(member(0, State.DRAINING, num_groups=1, leaves_at=NOW + 9)) == ()


def test_a_restart_waits_longer_each_time_and_the_budget_comes_back_with_time():
    failed = Slot(is_replacement=True, freed_at=NOW)
    assert restart_at(failed, NOW, POLICY) == NOW, "the first comes at once"
    assert restart_at(replace(failed, restarts=(NOW - 9,)), NOW, POLICY) == NOW + 2
    spent = replace(failed, restarts=(NOW - 599, NOW - 9))
    assert restart_at(spent, NOW, POLICY) is None
    assert restart_at(spent, NOW + 2, POLICY) == NOW + 2, "the first is out of the window"
    many = replace(POLICY, max_restarts=99)
    assert restart_at(replace(failed, restarts=(NOW,) * 50), NOW, many) == NOW + MAX_PAUSE_S


def test_an_orderly_leave_costs_nothing_of_the_budget():
    assert decide(slots=(Slot(restarts=(NOW, NOW)),)) == (Start(slot=0, is_restart=False),)


SPENT = (Slot(is_replacement=True, restarts=(NOW, NOW), freed_at=NOW),)


def test_with_none_left_the_run_waits_up_to_its_deadline_or_stops_by_config():
    told = {"slots": SPENT, "lacking_since": NOW, "cause": "rollout worker 0: killed"}
    (waits,) = decide(**told)
    assert isinstance(waits, Wait)
    (stops,) = decide(policy=replace(POLICY, waits_when_none_left=False), **told)
    assert isinstance(stops, GiveUp)
    assert "rollout.max_restarts=2" in stops.reason
    assert "rollout worker 0: killed" in stops.reason
    (late,) = decide(**{**told, "lacking_since": NOW - 301})
    assert isinstance(late, GiveUp)
    assert late.reason == (
        "0 of 1 rollout workers are there after rollout.wait_timeout_s=300: rollout worker 0: killed"
    )


def test_a_run_that_cannot_start_gives_up_and_one_that_lost_some_goes_on():
    up, waiting = member(0), member(1, State.STARTING, is_placed=False)
    late = {"desired": (2, 2), "lacking_since": NOW - 301}
    assert isinstance(decide(up, waiting, is_running=False, **late)[-1], GiveUp)
    assert decide(up, waiting, is_running=True, **late) == ()


def test_members_that_get_no_weights_end_the_run_if_nobody_serves():
    stuck = member(state=State.SYNCING, version=None, since=NOW - 301)
    assert decide(stuck)[-1] == GiveUp(
        reason="1 rollout workers are up, and version 3 of the weights did not reach them within "
        "rollout.wait_timeout_s=300"
    )
    assert decide(stuck, version=None) == (Sync(slot=0),), "the learner is not up yet"
    assert decide(stuck, member(1), desired=(1, 2)) == (Sync(slot=0),)


def test_code_that_raises_while_it_starts_is_tried_once_where_nothing_ever_came_up():
    broken = member(state=State.STARTING, death="no such model", is_broken=True)
    assert decide(broken, has_been_up=False) == (GiveUp(reason="no such model"),)
    assert isinstance(decide(broken)[0], Kill), "the same code has worked before"


def test_members_without_room_do_not_count_as_on_their_way():
    assert is_lacking([member(state=State.STARTING, is_placed=False)], 1)
    assert not is_lacking([member(state=State.STARTING)], 1)
    assert is_lacking([member(state=State.DRAINING)], 1)


class World:
    """Executes decisions at once, and checks at each what must never happen."""

    def __init__(self, desired):
        self.now, self.desired, self.version = NOW, desired, 0
        self.members, self.slots = {}, {}
        self.starts = []
        self.gave_up = False

    def settle(self):
        for _ in range(200):
            decisions = reconcile(self.observed(), POLICY)
            assert len({d.slot for d in decisions if not isinstance(d, Wait | GiveUp)}) == sum(
                not isinstance(d, Wait | GiveUp) for d in decisions
            ), "one decision per slot"
            changes = [self.execute(decision) for decision in decisions]
            if not any(changes):
                return
        raise AssertionError("it never comes to rest")

    def observed(self):
        return Observed(
            now=self.now,
            desired=self.desired,
            version=self.version,
            members=tuple(self.members.values()),
            slots=tuple(self.slots.get(number, Slot()) for number in range(6)),
            is_running=True,
            has_been_up=True,
            lacking_since=self.now if is_lacking(list(self.members.values()), 1) else None,
        )

    def execute(self, decision):
        match decision:
            case Start(slot=slot, is_restart=is_restart):
                assert slot not in self.members
                old = self.slots.get(slot, Slot())
                recent = [at for at in old.restarts if at > self.now - POLICY.restart_window_s]
                if is_restart:
                    assert len(recent) < POLICY.max_restarts, "no start beyond the budget"
                    self.slots[slot] = Slot(restarts=(*recent, self.now))
                self.members[slot] = Member(slot=slot, state=State.STARTING, since=self.now)
                assert len(self.members) <= self.desired.maximum, "never more than desired"
            case Sync(slot=slot):
                was = self.members[slot]
                self.members[slot] = replace(was, state=State.SYNCING)
                return was.state is not State.SYNCING
            case Admit(slot=slot):
                assert self.members[slot].version == self.version, "it never serves an old version"
                assert self.members[slot].death is None
                self.members[slot] = replace(self.members[slot], state=State.SERVING, progress_at=self.now)
            case Drain(slot=slot, deadline=deadline):
                self.members[slot] = replace(self.members[slot], state=State.DRAINING, leaves_at=deadline)
            case Kill(slot=slot, is_failure=is_failure):
                del self.members[slot]
                restarts = self.slots.get(slot, Slot()).restarts
                self.slots[slot] = Slot(restarts=restarts, is_replacement=is_failure, freed_at=self.now)
            case Wait() | GiveUp():
                return False
        return True

    def change(self, slot, **fields):
        if slot in self.members:
            self.members[slot] = replace(self.members[slot], **fields)

    def happen(self, event, slot, amount):
        match event:
            case "ready" if slot in self.members and self.members[slot].state is State.STARTING:
                self.change(slot, is_ready=True)
            case "confirms" if slot in self.members and self.members[slot].state is State.SYNCING:
                self.change(slot, version=self.version - (amount % 2))
            case "publish":
                self.version += 1
                serving = [m.slot for m in self.members.values() if m.state is State.SERVING]
                for each in serving:
                    self.change(each, version=self.version)
            case "dies":
                self.change(slot, death="killed")
            case "notice":
                self.change(slot, leaves_at=self.now + amount)
            case "groups" if slot in self.members and self.members[slot].state is State.SERVING:
                self.change(slot, num_groups=amount, progress_at=self.now)
            case "finishes":
                self.change(slot, num_groups=0)
            case "time":
                self.now += 10 * amount
            case "scale":
                low = 1 + amount % 3
                self.desired = Range(minimum=low, maximum=low + slot)


EVENTS = st.sampled_from(
    ["ready", "confirms", "publish", "dies", "notice", "groups", "finishes", "time", "scale", "ready", "confirms"]
)


@settings(deadline=None)
@given(st.lists(st.tuples(EVENTS, st.integers(0, 3), st.integers(0, 9)), max_size=60), st.integers(1, 4))
def test_whatever_happens_the_fleet_keeps_its_bounds_and_serves_the_current_version(events, maximum):
    world = World(Range(minimum=1, maximum=maximum))
    world.settle()
    for event, slot, amount in events:
        world.happen(event, slot, amount)
        too_many = len(world.members) - world.desired.maximum
        world.settle()
        assert len(world.members) - world.desired.maximum <= max(too_many, 0)
        for each in world.members.values():
            assert each.death is None, "no dead member stays"
            if each.state is State.SERVING:
                assert each.version == world.version
    # Left alone for a while, every slot is filled or its budget is spent.
    world.now += POLICY.restart_window_s + MAX_PAUSE_S
    for slot in list(world.members):
        world.happen("finishes", slot, 0)
    world.settle()
    world.now += MAX_PAUSE_S
    world.settle()
    assert len(world.members) == world.desired.maximum
