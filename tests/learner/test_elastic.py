"""Decisions about ranks that come and go, over drawn observations."""

from hypothesis import given
from hypothesis import strategies as st

from configs.ranges import Range
from learner.elastic.decisions import (
    FIRST_FACTOR,
    MAX_ATTEMPTS,
    Beat,
    Form,
    GiveUp,
    Go,
    Held,
    Observation,
    Wait,
    decide,
    holder_node,
    newest_whole,
    wedged,
)

MEMBERS = st.lists(st.integers(0, 5), unique=True).map(tuple)
RANGES = st.tuples(st.integers(1, 4), st.integers(0, 3)).map(lambda pair: Range(minimum=pair[0], maximum=sum(pair)))


@st.composite
def observations(draw):
    up = draw(MEMBERS)
    serving = tuple(draw(st.lists(st.sampled_from(up), unique=True))) if up else ()
    return Observation(
        up=up,
        serving=serving,
        desired=draw(RANGES),
        is_sound=bool(serving) and draw(st.booleans()),
        has_state=draw(st.booleans()),
        num_attempts=draw(st.integers(0, MAX_ATTEMPTS + 1)),
    )


@given(observations())
def test_a_group_has_members_that_are_up_in_a_number_that_is_wanted_and_a_state_to_read(seen):
    decision = decide(seen)
    if isinstance(decision, Form):
        assert set(decision.members) <= set(seen.up)
        assert len(set(decision.members)) == len(decision.members)
        assert len(decision.members) in seen.desired
        assert seen.has_state


@given(observations())
def test_a_sound_group_is_not_disturbed_but_for_another_size(seen):
    decision = decide(seen)
    if seen.is_sound:
        assert isinstance(decision, Go | Form)
        if isinstance(decision, Form):
            assert len(decision.members) != len(seen.serving)


@given(observations())
def test_a_group_that_is_not_sound_never_goes_on(seen):
    if not seen.is_sound:
        decision = decide(seen)
        assert not isinstance(decision, Go)
        may_go_on = seen.has_state and seen.num_attempts < MAX_ATTEMPTS
        assert isinstance(decision, GiveUp) != may_go_on
        if isinstance(decision, Wait):
            assert decision.num_missing == seen.desired.minimum - len(seen.up)


@given(observations())
def test_whoever_served_comes_first_and_keeps_his_order(seen):
    decision = decide(seen)
    if isinstance(decision, Form):
        stayed = [member for member in decision.members if member in seen.serving]
        assert stayed == list(decision.members[: len(stayed)])
        assert stayed == [member for member in seen.serving if member in stayed]


PLACES = st.sampled_from(["rank 0", "rank 1", "rank 2", "holder on a", "holder on b"])


@st.composite
def held_shares(draw):
    sizes = draw(st.dictionaries(st.integers(1, 4), st.integers(1, 3)))
    return {
        Held(snapshot=snapshot, index=index, num_shares=size, place=place)
        for snapshot, size in sizes.items()
        for index in range(size)
        for place in draw(st.sets(PLACES))
    }


@given(held_shares(), st.lists(PLACES, unique=True))
def test_a_source_is_the_newest_snapshot_of_which_every_share_lives(held, living):
    def is_whole(snapshot):
        found = [share for share in held if share.snapshot == snapshot]
        alive = {share.index for share in found if share.place in living}
        return bool(found) and alive == set(range(found[0].num_shares))

    whole = [snapshot for snapshot in {share.snapshot for share in held} if is_whole(snapshot)]
    source = newest_whole(held, living)
    if source is None:
        assert not whole
        return
    assert source.snapshot == max(whole)
    for index, place in enumerate(source.places):
        holders = [s.place for s in held if (s.snapshot, s.index) == (source.snapshot, index) and s.place in living]
        assert place == min(holders, key=living.index)


NODES = st.sampled_from("abcd")


@given(NODES, st.lists(NODES), st.lists(NODES, unique=True))
def test_a_copy_lies_on_another_node_where_there_is_one(own, rank_nodes, others):
    chosen = holder_node(own, rank_nodes, others)
    is_alone = not (set(rank_nodes) | set(others)) - {own}
    assert (chosen == own) == is_alone


@given(st.lists(NODES, unique=True, min_size=2))
def test_ranks_of_different_nodes_hold_for_one_another(nodes):
    assert sorted(holder_node(node, nodes, nodes) for node in nodes) == sorted(nodes)


BEATS = st.dictionaries(
    st.integers(0, 4),
    st.builds(
        Beat,
        answered_at=st.sampled_from([999.0] * 9 + [950.0]),
        num_passes=st.integers(0, 9),
        moved_at=st.sampled_from([0.0, 0.0, 950.0, 999.0]),
    ),
    min_size=1,
)


@given(BEATS, st.booleans(), st.booleans())
def test_a_rank_is_killed_if_it_is_silent_or_behind_when_nobody_moves(beats, must_move, is_first):
    now, timeout_s = 1000.0, 20.0
    working = list(beats) if must_move else []
    found = wedged(beats, working, now=now, timeout_s=timeout_s, is_first=is_first)
    silent = {member for member, beat in beats.items() if now - beat.answered_at > timeout_s}
    if silent:
        assert set(found) == silent
        return
    patience_s = timeout_s * (FIRST_FACTOR if is_first else 1.0)
    if must_move and all(now - beat.moved_at > patience_s for beat in beats.values()):
        behind = min(beat.num_passes for beat in beats.values())
        assert set(found) == {member for member, beat in beats.items() if beat.num_passes == behind}
    else:
        assert not found
