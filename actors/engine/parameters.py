"""Where the tensors of a checkpoint lie in the parameters of vLLM's model.

vLLM stacks some tensors into one parameter, row after row (q, k, v; gate, up), and pads the vocabulary. The rows of
each parameter are handed out once, in the order of the stack, so that a version is written by plain copies. With tensor
parallelism a parameter is a shard, and vLLM's own `load_weights` cuts it out of the whole tensor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from actors.errors import WeightSyncError
from actors.weights.buckets import as_words, parts, slot_tensor
from actors.weights.layout import Slot, WeightLayout

PADDED = ("embed_tokens.weight", "lm_head.weight")
"""Parameters that may have more rows than their tensors: a vocabulary padded to a round number."""
ALONE = 2
"""References to the memory of a parameter that no other tensor shares: the parameter's, and that of whoever counts."""


class Places:
    """Where the tensors of a bucket lie: in its bytes, or in the parameters of a model."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors
        self.words = as_words(tensors)
        """The same as words, if all of them can be read so. Made here, because it takes longer than to copy them."""


class ParameterViews:
    """The parameters of a vLLM model as the tensors of a layout; with a spare set of them, what is loaded goes there.

    `is_whole` is False where the parameters are shards of the tensors.

    Raises:
        WeightSyncError: a tensor has no place in the model, or a parameter gets nothing.
    """

    def __init__(self, model: Any, layout: WeightLayout) -> None:
        self._model = model
        self._slots = [layout.slots_of(bucket) for bucket in range(len(layout.bucket_sizes))]
        self.is_whole = _world_size() == 1
        self._parameters = dict(model.named_parameters())
        self._spare: dict[str, Tensor] = {}
        self._views = self._next_views = self._by_bucket(self._parameters)

    def _by_bucket(self, parameters: Mapping[str, Tensor]) -> list[Places]:
        slots = list(itertools.chain.from_iterable(self._slots))
        views = iter(_views(self._model, parameters, slots)) if self.is_whole else iter(())
        return [Places(list(itertools.islice(views, len(each)))) for each in self._slots]

    @property
    def has_spare(self) -> bool:
        return bool(self._spare)

    def make_spare(self, fixed: Collection[str]) -> None:
        """Load into a second set of parameters from now on, as long as the model has not taken it over.

        Args:
            fixed: parameters that are copied then, and not exchanged, as their addresses are in use elsewhere.
        """
        self._fixed = fixed
        self._spare = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._views = self._by_bucket(self._spare)
        self._next_views = self._by_bucket({**self._parameters, **{name: self._spare[name] for name in fixed}})

    @torch.no_grad()
    def take_over(self) -> None:
        """Let the model use the spare set, and load into the one that it used so far. No step may be under way."""
        if not self._spare:
            return
        for name, parameter in self._parameters.items():
            if name not in self._fixed:
                parameter.data, self._spare[name] = self._spare[name], parameter.data
        if self._fixed:
            targets, sources = zip(*((self._parameters[name], self._spare[name]) for name in self._fixed), strict=True)
            torch._foreach_copy_(list(targets), list(sources))
        self._views, self._next_views = self._next_views, self._views

    def places(self, bucket: int, content: Tensor) -> Places:
        """The tensors in the bytes of a bucket, uint8 [num_bytes]: views."""
        return Places([slot_tensor(content, slot) for slot in self._slots[bucket]])

    @torch.no_grad()
    def load(self, bucket: int, arrived: Places) -> None:
        """Write the tensors of a bucket into the parameters."""
        if self.is_whole:
            views = self._views[bucket]
            if views.words is not None and arrived.words is not None:
                torch._foreach_copy_(views.words, arrived.words)
            else:
                torch._foreach_copy_(views.tensors, arrived.tensors)
        else:
            names = [slot.tensor.name for slot in self._slots[bucket]]
            self._model.load_weights(zip(names, arrived.tensors, strict=True))

    def parts(self, bucket: int, tensors: Sequence[Tensor]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """What `load` copies into whole parameters, in parts: (byte of the bucket at which it ends, target, source)."""
        for slot, view, tensor in zip(self._slots[bucket], self._views[bucket].tensors, tensors, strict=True):
            end = slot.offset
            for target, source in parts(view, tensor):
                end += target.nbytes
                yield end, target, source

    def prove(self, bucket: int, tensors: Sequence[Tensor]) -> None:
        """Compare the parameters with the tensors of a bucket that were loaded into them, unless they are shards.

        Raises:
            WeightSyncError: naming the first one that differs.
        """
        if not self.is_whole:
            return
        for slot, view, tensor in zip(self._slots[bucket], self._views[bucket].tensors, tensors, strict=True):
            if not torch.equal(view, tensor.to(view.device)):
                raise WeightSyncError(f"{slot.tensor.name} differs in the engine from what was received")


def _world_size() -> int:
    from vllm.distributed import get_tensor_model_parallel_world_size

    return int(get_tensor_model_parallel_world_size())


def fixed_parameters(model: Any, *, may_move: bool) -> set[str]:
    """Parameters that have to stay in their memory: all, or else those that share it with other tensors.

    The other tensors would go on with the old values if a parameter moved.
    """

    def is_shared(parameter: Tensor) -> bool:
        storage = parameter.untyped_storage()
        return int(torch._C._storage_Use_Count(storage._cdata)) > ALONE

    return {name for name, parameter in model.named_parameters() if not may_move or is_shared(parameter)}


def _views(model: Any, parameters: Mapping[str, Tensor], slots: Sequence[Slot]) -> list[Tensor]:
    """A view of the parameters per slot, in the tensor's shape."""
    packed = {
        part: (fused, index)
        for fused, parts in getattr(model, "packed_modules_mapping", {}).items()
        for index, part in enumerate(parts)
        if part != fused
    }
    num_rows = {slot.tensor.name: slot.tensor.shape[0] if slot.tensor.shape else 1 for slot in slots}
    given: dict[str, int] = {}
    views = []
    for slot in slots:
        name = slot.tensor.name
        (mapped,) = model.hf_to_vllm_mapper.apply_list([name])
        module, _, leaf = mapped.rpartition(".")
        parent, _, last = module.rpartition(".")
        first_row = 0
        if last in packed:
            fused, index = packed[last]
            siblings = [part for part, (other, at) in packed.items() if other == fused and at < index]
            first_row = sum(num_rows.get(_sibling(name, last, part), 0) for part in siblings)  # checked below
            mapped = f"{parent}.{fused}.{leaf}"
        if mapped not in parameters:
            raise WeightSyncError(f"{name} has no parameter {mapped} in the engine's model")
        views.append(_rows(parameters[mapped].detach(), first_row, slot))
        given[mapped] = given.get(mapped, 0) + num_rows[name]
    _check_coverage(parameters, given)
    return views


