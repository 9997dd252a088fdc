"""An engine that is sharded over two GPUs takes the learner's weights, and then agrees with it.

    python -m pytest -n 0 -s -m gpu tests/gpu/test_tensor_parallel.py

About two minutes on two H200. The engine starts with other weights than the learner's, so that a shard which is not
written shows. No Ray. Limit and control are those of `test_agreement.py`.
"""

import pytest
import torch

from learner.sync.sender import WeightSender
from tests.bench.playing import bench_config
from tests.gpu.test_agreement import compare, mean_kl, random_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(600),
]
NUM_SHARDS = 2


def test_a_sharded_engine_takes_the_learners_weights_and_agrees_with_it(tmp_path):
    stale, folder = random_model(tmp_path / "engine", seed=4)
    del stale
    policy, _ = random_model(tmp_path / "learner")
    config = bench_config(
        "tiny",
        side=1008,
        on_gpu=True,
        overrides=[
            f"model.path={folder}",
            f"rollout.tensor_parallel_size={NUM_SHARDS}",
            "rollout.gpu_memory_fraction=0.4",
            "weights.transport=shared_memory",
        ],
    )
    shapes = {name: parameter.shape for name, parameter in policy.named_parameters()}
    sender = WeightSender(shapes, dtype=torch.bfloat16, device=torch.device("cuda:0"), bucket_bytes=64 << 20)
    versions = []

    async def sync(engine):
        link = sender.open("shared_memory", num_receivers=NUM_SHARDS, timeout_s=120)
        await engine.connect_weights(link)
        sent = sender.send(policy.named_parameters(), 7)
        await engine.receive_weights(sent.offer)
        await engine.commit_weights(sent.offer.version, sent.digests)
        versions.append(engine.version)

    try:
        ratios, mirrored, exact = compare(config, policy, sync)
    finally:
        sender.close()
    kl, rounding = mean_kl(ratios), mean_kl(ratios - exact)
    print(f"{NUM_SHARDS} shards: mean gap {ratios.abs().mean():.2g}, KL {kl:.2g}, of rounding {rounding:.2g}")
    assert versions == [7]
    assert kl <= 1e-3
    assert mean_kl(mirrored) > 10 * kl
