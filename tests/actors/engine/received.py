"""What receives weights in the tests, without an engine, and what it then holds."""

from types import SimpleNamespace

import torch

CPU = torch.device("cpu")


SHAPES = {"a.weight": (50, 30), "b.weight": (2000,), "b.bias": (3,)}


class PlainModel(torch.nn.Module):
    """A model whose parameters are the checkpoint's."""

    packed_modules_mapping: dict[str, list[str]] = {}
    hf_to_vllm_mapper = SimpleNamespace(apply_list=list)

    def __init__(self):
        super().__init__()
        for module in ("a", "b"):
            setattr(self, module, torch.nn.Module())
        for name, shape in SHAPES.items():
            module, leaf = name.split(".")
            getattr(self, module).register_parameter(leaf, torch.nn.Parameter(torch.zeros(shape)))


def drawn(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def failure_of(extension):
    """How what was started last has ended."""
    extension._waiting.thread.join(10)
    has_ended, failure = extension.weights_arrived()
    assert has_ended
    return failure


def connect(extension, sender):
    link = sender.open("shared_memory", num_receivers=1, timeout_s=5)
    extension.connect_weights(link.layout.to_plain(), link.settings)
    assert failure_of(extension) == ""
    return link


def follow(extension, version):
    """Start to receive a version that is announced, and perhaps not yet sent."""
    extension.receive_weights({"version": version})


def receive(extension, sent):
    extension.receive_weights(sent.offer.delivery)
    assert failure_of(extension) == ""


def held(extension):
    model = extension.weight_transfer_engine.model
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def holds(extension, version):
    found = held(extension)
    return all(torch.equal(found[name], tensor) for name, tensor in version.items())
