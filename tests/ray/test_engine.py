"""A real vLLM engine in a real Ray actor, beside the same model in PyTorch."""

import asyncio
import os
import signal
import time

import numpy as np
import psutil
import pytest
import ray
import torch
from PIL import Image

from actors.data.dataset import PromptCursor
from actors.data.shapes import make_shapes
from actors.errors import RolloutError, SampleError, WeightSyncError
from actors.fleet.pool import RolloutPool
from actors.images import ViewSpec
from actors.play import PlayRequest, ShownImage
from actors.prompts import IMAGE_PAD, VISION_END, VISION_START, load_tokenizer, vision_token_ids
from actors.tools.resize import RESIZE_CALL
from cluster import launch
from cluster.runtime import starting
from cluster.runtime.failures import await_remote
from cluster.runtime.placement import place
from configs.schema import Config, DataConfig, RolloutConfig, RunConfig
from configs.tools import ToolsConfig
from learner.advantage import group_advantages
from learner.batches.batch import TrainingGroup
from learner.batches.collate import Collator
from learner.batches.plan import plan_mini_batches
from learner.families.architectures import encode_views
from learner.model import load_policy, token_logprobs
from learner.sync.sender import WeightSender
from tests.ray.open_worker import OpenWorker, by_vllm_name, digest, padded, vllm_name

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("default"),  # Ray's own, at its start and end
]


async def answer(reference):
    return await reference


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    paths = make_shapes(tmp_path_factory.mktemp("shapes"), train_rows=32, heldout_rows=8, seed=5)
    # A seed that looks like a date: every process has to start with one that it takes.
    return Config(
        run=RunConfig(seed=20261129),
        rollout=RolloutConfig(tools=ToolsConfig(max_turns=5)),  # so that the engine takes as many pictures
        data=DataConfig(train=str(paths["train"]), heldout=str(paths["heldout"])),
    )


@pytest.fixture(scope="module")
def forbidden_ids(config):
    return vision_token_ids(load_tokenizer(config.model.path))


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
def policy(config):
    """The shipped model with every weight moved a little, so that an engine that missed a sync shows it."""
    model = load_policy(config.model.path)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * parameter.std() * torch.randn_like(parameter) if parameter.numel() > 1 else 0)
    return model


@pytest.fixture(scope="module")
def sender(worker, policy, loop):
    """The learner's end, connected to the worker."""
    shapes = {name: parameter.shape for name, parameter in policy.named_parameters()}
    sender = WeightSender(shapes, dtype=torch.float32, device=torch.device("cpu"), bucket_bytes=1 << 20)
    link = sender.open("shared_memory", num_receivers=1, timeout_s=30)
    assert len(link.layout.bucket_sizes) > 1, "several buckets travel"
    loop.run(worker.connect_weights(link))
    yield sender
    sender.close()


def take(worker, sender, sent, loop) -> float:
    """Bring the worker to a sent version; returns the pause."""
    loop.run(worker.receive_weights(sent.offer, lambda index: ray.put(sender.read(index).numpy())))
    return loop.run(worker.commit_weights(sent.offer.version, sent.digests))


@pytest.fixture(scope="module")
def synced(worker, sender, policy, loop):
    sent = sender.send(policy.named_parameters(), 7)
    take(worker, sender, sent, loop)
    return sent


@pytest.fixture(scope="module")
def groups(worker, config, loop, synced):
    """Six groups sampled at temperature 1 under the synced weights, with their full views."""

    async def play_all():
        refs = PromptCursor(dataset=config.data.train, num_rows=32, seed=0).take(6)
        requests = [
            PlayRequest(ref=ref, kind="policy", greedy=False, num_episodes=8, run="t", step=1, attempt=0)
            for ref in refs
        ]
        return await asyncio.gather(*(worker.play(request) for request in requests))

    return [(played, ray.get(image, timeout=30)) for played, image in loop.run(play_all())]


