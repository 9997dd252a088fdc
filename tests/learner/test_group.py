import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from actors.errors import CheckpointError, LearnerError
from actors.weights.layout import SentWeights, TensorSpec, WeightLink, WeightOffer, lay_out
from configs.learner import LearnerConfig
from learner.batches.plan import RankPlan
from learner.group import LearnerGroup
from learner.update import UpdateReport
from tests.learner.builders import make_group

LINK = WeightLink(
    transport="shared_memory",
    is_rendezvous=False,
    layout=lay_out([TensorSpec(name="w", dtype="float32", shape=(2, 3))], bucket_bytes=4096),
    settings={"file": "/proc/77/fd/3"},
    timeout_s=1.0,
)
SENT = SentWeights(offer=WeightOffer(version=7, num_buckets=1, delivery={}), digests=(1,), seconds=0.0)


class FakeRank:
    """`learner.elastic.remote.Rank`: records its calls, and hangs or fails where it is told to."""

    def __init__(self, number):
        self.rank = number
        self.calls = []
        self.failure = None
        self.hangs = False

    async def up(self):
        return "node"

    async def progress(self):
        return len(self.calls)

    async def abort(self):
        pass

    async def kill(self):
        pass

    async def leave(self):
        pass

    async def keep_snapshot(self, snapshot, *, oldest):
        pass

    def share(self, snapshot, index):
        return (snapshot, index)

    header = share

    async def rendezvous(self):
        return await self._answer("10.0.0.1", 1234, call=("rendezvous",))

    async def form(self, rank, world_size, address, port):
        await self._answer(call=("form", rank, world_size, address, port))

    async def begin(self):
        await self._answer(call=("begin",))

    async def learn(self, plan, pictures):
        return (await self._answer(6, call=("learn", plan, pictures)))[0]

    async def finish(self):
        report = UpdateReport(start_version=6, optimizer_step=7, num_tokens=9, seconds=0.1, metrics={"a": 1.0})
        return (await self._answer(report, call=("finish",)))[0]

    async def open_weights(self, num_receivers):
        return (await self._answer(LINK, call=("open_weights", num_receivers)))[0]

    async def join_weights(self):
        await self._answer(call=("join_weights",))

    async def send_weights(self):
        return (await self._answer(SENT if self.rank == 0 else None, call=("send_weights",)))[0]

    async def release_weights(self):
        await self._answer(call=("release_weights",))

    async def close_weights(self):
        await self._answer(call=("close_weights",))

    def read_weights(self, bucket):
        return (self.rank, "bucket", bucket)

    async def export_hf(self, folder):
        await self._answer(call=("export_hf", folder))

    async def snapshot(self):
        await self._answer(call=("snapshot",))

    async def begin_save(self, url, folder, optimizer_step):
        await self._answer(call=("begin_save", url, folder, optimizer_step))

    async def finish_save(self, timeout_s):
        return (await self._answer(f"share {self.rank}", call=("finish_save", timeout_s)))[0]

    async def load(self, url, folder):
        return (await self._answer(5, call=("load", url, folder)))[0]

    async def shutdown(self):
        await self._answer(call=("shutdown",))

    async def _answer(self, *answer, call):
        self.calls.append(call)
        await asyncio.sleep(0)
        if self.hangs:
            await asyncio.Event().wait()
        if self.failure:
            raise self.failure
        return answer


class FakeHolder:
    async def hold(self, snapshot, index, share, *, oldest):
        pass

    async def answers(self):
        return True


@pytest.fixture
def ranks():
    return []


async def started(ranks, **settings):
    def start_rank(number):
        ranks.append(FakeRank(number))
        return ranks[-1]

    config = LearnerConfig(num_ranks=2, prompts_per_mini_batch=4, **settings)
    group = LearnerGroup(config, start_rank, lambda node: FakeHolder())
    await group.start()
    return group


async def test_ranks_meet_at_an_address_of_the_first(ranks):
    await started(ranks)
    assert ranks[0].calls == [("rendezvous",), ("form", 0, 2, "10.0.0.1", 1234)]
    assert ranks[1].calls == [("form", 1, 2, "10.0.0.1", 1234)]


async def test_each_rank_gets_its_plan_and_the_pictures_of_that_plan_unresolved(ranks):
    group = await started(ranks)
    groups = [make_group(seed) for seed in range(4)]
    report = await group.update([replace(each, image=f"image {i}") for i, each in enumerate(groups)])
    assert report.optimizer_step == group.version == 7
    for rank in ranks:
        begun, (method, plan, pictures), finished = rank.calls[-3:]
        assert (begun, method, finished) == (("begin",), "learn", ("finish",))
        assert isinstance(plan, RankPlan)
        assert [picture.handle for picture in pictures] == [f"image {i}" for i in plan.image_groups]
        assert [picture.ref for picture in pictures] == [groups[i].played.ref for i in plan.image_groups]


