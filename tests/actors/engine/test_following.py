"""A version that is taken while the learner still writes it: wholly new, or the one in use stays."""

import subprocess
import sys
import threading
import time

import pytest
import torch

from actors.weights import buckets, digest
from learner.sync.sender import WeightSender
from tests.actors.engine.received import CPU, SHAPES, connect, drawn, failure_of, follow, held, holds, receive

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("root")]


class Sending:
    """A version on its way, by a thread of the learner's: each tensor goes when it is let through."""

    def __init__(self, sender, version, seed):
        self.gates = {name: threading.Event() for name in SHAPES}
        self.sent = None
        self._thread = threading.Thread(target=self._send, args=(sender, version, seed))
        self._thread.start()

    def _send(self, sender, version, seed):
        def parameters():
            for name, tensor in drawn(seed).items():
                assert self.gates[name].wait(10)
                yield name, tensor

        self.sent = sender.send(parameters(), version)

    def let(self, *names):
        for name in names or self.gates:
            self.gates[name].set()

    def ended(self):
        self.let()
        self._thread.join(10)
        return self.sent


def arrived(extension):
    """Names of the tensors of version 1, of which something is where the next version goes."""
    views = extension.weight_transfer_engine._views
    expected = drawn(1)
    return [name for name, spare in views._spare.items() if torch.equal(spare, expected[name])]


def until(condition):
    give_up_at = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.001)


@pytest.mark.parametrize("cached_bytes", [64, 2 << 20])
def test_a_version_is_copied_while_it_is_written_and_the_one_in_use_stays_until_the_commit(
    extension, sender, monkeypatch, cached_bytes
):
    monkeypatch.setattr(buckets, "CACHED_BYTES", cached_bytes)
    connect(extension, sender)
    receive(extension, first := sender.send(drawn(0).items(), 0))
    assert extension.commit_weights(list(first.digests)) == ""
    follow(extension, 1)
    sending = Sending(sender, 1, seed=1)
    assert not extension.weights_arrived()[0]
    sending.let("a.weight")
    until(lambda: arrived(extension) == ["a.weight"])
    assert not extension.weights_arrived()[0]
    assert holds(extension, drawn(0))
    sent = sending.ended()
    assert failure_of(extension) == ""
    assert holds(extension, drawn(0))
    assert extension.commit_weights(list(sent.digests)) == ""
    assert holds(extension, drawn(1))


def test_versions_are_followed_one_after_the_other(extension, sender):
    connect(extension, sender)
    for number in range(5):
        follow(extension, number)
        sent = sender.send(drawn(number).items(), number)
        assert failure_of(extension) == ""
        assert extension.commit_weights(list(sent.digests)) == ""
        sender.release()
        assert holds(extension, drawn(number))


def test_the_same_version_sent_again_is_not_taken_from_the_file_of_the_first_time(extension, sender):
    connect(extension, sender)
    sender.send(drawn(0).items(), 5)
    sender.release()
    follow(extension, 5)
    time.sleep(0.05)
    assert not extension.weights_arrived()[0]
    sent = sender.send(drawn(1).items(), 5)
    assert failure_of(extension) == ""
    assert extension.commit_weights(list(sent.digests)) == ""
    assert holds(extension, drawn(1))


def test_a_bit_that_flips_between_sender_and_receiver_is_found(extension, sender, monkeypatch):
    monkeypatch.setattr(digest, "CACHED_BYTES", digest.ROW_BYTES)
    connect(extension, sender)
    receive(extension, first := sender.send(drawn(0).items(), 0))
    assert extension.commit_weights(list(first.digests)) == ""
    sending = Sending(sender, 1, seed=1)
    sending.let("a.weight")
    until(lambda: int(sender._end._progress[sender._end._current]._words[1]) == 6000)
    sender.read(0)[7] ^= 1
    follow(extension, 1)
    sent = sending.ended()
    assert failure_of(extension) == ""
    problem = extension.commit_weights(list(sent.digests))
    assert problem == "the checksum of bucket 0 differs from what the learner sent"
    assert holds(extension, drawn(0))


