"""The rollout fleet on a Ray of three nodes, with scripted engines: what dies, hangs or leaves is replaced.

Recovery times are printed: `pytest -n 0 -s -m "slow or not slow" tests/faults/test_fleet_faults.py`.
"""

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.errors import WeightSyncError
from actors.fleet.pool import RolloutPool
from cluster.runtime import nodes, starting
from cluster.runtime.members import Members
from cluster.runtime.placement import Placement, Resources, actor_options
from cluster.runtime.ranks import FetchedViews
from cluster.runtime.seats import policy_of
from cluster.runtime.starting import WorkerStarter
from cluster.runtime.workers import RayWorker
from cluster.weights import WeightChannel
from configs.ranges import Range
from configs.schema import Config, RolloutConfig
from learner.batches.pictures import Picture
from tests.actors.fleet.test_pool import request
from tests.fakes import FakeWeightSource
from tests.faults.scripted import RowReader, ScriptedSpare, ScriptedWorker

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]

QUICK_DEATHS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 200,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}
"""A lost node is seen in 0.6 s, not in 14 s. A busy one has longer to answer."""
STORE_BYTES = 100_000_000
GROUP_S = ScriptedWorker.group_s
BUCKET_S, NUM_BUCKETS = 0.3, 4
FREE_S = 30.0
CONFIG = Config(rollout=RolloutConfig(progress_timeout_s=4.0, drain_timeout_s=5.0, max_restarts=10))


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        patch.setattr(starting, "RolloutWorker", ScriptedWorker)
        patch.setattr(starting, "SpareWorker", ScriptedSpare)
        head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        found = Cluster(initialize_head=True, head_node_args={**head, "_system_config": QUICK_DEATHS})
        ray.init(address=found.address, log_to_driver=False)
        yield found
        ray.shutdown()
        found.shutdown()


def add_node(cluster):
    """A node with room for one member."""
    return cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)


@pytest.fixture
def two_nodes(cluster):
    """As many, whatever was lost before, and both free: members of an earlier test end a little after it."""
    while len(cluster.worker_nodes) < 2:
        add_node(cluster)
    while len(cluster.worker_nodes) > 2:
        cluster.remove_node(max(cluster.worker_nodes, key=id), allow_graceful=False)
    deadline = time.monotonic() + FREE_S
    while ray.available_resources().get("CPU", 0) != 2:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.1)
    return sorted(cluster.worker_nodes, key=id)


class Fleet:
    def __init__(self, size, source, num_spares):
        self.events, self.workers, self.size, self.source = [], [], size, source
        self.pool = RolloutPool(max_groups_in_flight=2, group_timeout_s=60.0)
        self.channel = WeightChannel(source, self.pool, timeout_s=10.0)
        placement = Placement(worker=Resources(num_cpus=1.0, num_gpus=0), rank=Resources(num_cpus=0, num_gpus=0))
        create = WorkerStarter(replace(CONFIG, rollout=replace(CONFIG.rollout, num_spares=num_spares)), placement)

        def start(slot, attempt):
            self.workers.append(create(slot, attempt))
            return self.workers[-1]

        self.members = Members(
            self.pool,
            self.channel,
            start,
            policy_of(CONFIG.rollout),
            desired=lambda: self.size,
            emit=self.tell,
            look=nodes.Lookout(),
            on_close=create.close,
        )

    def tell(self, event):
        print(f"{time.monotonic():.1f} {event.line()}", flush=True)
        self.events.append(event)

    def kinds(self):
        return [event.kind for event in self.events]

    async def serving(self, number, within_s=40.0):
        """Wait until so many serve; returns the seconds."""
        started = time.monotonic()
        async with asyncio.timeout(within_s):
            while [view.state for view in self.members.members()].count("serving") != number:
                await asyncio.sleep(0.05)
        return time.monotonic() - started


@asynccontextmanager
async def fleet(minimum, maximum, source=None, num_spares=0):
    run = Fleet(Range(minimum=minimum, maximum=maximum), source or FakeWeightSource(keeps_last=True), num_spares)
    try:
        await run.members.up()
        await run.channel.publish()
        await run.serving(minimum)
        yield run
    finally:
        await run.members.close()
        for worker in run.workers:
            worker.kill()


async def pid_of(worker: RayWorker):
    return await worker._actor.pid.remote()


async def gone(pid, within_s=10.0):
    async with asyncio.timeout(within_s):
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.05)