def _rows(parameter: Tensor, first: int, slot: Slot) -> Tensor:
    shape = slot.tensor.shape
    rows = parameter.reshape(1) if parameter.ndim == 0 else parameter[first : first + (shape[0] if shape else 1)]
    if rows.numel() != math.prod(shape) or str(rows.dtype) != f"torch.{slot.tensor.dtype}" or not rows.is_contiguous():
        raise WeightSyncError(
            f"{slot.tensor.name} is {slot.tensor.dtype} {shape}, its place in the engine's model "
            f"{str(rows.dtype).removeprefix('torch.')} {tuple(rows.shape)}"
        )
    return rows.view(shape)


def _check_coverage(parameters: Mapping[str, Tensor], given: dict[str, int]) -> None:
    """Raise WeightSyncError if a parameter would keep values of its own."""
    for name, parameter in parameters.items():
        num_rows = parameter.shape[0] if parameter.ndim else 1
        held = given.get(name, 0)
        if held != num_rows and not (0 < held < num_rows and name.endswith(PADDED)):
            raise WeightSyncError(f"{held} of {num_rows} rows of the engine's parameter {name} come from the learner")


def _sibling(name: str, last: str, part: str) -> str:
    head, _, tail = name.rpartition(f".{last}.")
    return f"{head}.{part}.{tail}"