def test_after_a_sync_the_engine_holds_the_learners_weights_bit_for_bit(worker, synced, policy, loop):
    """vLLM's own digests of its parameters, against those of the learner's."""
    found = loop.run(answer(worker._actor.engine_digests.remote()))
    expected = {name: digest(padded(name, parameter)) for name, parameter in policy.named_parameters()}
    plain = [name for name in expected if vllm_name(name) in found]
    assert len(plain) > 30
    for name in plain:
        assert found[vllm_name(name)] == expected[name], name
    stacked = {
        "qkv_proj": ("q_proj", "k_proj", "v_proj"),
        "gate_up_proj": ("gate_proj", "up_proj"),
    }
    for name in set(found) - {vllm_name(plain_name) for plain_name in plain}:
        fused = next(fused for fused in stacked if fused in name)
        parts = [by_vllm_name(policy, name.replace(fused, part)) for part in stacked[fused]]
        assert found[name] == digest(torch.cat(parts)), name


def gaps_to_learner(groups, policy, config, forbidden_ids) -> torch.Tensor:
    """|log-probability in the engine - in the learner| of each sampled token; those that were forced have none."""
    training = [
        TrainingGroup(
            played=played,
            rewards=(1.0, 0.0) * 4,
            advantages=group_advantages((1.0, 0.0) * 4),
            image=image,
        )
        for played, image in groups
    ]
    (plan,) = plan_mini_batches(
        training,
        prompts_per_mini_batch=len(groups),
        num_ranks=1,
        max_tokens_per_micro_batch=4096,
        max_tokens_per_vision_pass=4096,
    )
    model = config.model
    spec = ViewSpec.from_model(model)
    images = [training[index].image for index in plan.image_groups]
    collator = Collator(images, spec, image_token_id=policy.config.image_token_id, kernel="padded")
    piece = plan.mini_batches[0]
    (shown,) = map(collator.vision_pass, piece.vision_passes)
    gaps = []
    for families in piece.micro_batches:
        batch = collator.micro_batch(families)
        with torch.no_grad():
            logprobs_N, _ = token_logprobs(
                policy,
                batch,
                encode_views(policy, shown.patches_PD, shown.grids),
                temperature=config.rollout.temperature,
                forbidden_ids=forbidden_ids,
            )
        gaps.append((logprobs_N - batch.sampler_logprobs_N)[batch.sampler_logprobs_N != 0].abs())
    return torch.cat(gaps)


def test_engine_and_learner_agree_on_tokens_and_log_probabilities(groups, policy, config, forbidden_ids):
    gaps = gaps_to_learner(groups, policy, config, forbidden_ids)
    assert len(gaps) > 300
    assert gaps.mean() <= 1e-4
    assert gaps.max() <= 1e-3


def test_engine_and_learner_agree_after_crops(worker, synced, policy, config, forbidden_ids, loop):
    """Four pictures in one prompt, among them a crop of three tokens in a row, and a crop of that crop."""
    tools = ToolsConfig(names=("resize_image", "request_local_region", "image_zoom_in_tool"), max_turns=5)
    region = '{"name": "request_local_region", "arguments": {"bbox_2d": [14, 28, 56, 42]}}'
    inside = '{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [28, 0, 56, 28], "label": "x", "img_idx": 1}}'
    replies = tuple(f"<think>a</think><tool_call>{call}</tool_call>" for call in (region, inside, RESIZE_CALL))
    refs = PromptCursor(dataset=config.data.train, num_rows=32, seed=6).take(2)
    groups = []
    for ref in refs:
        request = PlayRequest(ref=ref, kind="policy", greedy=False, num_episodes=8, run="t", step=1, attempt=0)
        groups.append(loop.run(answer(worker._actor.play_forced.remote(request, tools, replies))))
    for played, _ in groups:
        for episode in played.episodes:
            shown = ["quarter", "crop:28,56,112,84", "crop:56,56,84,84", "full"]
            assert [str(turn.view) for turn in episode.turns[:4]] == shown
            assert [turn.num_visual_tokens for turn in episode.turns[:4]] == [16, 3, 1, 64]
    gaps = gaps_to_learner(groups, policy, config, forbidden_ids)
    assert len(gaps) > 30
    assert gaps.mean() <= 1e-4
    assert gaps.max() <= 1e-3


def test_every_turn_records_the_version_and_continues_the_same_tokens(groups):
    asked = [episode for played, _ in groups for episode in played.episodes if episode.asked]
    assert asked
    assert {(e.oldest_version, e.newest_version) for played, _ in groups for e in played.episodes} == {(7, 7)}
    for episode in asked:
        first, second = episode.turns
        spoken = first.prompt_ids + first.completion_ids
        assert second.prompt_ids[: len(spoken)] == spoken