async def fail_and_recover(run, how):
    """Make the first member fail under load; every group is played, and the member is replaced."""
    victim = run.workers[-1] if len(run.workers) > 2 else run.workers[0]
    pid, num_joins = await pid_of(victim), run.kinds().count("join")
    if how == "wedged":
        await victim._actor.wedge.remote()
    groups = [asyncio.create_task(run.pool.play(request(row))) for row in range(6)]
    await asyncio.sleep(GROUP_S / 2)
    failed_at = time.monotonic()
    if how != "wedged":
        os.kill(pid, getattr(signal, how))
    async with asyncio.timeout(40):
        while run.kinds().count("join") == num_joins:
            await asyncio.sleep(0.05)
    print(f"{how}: replaced after {time.monotonic() - failed_at:.1f} s")
    played = await asyncio.gather(*groups)
    assert sorted(group.ref.row for group, _ in played) == list(range(6))
    await gone(pid)
    assert {view.version for view in run.members.members()} == {0}


def test_a_member_that_is_killed_costs_no_group_keeps_nothing_and_is_replaced(two_nodes):
    async def check():
        async with fleet(2, 2) as run:
            await fail_and_recover(run, "SIGKILL")
            assert "wedged" not in run.kinds()

    asyncio.run(check())


async def standing_by(number, within_s=30.0):
    """Process ids of the spares, once there are so many."""
    async with asyncio.timeout(within_s):
        while True:
            titles = {each.pid: " ".join(each.info["cmdline"] or []) for each in psutil.process_iter(["cmdline"])}
            found = {pid for pid, title in titles.items() if title.startswith(f"ray::{ScriptedSpare.__name__}")}
            if len(found) == number:
                return found
            await asyncio.sleep(0.1)


def test_a_spare_takes_the_place_of_a_lost_member_and_another_one_stands_by(two_nodes):
    async def check():
        async with fleet(1, 1, num_spares=1) as run:
            (spare,) = await standing_by(1)
            await fail_and_recover(run, "SIGKILL")
            assert await pid_of(run.workers[-1]) == spare
            assert spare in await standing_by(2)
        assert not await standing_by(0)

    asyncio.run(check())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["wedged", "SIGTERM", "SIGSTOP"])
def test_so_is_a_member_that_is_wedged_asked_to_end_or_stands_still(two_nodes, how):
    async def check():
        async with fleet(2, 2) as run:
            await fail_and_recover(run, how)
            assert run.kinds().count("wedged") == (how != "SIGTERM")

    asyncio.run(check())


@pytest.mark.slow
def test_a_node_that_is_about_to_be_preempted_gets_no_more_groups_and_its_member_leaves(cluster, two_nodes):
    async def check():
        async with fleet(2, 2) as run:
            groups = [asyncio.create_task(run.pool.play(request(row))) for row in range(6)]
            await asyncio.sleep(GROUP_S / 2)
            reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
            in_a_minute = int((time.time() + 60) * 1000)
            gcs = ray._private.worker.global_worker.gcs_client
            assert gcs.drain_node(two_nodes[0].node_id, reason, "spot", in_a_minute)[0]
            async with asyncio.timeout(30):
                while "leave" not in run.kinds():
                    await asyncio.sleep(0.05)
            assert run.kinds()[2:4] == ["preempted", "leave"]
            await asyncio.gather(*groups)
            assert run.pool.num_workers == 1

    asyncio.run(check())
    cluster.remove_node(two_nodes[0], allow_graceful=False)


class Rank:
    """Takes the pictures of an update as a learner's rank does."""

    def learn(self, pictures):
        views = FetchedViews(pictures, RowReader(), patience_s=10.0)
        return [int(views[number][0, 0, 0]) for number in range(len(pictures))]


def test_a_node_lost_between_play_and_update_costs_no_group_and_a_new_node_is_used(cluster, two_nodes):
    async def check():
        elsewhere = NodeAffinitySchedulingStrategy(node_id=cluster.head_node.node_id, soft=False)
        rank = ray.remote(Rank).options(num_cpus=0, scheduling_strategy=elsewhere).remote()
        async with fleet(2, 2) as run:
            played = await asyncio.gather(*(run.pool.play(request(row)) for row in range(4)))
            lost_at = time.monotonic()
            cluster.remove_node(two_nodes[0], allow_graceful=False)
            pictures = [
                Picture(handle=image, ref=group.ref, full_size=(600, 600), image_sha256="") for group, image in played
            ]
            assert await rank.learn.remote(pictures) == list(range(4))
            print(f"all pictures after {time.monotonic() - lost_at:.1f} s")
            async with asyncio.timeout(20):
                while "pending" not in run.kinds():  # the replacement has no room
                    await asyncio.sleep(0.1)
            assert [view.node for view in run.members.members()].count(None) == 1
            add_node(cluster)  # here: Ray sets signal handlers, which only the main thread may
            print(f"joined {await run.serving(2):.1f} s after a node came")
            assert len({view.node for view in run.members.members()}) == 2
        ray.kill(rank)

    asyncio.run(check())


