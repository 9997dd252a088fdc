"""What a large fleet costs the driver; `tests.bench.fleet_scale` measures a thousand workers."""

import asyncio
import logging

from tests.bench.fleet_scale import measure
from tests.virtual_time import VirtualLoop


def measured(num_workers):
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(measure(num_workers, groups_per_worker=4))


def test_a_fleet_costs_the_driver_a_hundredth_of_a_step_and_the_same_messages_per_group(caplog):
    caplog.set_level(logging.ERROR)
    small, large = measured(10), measured(300)
    assert large["reconcile_share"] + large["routing_share"] < 0.01
    assert abs(large["messages_per_group"] - small["messages_per_group"]) < 0.1
    assert large["messages_per_group"] < 1.5
