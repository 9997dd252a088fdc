"""Who may drive a run: the decision alone, then all interleavings of several drivers over one folder."""

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.runs.claims import NUM_BYTES, RENEW_S, TAKEOVER_S, Claim, ClaimWatch, Held, Seen, Take, Wait

CLAIM = Claim(driver="a", host="node-1", pid=7, machine="m", started=1, since="noon")


def seen(token=3, beat=0, *, pulse="unknown", is_released=False):
    return Seen(token=token, text=replace(CLAIM, beat=beat, is_released=is_released).to_bytes(), pulse=pulse)


@pytest.mark.parametrize(
    ("first", "decision"),
    [
        (None, Take(token=1)),
        (seen(is_released=True), Take(token=4)),
        (seen(pulse="dead"), Take(token=4)),
        (seen(pulse="alive"), Held(owner=str(CLAIM))),
        (seen(), Wait(owner=str(CLAIM))),
        (Seen(token=3, text=b"{half"), Wait(owner="an unknown driver")),
    ],
)
def test_the_first_look_settles_what_it_can(first, decision):
    assert ClaimWatch().decide(first, 100.0) == decision


def test_a_driver_elsewhere_is_replaced_once_it_gave_no_sign_of_life_for_long_enough():
    watch = ClaimWatch()
    assert isinstance(watch.decide(seen(), 100.0), Wait)
    assert isinstance(watch.decide(seen(), 100.0 + TAKEOVER_S - 0.1), Wait)
    assert watch.decide(seen(), 100.0 + TAKEOVER_S) == Take(token=4)


@pytest.mark.parametrize("later", [seen(beat=1), seen(token=4), Seen(token=3, text=b"")])
def test_a_sign_of_life_or_another_successor_means_that_the_run_is_held(later):
    watch = ClaimWatch()
    watch.decide(seen(), 100.0)
    assert watch.decide(later, 101.0) == Held(owner=str(CLAIM))


def test_a_claim_keeps_its_size_and_names_its_owner():
    texts = [replace(CLAIM, beat=beat).to_bytes() for beat in (0, 10**9)]
    assert [len(text) for text in texts] == [NUM_BYTES] * 2
    assert Claim.parse(texts[1]) == replace(CLAIM, beat=10**9)
    assert str(CLAIM) == "the driver on node-1 (pid 7, since noon)"


class Folder:
    """The claims of a run, with the two atomic operations of a file system."""

    def __init__(self):
        self.claims = {}

    def newest(self):
        token = max(self.claims, default=None)
        return None if token is None else Seen(token=token, text=self.claims[token])

    def create(self, token, text):
        if token in self.claims:
            return False
        self.claims[token] = text
        return True


class Driver:
    """Runs as `lease._take` and `Lease` do, one operation of the file system at a time."""

    def __init__(self, name, folder):
        self.claim = replace(CLAIM, driver=name)
        self.folder = folder
        self.watch = ClaimWatch()
        self.steps = self.run()
        self.token = None
        self.state = "looking"

    def run(self):
        decision = Wait(owner="")
        while not isinstance(decision, Held):
            now = yield "look"
            decision = self.watch.decide(self.folder.newest(), now)
            if isinstance(decision, Take):
                yield "create"
                if not self.folder.create(decision.token, self.claim.to_bytes()):
                    continue
                yield "verify"
                if max(self.folder.claims) > decision.token:
                    self.folder.claims.pop(decision.token, None)
                    continue
                self.token, self.state = decision.token, "driving"
                for older in [token for token in self.folder.claims if token < self.token]:
                    yield "prune"
                    self.folder.claims.pop(older, None)
                while max(self.folder.claims) == self.token:  # what `check` asks, with the write that follows
                    yield "write"
                    if self.token in self.folder.claims:
                        self.claim = replace(self.claim, beat=self.claim.beat + 1)
                        self.folder.claims[self.token] = self.claim.to_bytes()
                self.state = "fenced"
                return
        self.state = "refused"


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.5, RENEW_S, TAKEOVER_S + 1])), max_size=120),
)
def test_in_every_interleaving_tokens_rise_and_only_the_newest_driver_goes_on(schedule):
    """Any driver may be cut off between any two operations, for longer than a takeover takes."""
    folder, now = Folder(), 0.0
    drivers = [Driver(str(number), folder) for number in range(4)]
    for driver in drivers:
        next(driver.steps)
    taken = []
    for who, pause in schedule:
        now += pause
        driver, before = drivers[who], drivers[who].token
        newest = max(folder.claims, default=0)
        was_driving = driver.state == "driving"
        with contextlib.suppress(StopIteration):
            driver.steps.send(now)
        if driver.token != before:
            taken.append(driver.token)
        assert max(folder.claims, default=0) >= newest, "the token never falls"
        if was_driving and driver.token < newest:
            assert driver.state == "fenced", "a driver that was replaced finds it out at its next look"
    assert len(set(taken)) == len(taken), "no two drivers have one token"
    assert taken == sorted(taken)


@given(st.lists(st.floats(0.1, TAKEOVER_S / 2), min_size=5, max_size=40))
def test_a_driver_that_gives_signs_of_life_in_time_is_never_replaced(gaps):
    folder, now = Folder(), 0.0
    owner, other = Driver("owner", folder), Driver("other", folder)
    for driver in (owner, other):
        next(driver.steps)
    while owner.state != "driving":
        owner.steps.send(now)
    for gap in gaps:
        now += gap
        owner.steps.send(now)
        if other.state == "looking":
            with contextlib.suppress(StopIteration):
                other.steps.send(now)
    assert (owner.state, other.state) == ("driving", "refused")