class Located:
    def node(self):
        return ray.get_runtime_context().get_node_id()


def test_the_only_worker_and_the_only_rank_are_on_two_nodes_where_there_are_two(two_nodes):
    options = actor_options(Resources(num_cpus=0.5, num_gpus=0), {})
    pair = [ray.remote(Located).options(**options).remote() for _ in range(2)]
    assert len(set(ray.get([actor.node.remote() for actor in pair], timeout=60))) == 2
    for actor in pair:
        ray.kill(actor)


class Sender:
    def read(self, version):
        time.sleep(BUCKET_S)
        return np.full(1000, version)


class BucketSource(FakeWeightSource):
    """A learner whose buckets go through the object store, one after the other."""

    def __init__(self):
        super().__init__(keeps_last=True)
        self.starts_again = True
        self._start()

    def _start(self):
        self.sender = ray.remote(Sender).options(num_cpus=0).remote()

    async def open_weights(self, num_receivers):
        link = await super().open_weights(num_receivers)
        return replace(link, settings={**link.settings, "through_store": True})

    async def send_weights(self):
        sent = await super().send_weights()
        return replace(sent, offer=replace(sent.offer, num_buckets=NUM_BUCKETS))

    def read_weights(self, bucket):
        return self.sender.read.remote(self.version)

    async def close_weights(self):
        if self.starts_again:
            self._start()


def test_whoever_dies_in_a_sync_every_engine_is_wholly_old_or_wholly_new(two_nodes):
    async def check():
        source = BucketSource()
        async with fleet(2, 2, source) as run:

            async def publish(version, kill):
                source.version = version
                publishing = asyncio.create_task(run.channel.publish())
                await asyncio.sleep(1.5 * BUCKET_S)
                await kill()
                await publishing

            async def kill_sender():
                ray.kill(source.sender)

            async def kill_receiver():
                os.kill(await pid_of(run.workers[0]), signal.SIGKILL)

            async def held(workers):
                return [await worker._actor.held.remote() for worker in workers]

            source.starts_again = False
            with pytest.raises(WeightSyncError, match=r"the learner: no bucket for .*: ActorDiedError"):
                await publish(1, kill_sender)
            assert await held(run.workers) == [(0, (0,) * NUM_BUCKETS)] * 2
            source.starts_again = True
            await source.close_weights()
            await publish(2, kill_sender)
            assert await held(run.workers) == [(2, (2,) * NUM_BUCKETS)] * 2
            assert "leave" not in run.kinds(), "no receiver was blamed"
            await publish(3, kill_receiver)
            await run.serving(2)
            assert await held(run.workers[1:]) == [(3, (3,) * NUM_BUCKETS)] * 2

    asyncio.run(check())


def test_a_joiner_whose_sync_is_slow_never_serves_an_old_version(two_nodes):
    async def check():
        async with fleet(1, 1) as run:
            run.size = Range(minimum=1, maximum=2)
            async with asyncio.timeout(20):
                while len(run.workers) < 2:
                    await asyncio.sleep(0.01)
            await run.workers[1]._actor.delay_next_version.remote(3.0)
            async with asyncio.timeout(20):
                while [view.state for view in run.members.members()] != ["serving", "syncing"]:
                    await asyncio.sleep(0.01)
            run.source.version = 1
            await run.channel.publish()
            groups = await asyncio.gather(*(run.pool.play(request(row)) for row in range(4)))
            assert {
                span.version for group, _ in groups for e in group.episodes for span in e.turns[0].version_spans
            } == {1}
            await run.serving(2)
            joins = [event.detail for event in run.events if event.kind == "join"]
            assert joins == ["serves version 0", "serves version 1"]

    asyncio.run(check())


def test_this_cluster_does_not_grow_by_itself(cluster):
    assert not nodes.cluster_size().has_autoscaler
