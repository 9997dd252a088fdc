"""The main loop: the whole system on one screen.

Depth 0 of look-ahead is strictly on-policy; with depth k generation runs at most k versions ahead of learning.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from cluster.collect import Collector
from cluster.evaluate import evaluate
from cluster.lookahead import Lookahead
from cluster.run import Run
from configs.schema import Config


async def train(config: Config, launch: Callable[[Config], AbstractAsyncContextManager[Run]]) -> dict[str, object]:
    async with launch(config) as run:  # actors up and restored; torn down on any exit
        await run.publish()  # every engine starts from the learner's weights
        steps = range(run.step + 1, config.train.num_steps + 1)
        depth = config.train.max_staleness
        async with (
            Collector(run, config) as collector,
            Lookahead(collector.collect, depth=depth, num_batches=len(steps), allow=collector.allow) as ahead,
        ):
            for step in steps:
                batch = await ahead.take()  # judged groups that have something to teach
                update = await run.learner.update([group.training for group in batch.trained])
                await run.publish()  # version = the learner's optimizer step
                run.record(step, batch, update)
                if step % config.train.checkpoint_every == 0 or step == config.train.num_steps:
                    await run.save(step, batch)
                if config.train.eval_every and step % config.train.eval_every == 0:
                    run.record_evaluation(step, await evaluate(run, config))
        return await run.finish(await evaluate(run, config))
