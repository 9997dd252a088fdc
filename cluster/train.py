"""The main loop.

Look-ahead depth 0 is strictly on-policy; with depth k, rollouts run at most k versions ahead of the learner.
"""

from __future__ import annotations

from cluster.heldout import evaluate
from cluster.launch import Parts
from cluster.lookahead import Lookahead
from cluster.serving.card import write_card
from configs.schema import Config


async def train(config: Config, parts: Parts) -> dict[str, object]:
    """Train the policy of a launched run; returns the summary of the run."""
    fleet, weights, collector, updates, checkpoints, journal = (
        parts.fleet, parts.weights, parts.collector, parts.updates, parts.checkpoints, parts.journal
    )  # fmt: skip
    steps = range(journal.step + 1, config.train.num_steps + 1)
    await weights.publish()  # every engine starts from the learner's weights
    ahead = Lookahead(
        collector.collect, depth=config.train.max_staleness, num_batches=len(steps), allow=collector.allow
    )
    async with collector, ahead:
        for step in steps:
            journal.begin_step()
            async with updates:  # with `learner.stream`, groups are learned from before their batch is whole
                batch = await ahead.take()  # judged groups that have a signal
                if config.engines_sleep:
                    await fleet.rollouts.sleep()  # until the next version
                update = await updates.finish(batch)
            published = await weights.publish()  # version = the learner's optimizer step
            journal.record_step(step, batch, update, published)
            await checkpoints.reached(step, batch.cursor)
            if journal.is_complete:
                break
            if config.train.eval_every and step % config.train.eval_every == 0:
                journal.record_evaluation(await evaluate(fleet, parts.heldout, config, parts.display))
    await checkpoints.save_last()  # whatever happens in the evaluation
    await parts.learner.export_hf(journal.folder / "export")  # first: the evaluation may fail, and can be repeated
    write_card(journal.folder / "export", config, step=journal.step)
    evaluation = await evaluate(fleet, parts.heldout, config, parts.display)
    journal.record_evaluation(evaluation)
    return await journal.finish(evaluation)
