"""Turns of a real vLLM engine that are in flight while the weights change, scored by the same models in PyTorch."""

import asyncio
import itertools
import math

import pytest
import ray
import torch

from actors.data.dataset import PromptCursor
from actors.data.shapes import make_shapes
from actors.engine.vllm_versions import RunningTurns, joined, labels_tokens
from actors.errors import WeightSyncError
from actors.fleet.worker import RolloutWorker
from actors.images import ViewSpec
from actors.play import PlayRequest, Sampling
from actors.prompts import load_tokenizer, vision_token_ids
from cluster import launch
from cluster.runtime import starting
from cluster.runtime.placement import place
from configs.schema import Config, DataConfig, RolloutConfig, RunConfig
from learner.advantage import group_advantages
from learner.attention import PACKED
from learner.batches.batch import TrainingGroup
from learner.batches.collate import Collator
from learner.batches.plan import plan_mini_batches
from learner.families.architectures import encode_views
from learner.model import load_policy, token_logprobs
from learner.sync.sender import WeightSender

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("default"),  # Ray's own, at its start and end
]
TURN_TOKENS = 400
BEFORE_COMMIT = 40
"""Tokens that each turn has at least when the weights change."""


class CountingToo(RunningTurns):
    """Counts versions as for a vLLM without labels as well, and keeps both answers."""

    def __init__(self, engine):
        self.is_labelled = labels_tokens()
        super().__init__(engine, has_labels=self.is_labelled)
        self.answers = []

    async def freeze(self):
        self._has_labels = False
        await super().freeze()
        self._has_labels = self.is_labelled

    async def set_version(self, version):
        for has_labels in sorted({False, self.is_labelled}):
            self._has_labels = has_labels
            await super().set_version(version)

    def spans(self, request_id, choice):
        labelled = super().spans(request_id, choice)
        self.answers.append((joined(self._starts[request_id], len(choice.token_ids)), labelled))
        return labelled

    def fewest_sampled(self):
        return min((self._num_sampled(request_id) or 0 for request_id in self._starts), default=0)


