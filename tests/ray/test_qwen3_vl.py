"""A real vLLM engine with a small Qwen3-VL of random weights, beside the same model in PyTorch.

What `test_engine.py` says of the shipped Qwen2.5-VL: weights bit for bit, log-probabilities over two turns.
"""

from dataclasses import replace

import pytest
import ray

from actors.data.dataset import PromptCursor
from actors.data.shapes import make_shapes
from actors.play import PlayRequest
from actors.prompts import load_prompt_style, load_tokenizer
from cluster import launch
from cluster.runtime import starting
from cluster.runtime.placement import place
from configs.paths import ROOT
from configs.schema import Config, DataConfig, ModelConfig, RolloutConfig
from learner.families.lookup import FAMILIES
from learner.tiny import model as tiny
from tests.bench.playing import AskingRenderer
from tests.ray import test_engine as of_any_family
from tests.ray.open_worker import OpenWorker
from tests.ray.test_engine import forbidden_ids, loop, policy, sender, synced  # noqa: F401 - fixtures

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("default"),  # Ray's own, at its start and end
]
FAMILY = FAMILIES["qwen3_vl"]
SIDE = 256
"""Of a full view: 8 x 8 visual tokens of the published models' 32 pixels."""
TURN_TOKENS = 24


class AskingWorker(OpenWorker):
    """Reads half of the replies as a tool call, whatever the untrained model said, and none as cut off."""

    def __init__(self, *, model, **settings):
        super().__init__(model=model, **settings)
        self._renderer = AskingRenderer(load_tokenizer(model.path), load_prompt_style(model.prompt), share=0.5)

    async def _generate(self, *given, **settings):
        return replace(await super()._generate(*given, **settings), finish_reason="stop")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = load_tokenizer(str(ROOT / "configs" / "tiny"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "PATCH_SIZE", 16)
        tiny.save_tiny(folder, tiny.build_model(tokenizer, FAMILY, seed=0), tokenizer, FAMILY)
    paths = make_shapes(tmp_path_factory.mktemp("shapes"), train_rows=32, heldout_rows=8, seed=5)
    return Config(
        model=ModelConfig(path=str(folder), min_pixels=SIDE**2, max_pixels=SIDE**2),
        data=DataConfig(train=str(paths["train"]), heldout=str(paths["heldout"])),
        rollout=RolloutConfig(max_turn_tokens=TURN_TOKENS),
    )


@pytest.fixture(scope="module")
def worker(config, loop):  # noqa: F811 - fixtures
    launch.connect()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(starting, "RolloutWorker", AskingWorker)
        (worker,) = starting.start_workers(config, place(config))
    yield worker
    loop.run(worker.shutdown())
    ray.shutdown()


@pytest.fixture(scope="module")
def groups(worker, config, loop, synced):  # noqa: F811 - fixtures
    """Six groups sampled at temperature 1 under the synced weights, with their full views."""

    async def play_all():
        refs = PromptCursor(dataset=config.data.train, num_rows=32, seed=0).take(6)
        request = PlayRequest(ref=refs[0], kind="policy", greedy=False, num_episodes=8, run="t", step=1, attempt=0)
        return [await worker.play(replace(request, ref=ref)) for ref in refs]

    return [(played, ray.get(image, timeout=30)) for played, image in loop.run(play_all())]


def test_about_half_of_the_episodes_see_both_views(groups):
    episodes = [episode for played, _ in groups for episode in played.episodes]
    assert {tuple(turn.num_visual_tokens for turn in episode.turns) for episode in episodes} == {(16,), (16, 64)}


test_weights = of_any_family.test_after_a_sync_the_engine_holds_the_learners_weights_bit_for_bit
test_log_probabilities = of_any_family.test_engine_and_learner_agree_on_tokens_and_log_probabilities