def test_full_views_are_the_pictures_of_their_rows(groups):
    for played, image in groups:
        assert image.shape == (*played.full_size, 3)
        assert image.dtype == np.uint8
    assert len({image.tobytes() for _, image in groups}) == len({played.image_sha256 for played, _ in groups})


def test_a_flipped_byte_is_refused(worker, sender, config, loop, synced, policy):
    """Fault 16: nothing of it reaches the parameters, and the worker plays no group until it has a whole version."""
    sent = sender.send(policy.named_parameters(), 8)
    before = loop.run(answer(worker._actor.engine_digests.remote()))
    sender.read(len(sent.digests) - 1)[100] ^= 1
    with pytest.raises(WeightSyncError, match=r"the checksum of bucket \d+ differs"):
        take(worker, sender, sent, loop)
    assert loop.run(answer(worker._actor.engine_digests.remote())) == before
    (ref,) = PromptCursor(dataset=config.data.train, num_rows=32, seed=1).take(1)
    request = PlayRequest(ref=ref, kind="always_full", greedy=True, num_episodes=2, run="t", step=2, attempt=0)
    with pytest.raises(RolloutError, match="no verified weights"):
        loop.run(worker.play(request))
    take(worker, sender, sender.send(policy.named_parameters(), 8), loop)
    played, _ = loop.run(worker.play(request))
    assert {(episode.oldest_version, episode.newest_version) for episode in played.episodes} == {(8, 8)}
    assert played.episodes[0].token_ids == played.episodes[1].token_ids, "greedy play is repeatable"


def test_a_worker_that_cannot_map_the_learners_memory_gets_the_bytes(worker, sender, loop, synced, policy):
    """As on another machine, whose shared memory is its own."""
    sent = sender.send(policy.named_parameters(), 8)
    before = loop.run(answer(worker._actor.engine_digests.remote()))
    worker.reaches_learner = False
    try:
        take(worker, sender, sent, loop)
    finally:
        worker.reaches_learner = True
    assert loop.run(answer(worker._actor.engine_digests.remote())) == before
    assert loop.run(worker.check_health()) is None


def test_a_picture_is_encoded_anew_under_new_weights(worker, sender, loop, synced, policy, config):
    """vLLM keys encoded pictures by the picture alone: an engine that kept them would mix two versions."""
    (ref,) = PromptCursor(dataset=config.data.train, num_rows=32, seed=4).take(1)

    def play(step: int):
        request = PlayRequest(ref=ref, kind="always_full", greedy=True, num_episodes=2, run="t", step=step, attempt=0)
        return loop.run(worker.play(request))[0].episodes[0].turns[0]

    take(worker, sender, sender.send(policy.named_parameters(), 8), loop)
    first = play(10)
    blind = {
        name: torch.zeros_like(parameter) if "visual.merger" in name else parameter.detach()
        for name, parameter in policy.named_parameters()
    }
    take(worker, sender, sender.send(blind.items(), 9), loop)
    second = play(11)
    assert first.prompt_ids == second.prompt_ids
    assert first.logprobs != second.logprobs
    take(worker, sender, sender.send(policy.named_parameters(), 10), loop)
    assert play(12).logprobs == pytest.approx(first.logprobs, abs=1e-5)


def test_a_policy_bent_on_vision_tokens_cannot_emit_them(worker, sender, config, loop, policy, forbidden_ids):
    """Fault 10: whatever the weights say, the ids are ruled out in sampling."""
    bent = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    head = next(name for name in bent if name.endswith("embed_tokens.weight"))  # tied: it is the output layer too
    bent[head][list(forbidden_ids)] = bent[head].mean(0) + 40 * bent[head].std(0)
    take(worker, sender, sender.send(bent.items(), 9), loop)
    (ref,) = PromptCursor(dataset=config.data.train, num_rows=32, seed=2).take(1)
    request = PlayRequest(ref=ref, kind="policy", greedy=False, num_episodes=8, run="t", step=3, attempt=0)
    played, _ = loop.run(worker.play(request))
    said = {token for episode in played.episodes for turn in episode.turns for token in turn.completion_ids}
    assert said
    assert said.isdisjoint(forbidden_ids)