async def test_an_update_without_groups_asks_no_rank_and_changes_nothing(ranks):
    group = await started(ranks)
    await group.load("/checkpoints", "step-00000005")
    num_calls = [len(rank.calls) for rank in ranks]
    report = await group.update([])
    assert (report.start_version, report.optimizer_step, report.num_tokens) == (5, 5, 0)
    assert [len(rank.calls) for rank in ranks] == num_calls


async def test_an_update_in_parts_begins_once_and_fills_mini_batches_of_the_configured_size(ranks):
    group = await started(ranks)
    groups = [make_group(seed) for seed in range(7)]
    for _ in range(2):
        group.begin()
        await group.learn(groups[:3])
        assert group.version == 6, "as the ranks say"
        await group.learn(groups[3:])
        assert (await group.finish()).optimizer_step == 7
    for rank in ranks:
        calls = rank.calls[-8:]
        assert [call[0] for call in calls] == ["begin", "learn", "learn", "finish"] * 2
        first, second = (call[1] for call in calls[1:3])
        assert (len(first.mini_batches), first.is_open) == (1, True)
        assert (len(second.mini_batches), second.is_open) == (2, True), "one completes the first four, three are left"
        assert [call[1].image_groups for call in calls[5:7]] == [first.image_groups, second.image_groups]


async def test_an_update_begins_anew_after_one_that_was_not_finished(ranks):
    group = await started(ranks)
    group.begin()
    await group.learn([make_group(1)])
    await group.update([make_group(seed) for seed in range(4)])
    for rank in ranks:
        assert [call[0] for call in rank.calls[-5:]] == ["begin", "learn", "begin", "learn", "finish"]
        assert not rank.calls[-2][1].is_open, "four fill a mini-batch: the one before does not count"


async def test_every_rank_takes_part_in_sending_and_the_first_says_what_was_sent(ranks):
    group = await started(ranks)
    await group.open_weights(1)
    assert await group.send_weights() == SENT
    assert [rank.calls[-1] for rank in ranks] == [("send_weights",)] * 2


async def test_only_the_first_rank_knows_the_receivers(ranks):
    group = await started(ranks)
    num_calls = len(ranks[1].calls)
    assert await group.open_weights(3) == LINK
    await group.join_weights()
    assert group.read_weights(2) == (0, "bucket", 2)
    await group.release_weights()
    await group.close_weights()
    assert ranks[0].calls[-4:] == [("open_weights", 3), ("join_weights",), ("release_weights",), ("close_weights",)]
    assert len(ranks[1].calls) == num_calls


async def test_every_rank_exports_to_an_absolute_path(ranks):
    group = await started(ranks)
    await group.export_hf(Path("runs/x"))
    assert all(rank.calls[-1] == ("export_hf", str(Path("runs/x").resolve())) for rank in ranks)


async def test_every_rank_saves_its_part(ranks):
    group = await started(ranks)
    await group.snapshot()
    await group.begin_save("s3://runs", "step-00000005", 7)
    assert await group.finish_save(3.0) == ["share 0", "share 1"]
    for rank in ranks:
        assert rank.calls[-3:] == [
            ("snapshot",),
            ("begin_save", "s3://runs", "step-00000005", 7),
            ("finish_save", 3.0),
        ]


async def test_a_failed_save_ends_only_when_no_rank_writes_any_more(ranks):
    group = await started(ranks)
    written = asyncio.Event()

    async def slowly(timeout_s):
        await asyncio.sleep(0.05)
        written.set()

    ranks[0].failure = CheckpointError("No space left on device")
    ranks[1].finish_save = slowly
    with pytest.raises(CheckpointError, match="No space left"):
        await group.finish_save(3.0)
    assert written.is_set()


async def test_an_error_of_one_rank_is_the_error_of_the_update(ranks):
    group = await started(ranks)
    ranks[0].hangs = True
    ranks[1].failure = LearnerError("rank 1 is gone")
    with pytest.raises(LearnerError, match="rank 1 is gone"):
        await group.update([make_group(1)])


FIRST_RANK_ALONE = ("open_weights", "join_weights", "release_weights", "close_weights")


@pytest.mark.parametrize(
    "method",
    ["update", "learn", "send_weights", "snapshot", "begin_save", "load", "export_hf", "shutdown", *FIRST_RANK_ALONE],
)
async def test_every_wait_has_a_deadline(ranks, method):
    group = await started(ranks, update_timeout_s=0.05)
    group.begin()
    if method != "open_weights":
        await group.open_weights(1)
    ranks[0 if method in FIRST_RANK_ALONE else 1].hangs = True
    given = {
        **{name: [[make_group(1)]] for name in ("update", "learn")},
        "open_weights": [1],
        "export_hf": [Path("x")],
        "load": ["url", "folder"],
        "begin_save": ["url", "folder", 7],
    }.get(method, [])
    what = "begin" if method in ("update", "learn") else method  # which comes first
    with pytest.raises((LearnerError, CheckpointError), match=rf"{what} took more than 0\.05 s"):
        await getattr(group, method)(*given)
