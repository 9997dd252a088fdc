import contextlib
from types import SimpleNamespace

import pytest
import torch

from actors.engine import parameters
from learner.sync import transports
from learner.sync.sender import WeightSender
from tests.actors.engine.received import CPU, SHAPES, PlainModel


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The folder in which the sender stages weights."""
    monkeypatch.setattr(parameters, "_world_size", lambda: 1)
    monkeypatch.setattr(transports, "staging_root", lambda: tmp_path)
    return tmp_path


def make_extension():
    from actors.engine import transfer, vllm_extension

    worker = vllm_extension.WeightExtension()
    worker.device, worker.model_config = CPU, SimpleNamespace(enforce_eager=True)
    worker.weight_transfer_engine = transfer.SharedMemoryReceiver(
        SimpleNamespace(), SimpleNamespace(parallel_config=None, model_config=None), CPU, PlainModel()
    )
    return worker


@pytest.fixture
def extension():
    """What runs in vLLM's worker, with the receiver that vLLM would make."""
    return make_extension()


@pytest.fixture
def sender(root):
    sender = WeightSender(SHAPES, dtype=torch.float32, device=CPU, bucket_bytes=8192)
    with contextlib.closing(sender):
        yield sender