class OpenWorker(RolloutWorker):
    """The worker, with a way to its engine for tests. Its policy cannot end a turn."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self._engine._forbidden[self._renderer.end_id] = -math.inf
        self._engine._turns = CountingToo(self._engine._engine)

    async def set_in_flight(self, in_flight, is_staged):
        self._engine._in_flight, self._engine._is_staged = in_flight, is_staged

    async def say(self, prompt_ids):
        return await self._engine(prompt_ids, (), Sampling(temperature=1.0, max_tokens=TURN_TOKENS))

    async def fewest_sampled(self):
        return self._engine._turns.fewest_sampled()

    async def answers(self):
        return self._engine._turns.answers


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    paths = make_shapes(tmp_path_factory.mktemp("shapes"), train_rows=32, heldout_rows=8, seed=5)
    return Config(
        run=RunConfig(seed=3),
        data=DataConfig(train=str(paths["train"]), heldout=str(paths["heldout"])),
        rollout=RolloutConfig(max_turn_tokens=TURN_TOKENS),
    )


@pytest.fixture(scope="module")
def forbidden_ids(config):
    tokenizer = load_tokenizer(config.model.path)
    return (*vision_token_ids(tokenizer), tokenizer.convert_tokens_to_ids("<|im_end|>"))


@pytest.fixture(scope="module")
def loop():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def worker(config, loop):
    launch.connect()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(starting, "RolloutWorker", OpenWorker)
        (worker,) = starting.start_workers(config, place(config))
    yield worker
    loop.run(worker.shutdown())
    ray.shutdown()


@pytest.fixture(scope="module")
def policies(config):
    """The shipped model, and one whose weights are all moved: far enough that each sampled token tells them apart."""
    old, new = (load_policy(config.model.path).eval() for _ in range(2))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn_like(parameter) if parameter.numel() > 1 else 0)
    return old, new


class Link:
    """The learner's end, and the worker's: brings it to a policy, under the next version."""

    def __init__(self, worker, sender):
        self.worker, self.sender = worker, sender
        self.version = 0

    async def publish(self, policy, *, spoils=False):
        self.version += 1
        sent = self.sender.send(policy.named_parameters(), self.version)
        if spoils:
            self.sender.read(0)[100] ^= 1
        await self.worker.receive_weights(sent.offer, lambda index: ray.put(self.sender.read(index).numpy()))
        return await self.worker.commit_weights(sent.offer.version, sent.digests)

    async def once_in_mid_turn(self, turns):
        """Start the turns; returns when all are well under way."""
        under_way = asyncio.ensure_future(turns)
        async with asyncio.timeout(60):
            while not under_way.done() and await self.worker._actor.fewest_sampled.remote() < BEFORE_COMMIT:
                await asyncio.sleep(0.002)
        assert not under_way.done()
        return under_way


@pytest.fixture(scope="module")
def link(worker, policies, loop):
    shapes = {name: parameter.shape for name, parameter in policies[0].named_parameters()}
    sender = WeightSender(shapes, dtype=torch.float32, device=torch.device("cpu"), bucket_bytes=1 << 30)
    loop.run(worker.connect_weights(sender.open("shared_memory", num_receivers=1, timeout_s=30)))
    yield Link(worker, sender)
    sender.close()


async def set_in_flight(worker, mode, *, is_staged=True):
    await worker._actor.set_in_flight.remote(mode, is_staged)


async def say(worker, prompt_ids):
    return await worker._actor.say.remote(prompt_ids)


async def play(worker, config, *, num_episodes=4, seed=0):
    (ref,) = PromptCursor(dataset=config.data.train, num_rows=32, seed=seed).take(1)
    request = PlayRequest(
        ref=ref, kind="always_full", greedy=False, num_episodes=num_episodes, run="t", step=1, attempt=0
    )
    played, image = await worker.play(request)
    return played, ray.get(image, timeout=30)


def scored(policy, token_ids, positions, cache, *, use, forbidden_ids):
    """(log-probability of each id after the first, the cache) of plain text that continues a cache."""
    policy.model.language_model.set_attn_implementation("sdpa")  # ours reads no cache
    out = policy.model.language_model(
        input_ids=torch.tensor([token_ids]),
        position_ids=torch.tensor(positions).expand(3, 1, -1),
        past_key_values=cache,
        use_cache=use,
    )
    policy.model.language_model.set_attn_implementation(PACKED)
    logits = out.last_hidden_state[0, :-1] @ policy.lm_head.weight.T
    logits[:, list(forbidden_ids)] = -math.inf
    return logits.log_softmax(-1).gather(1, torch.tensor(token_ids[1:])[:, None])[:, 0], out.past_key_values


@pytest.mark.parametrize("is_staged", [True, False])
def test_a_turn_goes_on_under_the_new_weights_with_the_cache_it_has(
    worker, link, policies, forbidden_ids, loop, config, is_staged
):
    """Each token is that of the version it is recorded under, and the cache before the change that of the old one."""
    old, new = policies
    tokenizer = load_tokenizer(config.model.path)
    prompt_ids = tuple(tokenizer.encode("what colour is the shape?" * 4, add_special_tokens=False))

    async def run():
        await set_in_flight(worker, "keep", is_staged=is_staged)
        await link.publish(old)
        turn = await link.once_in_mid_turn(say(worker, prompt_ids))
        pause_s = await link.publish(new)
        is_over = turn.done()
        return await turn, pause_s, is_over

    completion, pause_s, is_over = loop.run(run())
    assert not is_over, "the commit did not wait for the turn"
    assert 0 < pause_s < 5
    first, second = completion.version_spans
    assert (first.version, second.version) == (link.version - 1, link.version)
    assert first.num_tokens >= BEFORE_COMMIT
    assert first.num_tokens + second.num_tokens == len(completion.token_ids) == TURN_TOKENS
    said = [*prompt_ids, *completion.token_ids]
    kept = len(prompt_ids) + first.num_tokens - 1  # the last token before the change was not read yet
    with torch.no_grad():
        before, cache = scored(old, said[:kept], range(kept), None, use=True, forbidden_ids=forbidden_ids)
        after, _ = scored(new, said[kept:], range(kept, len(said)), cache, use=True, forbidden_ids=forbidden_ids)
        # Of the token sampled last under the old weights, from the cache's own last state.
        whole, _ = scored(old, said, range(len(said)), None, use=False, forbidden_ids=forbidden_ids)
    sampled = torch.tensor(completion.logprobs)
    torch.testing.assert_close(
        sampled[: first.num_tokens - 1], before[len(prompt_ids) - 1 :], atol=1e-3, rtol=0, check_dtype=False
    )
    torch.testing.assert_close(sampled[first.num_tokens :], after, atol=1e-3, rtol=0, check_dtype=False)
    under_old = whole[len(prompt_ids) - 1 :]
    assert (sampled - under_old)[: first.num_tokens].abs().max() < 1e-3
    assert (sampled - under_old)[first.num_tokens :].abs().median() > 0.01


def teacher_forced(policy, played, image, config, forbidden_ids):
    """(what the engine recorded, what the policy gives) for each token of each episode, [E, TURN_TOKENS] each."""
    rewards = (1.0, 0.0) * (len(played.episodes) // 2)
    group = TrainingGroup(played=played, rewards=rewards, advantages=group_advantages(rewards), image=image)
    (plan,) = plan_mini_batches(
        [group],
        prompts_per_mini_batch=1,
        num_ranks=1,
        max_tokens_per_micro_batch=10**6,
        max_tokens_per_vision_pass=10**6,
    )
    (piece,) = plan.mini_batches
    spec = ViewSpec.from_model(config.model)
    collator = Collator([image], spec, image_token_id=policy.config.image_token_id, kernel="padded")
    (shown,), (batch,) = map(collator.vision_pass, piece.vision_passes), map(collator.micro_batch, piece.micro_batches)
    with torch.no_grad():
        features = encode_views(policy, shown.patches_PD, shown.grids)
        logprobs_N, _ = token_logprobs(policy, batch, features, temperature=1.0, forbidden_ids=forbidden_ids)
    return batch.sampler_logprobs_N.view(-1, TURN_TOKENS), logprobs_N.view(-1, TURN_TOKENS)


@pytest.mark.parametrize("mode", ["keep", "recompute"])
def test_turns_about_a_picture_record_what_sampled_them(worker, link, policies, forbidden_ids, loop, config, mode):
    """Recomputed, what follows the change is a fresh prefill under the new weights, picture included."""
    old, new = policies

    async def run():
        await set_in_flight(worker, mode)
        await link.publish(old)
        group = await link.once_in_mid_turn(play(worker, config))
        await link.publish(new)
        return await group, await play(worker, config, num_episodes=2)

    (played, image), (later, _) = loop.run(run())
    sampled, under_old = teacher_forced(old, played, image, config, forbidden_ids)
    _, under_new = teacher_forced(new, played, image, config, forbidden_ids)
    gaps = []
    for row, episode in enumerate(played.episodes):
        (turn,) = episode.turns
        assert [span.version for span in turn.version_spans] == [link.version - 1, link.version]
        assert (episode.oldest_version, episode.newest_version) == (link.version - 1, link.version)
        change = turn.version_spans[0].num_tokens
        assert change >= BEFORE_COMMIT
        assert (sampled - under_old)[row, :change].abs().max() < 1e-3
        assert (sampled - under_old)[row, change:].abs().median() > 0.01
        gaps.append((sampled - under_new)[row, change:].abs().max().item())
    if mode == "recompute":
        assert max(gaps) < 1e-3
    else:
        assert min(gaps) > 1e-3, "the cache is the old weights'"
    assert {(e.oldest_version, e.newest_version) for e in later.episodes} == {(link.version,) * 2}
    sampled, under_new = teacher_forced(new, later, image, config, forbidden_ids)
    assert (sampled - under_new).abs().max() < 1e-3, "no cache of the old weights was used"


def test_a_drained_turn_ends_before_the_commit_under_one_version(worker, link, policies, loop, config):
    async def run():
        await set_in_flight(worker, "drain")
        await link.publish(policies[0])
        group = await link.once_in_mid_turn(play(worker, config))
        await link.publish(policies[1])
        return await group, await play(worker, config, num_episodes=2)

    (played, _), (later, _) = loop.run(run())
    assert {(e.oldest_version, e.newest_version) for e in played.episodes} == {(link.version - 1,) * 2}
    assert {(e.oldest_version, e.newest_version) for e in later.episodes} == {(link.version,) * 2}


@pytest.mark.parametrize("mode", ["keep", "recompute"])
def test_a_turn_outlives_a_version_that_is_refused_and_several_that_are_not(worker, link, policies, loop, config, mode):
    """Fault 16 in mid turn: it stands still, under no weights at all, until a whole version is there."""
    old, new = policies

    async def run():
        await set_in_flight(worker, mode)
        await link.publish(old)
        turn = await link.once_in_mid_turn(play(worker, config))
        with pytest.raises(WeightSyncError, match=r"the checksum of bucket 0 differs"):
            await link.publish(new, spoils=True)
        num_sampled = await worker._actor.fewest_sampled.remote()
        await worker.check_health()
        await asyncio.sleep(0.1)
        assert await worker._actor.fewest_sampled.remote() == num_sampled
        for policy in (new, old):
            await link.publish(policy)
        assert not turn.done()
        return await turn

    played, _ = loop.run(run())
    refused = link.version - 2
    for turn in (turn for episode in played.episodes for turn in episode.turns):
        versions = [span.version for span in turn.version_spans]
        assert versions[0] == refused - 1
        assert versions[-1] == link.version
        assert refused not in versions


def test_many_groups_and_many_versions_lose_nothing(worker, link, policies, loop, config):
    async def run():
        await set_in_flight(worker, "keep")
        await link.publish(policies[0])
        first = link.version
        groups = [asyncio.create_task(play(worker, config, num_episodes=8, seed=seed)) for seed in range(3)]
        for policy in itertools.islice(itertools.cycle(reversed(policies)), 6):
            await asyncio.sleep(0.2)
            await link.publish(policy)
        return first, [await group for group in groups]

    first, groups = loop.run(run())
    turns = [turn for played, _ in groups for episode in played.episodes for turn in episode.turns]
    assert [len(turn.completion_ids) for turn in turns] == [TURN_TOKENS] * 24
    versions = [[span.version for span in turn.version_spans] for turn in turns]
    assert all(each == sorted(set(each)) for each in versions)
    assert min(min(each) for each in versions) >= first
    assert max(len(each) for each in versions) > 1


def test_counting_and_labels_of_vllm_agree(worker, loop):
    """The last test: what was recorded in those before."""

    async def run():
        return await worker._actor.answers.remote()

    answers = loop.run(run())
    assert len(answers) > 30
    assert any(len(labelled) > 1 for _, labelled in answers)
    for counted, labelled in answers:
        assert counted == labelled
