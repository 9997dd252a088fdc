"""A run without Ray: one learner rank, scripted groups, real checkpoints.

    python -m tests.cluster.resumable FOLDER NUM_STEPS

It resumes whatever it finds in FOLDER, and at the end prints a digest of the learner's state.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from actors.data.dataset import PromptCursor
from cluster.checkpoints import Checkpoints, DriverParts
from cluster.folders import checkpoints_url
from cluster.identity import Identity
from configs.learner import LearnerConfig
from configs.schema import Config, ModelConfig, RunConfig, TrainConfig
from learner.state.checkpoint import CheckpointFolder
from learner.worker import LearnerRank
from tests.learner.builders import images_of, make_group, plan_of, save_model, small_model

LEARNER = {
    "num_threads": 1,
    "prompts_per_mini_batch": 2,
    "max_tokens_per_micro_batch": 400,
    "kl_coefficient": 0.05,
    "learning_rate": 1e-3,
}


class OneRank:
    """The part of `learner.group.LearnerGroup` that checkpoints need, over a rank of this process."""

    def __init__(self, rank: LearnerRank) -> None:
        self.rank = rank
        self.version = 0

    async def snapshot(self):
        self.rank.snapshot()

    async def begin_save(self, url, folder, version):
        self.rank.begin_save(url, folder, version)

    async def finish_save(self, timeout_s):
        return [await asyncio.to_thread(self.rank.finish_save, timeout_s)]

    async def load(self, url, folder):
        self.version = self.rank.load(url, folder)


def start_rank(model: Path, **settings) -> LearnerRank:
    rank = LearnerRank(
        LearnerConfig(**{**LEARNER, **settings}),
        ModelConfig(path=str(model)),
        rank=0,
        world_size=1,
        seed=0,
        temperature=1.0,
    )
    rank.start(*rank.rendezvous())
    return rank


async def run(folder: Path, num_steps: int, *, model: Path, stop_after: int | None = None, **settings) -> str:
    """Play the run on to its end; with `stop_after` this many steps, then everything is dropped as it stands."""
    learner = OneRank(start_rank(model, **settings))
    prompts = PromptCursor(dataset="none", num_rows=7, seed=3)
    driver = DriverParts(
        identity=Identity(
            dataset="none", chat_template="", model="", prompt="", judge="", packages={}, settings={}, revisions={}
        ),
        prompts=prompts,
        judge_watch=SimpleNamespace(totals=dict, restore=lambda totals: None),
    )
    config = Config(
        run=RunConfig(name="run", dir=str(folder)), train=TrainConfig(num_steps=num_steps, checkpoint_every=3)
    )
    checkpoints = Checkpoints(config, learner, driver, on_event=print, say=print, warn=print)
    ledger = folder / "ledger.jsonl"
    folders = CheckpointFolder(checkpoints_url(config))
    folders.discard_incomplete()
    start = await checkpoints.restore() if folders.list() else 0
    if ledger.exists():
        ledger.write_text("".join(line + "\n" for line in ledger.read_text().splitlines()[:start]))
    for step in range(start + 1, num_steps + 1):
        refs = prompts.take(2)
        noise = int(torch.randint(0, 1000, ()))  # the generators are part of the state
        groups = [make_group(ref.row + 10 * noise) for ref in refs]
        (plan,) = plan_of(groups, prompts=2, budget=400)
        learner.version = learner.rank.update(plan, images_of(plan, groups)).optimizer_step
        with ledger.open("a") as file:
            file.write(json.dumps([step, noise, [ref.uid for ref in refs]]) + "\n")
        await checkpoints.reached(step, prompts.state())
        if step - start == stop_after:
            if checkpoints._save is not None:
                checkpoints._save.cancel()
            return "stopped"
    await checkpoints.save_last()
    share = learner.rank.snapshot()
    return hashlib.sha256(share.state_3N.tobytes() + share.rng["cpu"].tobytes()).hexdigest()


def make_model(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        save_model(folder, small_model())
    return folder


def main() -> None:
    folder = Path(sys.argv[1])
    print(asyncio.run(run(folder, int(sys.argv[2]), model=folder.parent / "model")))


if __name__ == "__main__":
    main()
