"""`visionthink train`, and after it the same updates by one undisturbed rank: what `tests.bench.elastic` starts.

    python -m tests.bench.elastic_driver FILE [section.key=value ...]

Writes FILE, unless it is `-`: for each update the loss and the gradient norm that one rank of this process computes on
the groups that the run's learner got, in its order, from the model's files on, and how far its last weights are from
the run's. An engine draws tokens from a random stream of its own, so that runs with other workers play other episodes:
only on the same groups can two learners be equal.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer
from safetensors.numpy import load_file

from actors.images import ViewSpec
from cluster.cli import app
from configs.load import load_config
from configs.paths import resolve_paths
from configs.schema import Config
from configs.seeds import derive_seed
from learner.batches.batch import TrainingGroup
from learner.batches.pictures import PictureReader, pictures_of
from learner.batches.plan import plan_mini_batches
from learner.group import LearnerGroup
from learner.memory import learns_in_rounds

Part = Sequence[TrainingGroup]
COMPARED = ("learner/loss", "learner/grad_norm")


def record_updates() -> list[list[Part]]:
    """Of every learner of this process: the parts of its updates, as they are given to it."""
    updates: list[list[Part]] = []
    begin, learn = LearnerGroup.begin, LearnerGroup.learn

    def begin_recorded(self: LearnerGroup) -> None:
        updates.append([])
        begin(self)

    async def learn_recorded(self: LearnerGroup, groups: Part) -> None:
        updates[-1].append(groups)
        await learn(self, groups)

    LearnerGroup.begin, LearnerGroup.learn = begin_recorded, learn_recorded  # type: ignore[method-assign]
    return updates


def replay(config: Config, updates: Sequence[Sequence[Part]]) -> dict[str, Any]:
    """Figures of each update by one rank, None where nothing was learned, and the difference of the last weights."""
    from learner.worker import LearnerRank

    model, learner = config.model, config.learner
    reader = PictureReader(ViewSpec.from_model(model), config.data)
    rank = LearnerRank(
        learner, model, seed=derive_seed(config.run.seed, "learner"), temperature=config.rollout.temperature
    )
    rank.form(0, 1, "127.0.0.1", rank.rendezvous()[1])
    steps: list[dict[str, float] | None] = []
    for parts in updates:
        num_before = 0
        for groups in parts:
            (plan,) = plan_mini_batches(
                groups,
                prompts_per_mini_batch=learner.prompts_per_mini_batch,
                num_ranks=1,
                max_tokens_per_micro_batch=learner.max_tokens_per_micro_batch,
                max_tokens_per_vision_pass=learner.max_tokens_per_vision_pass,
                num_before=num_before % learner.prompts_per_mini_batch,
                in_rounds=learns_in_rounds(learner),
            )
            if not num_before:
                rank.begin()
            rank.learn(plan, [reader.read(picture) for picture in pictures_of(plan, groups)])
            num_before += len(groups)
        metrics = rank.finish().metrics if num_before else None
        steps.append({name: metrics[name] for name in COMPARED} if metrics else None)
    with tempfile.TemporaryDirectory() as folder:
        rank.export_hf(folder)
        run = Path(config.run.dir) / config.run.name / "export"
        found, expected = (load_file(each / "model.safetensors") for each in (run, Path(folder)))
    rank.shutdown()
    assert found.keys() == expected.keys()
    off = max(float(np.abs(found[name] - expected[name]).max()) for name in expected)
    return {"steps": steps, "weight_difference": off}


def main() -> None:
    out, overrides = sys.argv[1], sys.argv[2:]
    updates = record_updates()
    if failed := typer.main.get_command(app)(["train", "--json", *overrides], standalone_mode=False):
        sys.exit(failed)
    if out != "-":
        config = resolve_paths(load_config("tiny", overrides))
        Path(out).write_text(json.dumps(replay(config, updates)), encoding="utf-8")


if __name__ == "__main__":
    main()