def test_the_engine_keeps_the_limits_that_were_chosen_for_it(worker, config, loop):
    assert loop.run(answer(worker._actor.limits.remote())) == (2048, 2048, 16 * 8 + 1)


def test_a_request_that_the_engine_refuses_or_reads_otherwise_fails_alone(worker, config, loop, synced):
    tokenizer = load_tokenizer(config.model.path)
    (word,), pad = tokenizer.encode("a", add_special_tokens=False), tokenizer.get_vocab()[IMAGE_PAD]
    for prompt_ids, reason in (
        ((word,) * (config.rollout.max_model_len + 100), "vLLM refused a request: "),
        ((word, pad, pad, word), "the engine read a prompt of 3 tokens, 4 were rendered"),
    ):
        call = await_remote(worker._actor.generate.remote(prompt_ids), RolloutError, "worker")
        with pytest.raises(SampleError, match=reason):
            loop.run(call)
    loop.run(worker.check_health())
    assert loop.run(answer(worker._actor.generate.remote((word,) * 10))) == 1


def test_a_picture_whose_turn_was_cancelled_can_be_shown_again(worker, config, loop, synced):
    """Wherever the turn was: vLLM sends a picture to the engine once, when it is first rendered."""
    tokenizer = load_tokenizer(config.model.path)
    vocabulary = tokenizer.get_vocab()
    pads = (vocabulary[IMAGE_PAD],) * 64
    prompt_ids = (vocabulary[VISION_START], *pads, vocabulary[VISION_END])
    noise = np.random.default_rng(1).integers(0, 256, (16, 224, 224, 3), dtype=np.uint8)
    pictures = [
        ShownImage(picture=Image.fromarray(pixels), key=f"left {number}", num_visual_tokens=64, view="full")
        for number, pixels in enumerate(noise)
    ]
    counts = loop.run(answer(worker._actor.leave_and_ask_again.remote(prompt_ids, pictures)))
    assert counts == [1] * 16


def test_a_group_that_misses_its_deadline_is_lost_and_leaves_no_turn_in_the_engine(worker, config, loop, synced):
    pool = RolloutPool([worker], max_groups_in_flight=4, group_timeout_s=0.1)
    (ref,) = PromptCursor(dataset=config.data.train, num_rows=32, seed=3).take(1)
    request = PlayRequest(ref=ref, kind="policy", greedy=False, num_episodes=64, run="t", step=4, attempt=0)
    with pytest.raises(SampleError, match=r"no reply within rollout\.group_timeout_s=0\.1"):
        loop.run(pool.play(request))
    assert pool.num_workers == 1
    deadline = time.monotonic() + 10
    while loop.run(answer(worker._actor.num_turns.remote())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def engine_processes(worker, loop) -> list[psutil.Process]:
    return psutil.Process(loop.run(answer(worker._actor.pid.remote()))).children(recursive=True)


def sockets(pid: int) -> set[str]:
    numbers = (f"/proc/{pid}/fd/{number}" for number in os.listdir(f"/proc/{pid}/fd"))
    return {target for target in map(os.readlink, numbers) if target.startswith("socket:")}


def test_an_engines_process_holds_no_socket_by_which_ray_sees_that_its_worker_lives(worker, loop, synced):
    of_worker, processes = sockets(loop.run(answer(worker._actor.pid.remote()))), engine_processes(worker, loop)
    assert of_worker
    assert any("".join(process.cmdline()).startswith("VLLM::EngineCore") for process in processes)
    for process in processes:
        assert not sockets(process.pid) & of_worker


def test_an_engine_that_hangs_is_not_healthy(worker, loop, synced):
    """vLLM's own check finds nothing wrong with it."""
    processes = engine_processes(worker, loop)
    assert processes
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(TimeoutError):
            loop.run(asyncio.wait_for(worker.check_health(), 3))
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)
    loop.run(asyncio.wait_for(worker.check_health(), 30))


def test_a_worker_that_is_killed_leaves_no_process_and_no_reserved_share(worker, loop, synced):
    """The last test: nothing can be played afterwards."""
    processes = engine_processes(worker, loop)
    worker.kill()
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert alive == []
    deadline = time.monotonic() + 30
    while ray.available_resources()["CPU"] < ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with pytest.raises(RolloutError, match="ActorDiedError"):
        loop.run(worker.check_health())