def test_several_engines_follow_one_sender(extension, sender):
    from tests.actors.engine.conftest import make_extension

    extensions = [extension, make_extension(), make_extension()]
    link = connect(extension, sender)
    for each in extensions[1:]:
        each.connect_weights(link.layout.to_plain(), link.settings)
        assert failure_of(each) == ""
    for each in extensions:
        follow(each, 1)
    sent = sender.send(drawn(1).items(), 1)
    for each in extensions:
        assert failure_of(each) == ""
        assert each.commit_weights(list(sent.digests)) == ""
        assert holds(each, drawn(1))


def test_leaving_ends_the_waiting_and_the_next_learner_is_followed(extension, sender):
    connect(extension, sender)
    follow(extension, 1)
    assert not extension.weights_arrived()[0]
    extension.disconnect_weights()
    assert failure_of(extension) == "WeightSyncError: left the learner before version 1 was there"
    connect(extension, sender)
    follow(extension, 1)
    sent = sender.send(drawn(1).items(), 1)
    assert failure_of(extension) == ""
    assert extension.commit_weights(list(sent.digests)) == ""
    assert holds(extension, drawn(1))


def test_a_version_that_stops_in_the_middle_fails_in_time(extension, root):
    sender = WeightSender(SHAPES, dtype=torch.float32, device=CPU, bucket_bytes=8192)
    link = sender.open("shared_memory", num_receivers=1, timeout_s=0.2)
    extension.connect_weights(link.layout.to_plain(), link.settings)
    assert failure_of(extension) == ""
    sending = Sending(sender, 1, seed=1)
    sending.let("a.weight")
    follow(extension, 1)
    assert failure_of(extension) == "WeightSyncError: version 1 stopped at byte 6000 within weights.timeout_s=0.2"
    assert not any(tensor.any() for tensor in held(extension).values())
    sending.ended()
    sender.close()


def test_an_engine_on_another_device_takes_each_bucket_when_it_is_whole(extension, sender, monkeypatch):
    monkeypatch.setattr(type(extension.weight_transfer_engine), "_is_read_in_parts", False)
    connect(extension, sender)
    follow(extension, 1)
    sending = Sending(sender, 1, seed=1)
    sending.let("a.weight", "b.weight")
    until(lambda: arrived(extension) == ["a.weight"])
    sent = sending.ended()
    assert failure_of(extension) == ""
    assert extension.commit_weights(list(sent.digests)) == ""
    assert holds(extension, drawn(1))


HALF = """
import sys, time
import torch
from pathlib import Path
from learner.sync import transports
from learner.sync.sender import WeightSender
from tests.actors.engine.received import CPU, SHAPES, drawn
transports.staging_root = lambda: Path(sys.argv[1])
sender = WeightSender(SHAPES, dtype=torch.float32, device=CPU, bucket_bytes=8192)
link = sender.open("shared_memory", num_receivers=1, timeout_s=30)
print(*link.settings["files"], flush=True)
def parameters():
    first, *_ = drawn(1).items()
    yield first
    print("half", flush=True)
    time.sleep(60)
sender.send(parameters(), 1)
"""


def test_a_learner_that_is_killed_in_the_middle_is_noticed_and_the_version_in_use_stays(extension, sender, tmp_path):
    link = connect(extension, sender)
    receive(extension, first := sender.send(drawn(0).items(), 0))
    assert extension.commit_weights(list(first.digests)) == ""
    with subprocess.Popen([sys.executable, "-c", HALF, str(tmp_path)], stdout=subprocess.PIPE, text=True) as learner:
        try:
            assert learner.stdout is not None
            files = learner.stdout.readline().split()
            extension.connect_weights(link.layout.to_plain(), {"files": files, "timeout_s": 30.0})
            assert failure_of(extension) == ""
            follow(extension, 1)
            assert learner.stdout.readline() == "half\n"
            until(lambda: arrived(extension) == ["a.weight"])
        finally:
            learner.kill()
    killed_at = time.monotonic()
    assert failure_of(extension).endswith("cannot be read: the learner is gone")
    assert time.monotonic() - killed_at < 5
    assert holds(extension, drawn(0))
