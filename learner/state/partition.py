"""Where a rank's part of the weights and moments lies inside a DeepSpeed optimizer.

Each ZeRO stage has its own layout. Here it is a few flat float32 tensors and the pieces of parameters in them, so that
a copy to host memory is a few large copies and gathers nothing.

Legend: N elements of this rank's part, in the order of its flat tensors; the three rows are weight and moments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from learner.state.snapshot import ROWS, Piece

MOMENTS = ROWS[1:]


class Partition:
    """This rank's part of the state of trained parameters.

    Args:
        optimizer: DeepSpeed's, or under stage 0 Adam itself.
        adam: the optimizer with the moments.
        stage: of ZeRO, as DeepSpeed runs it.
    """

    def __init__(
        self, trained: Mapping[str, nn.Parameter], optimizer: Any, adam: torch.optim.Optimizer, stage: int
    ) -> None:
        self._trained = trained
        self._optimizer = optimizer
        self._adam = adam
        self._stage = stage
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()

    @property
    def flats(self) -> list[Tensor]:
        """The tensors that Adam steps: parameters, or this rank's flat float32 shards of them."""
        match self._stage:
            case 0:
                return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
            case 3:
                return list(self._optimizer.fp32_partitioned_groups_flat)
            case _:
                return list(self._optimizer.single_partition_of_fp32_groups)

    def held(self) -> tuple[Piece, ...]:
        """What this rank saves: under stage 0, where every rank has all, a slice of each parameter."""
        return tuple(self._sliced() if self._stage == 0 else self._sharded())

    def wanted(self) -> tuple[Piece, ...]:
        """What this rank needs to go on: under stage 0 all, else what it holds."""
        return tuple(_whole(self._trained)) if self._stage == 0 else self.held()

    def num_elements(self, pieces: Sequence[Piece]) -> int:
        """N of rows with these pieces, padding included."""
        if self._stage:
            return sum(flat.numel() for flat in self.flats)
        return sum(piece.num_elements for piece in pieces)

    def copy_to(self, state_3N: Tensor) -> None:
        """Copy what this rank holds, without waiting for the device."""
        for row, kind in zip(state_3N, ROWS, strict=True):
            if self._stage == 0:
                for piece in self._sliced():
                    source = self._tensor(self._trained[piece.name], kind).flatten()[piece.start : piece.stop]
                    row[piece.offset : piece.offset + piece.num_elements].copy_(source, non_blocking=True)
            else:
                for flat, part in self._by_flat(row):
                    part.copy_(self._tensor(flat, kind), non_blocking=True)

    @torch.no_grad()
    def copy_from(self, state_3N: Tensor) -> None:
        """Take over what this rank wants, and bring the weights of the forward pass up to date. A collective."""
        for row, kind in zip(state_3N, ROWS, strict=True):
            if self._stage == 0:
                for piece in _whole(self._trained):
                    target = self._tensor(self._trained[piece.name], kind)
                    target.copy_(row[piece.offset : piece.offset + piece.num_elements].reshape(target.shape))
            else:
                for flat, part in self._by_flat(row):
                    self._tensor(flat, kind).copy_(part)
        if self._stage == 3:
            self._optimizer.checkpoint_event_prologue()
            for index in range(len(self.flats)):
                self._optimizer._reassign_or_swap_out_partitioned_parameters(index)
            self._optimizer.checkpoint_event_epilogue()
        elif self._stage:
            self._optimizer.update_lp_params()

    def _tensor(self, flat: Tensor, kind: str) -> Tensor:
        moment: Tensor = flat.detach() if kind == ROWS[0] else self._adam.state[flat][kind]
        return moment

    def _by_flat(self, row: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Each flat tensor with its part of a row."""
        flats = self.flats
        return zip(flats, torch.split(row, [flat.numel() for flat in flats]), strict=True)

    def _sliced(self) -> Iterator[Piece]:
        offset = 0
        for name, parameter in self._trained.items():
            start, stop = (parameter.numel() * rank // self._world_size for rank in (self._rank, self._rank + 1))
            if start < stop:
                yield Piece(name=name, start=start, stop=stop, offset=offset)
            offset += stop - start

    def _sharded(self) -> Iterator[Piece]:
        begins = [0]
        for flat in self.flats:
            begins.append(begins[-1] + flat.numel())
        parameter: Any  # with attributes of DeepSpeed's
        for name, parameter in self._trained.items():
            if self._stage == 3:
                group, offset, size = self._optimizer.grad_position[self._optimizer.get_param_id(parameter)]
                start = min(size * self._rank, parameter.ds_numel)
                stop = min(start + size, parameter.ds_numel)
            elif (mapping := parameter._hp_mapping) is not None:
                group, offset = mapping.param_group_index, mapping.hp_fragment_address.start
                start = mapping.lp_fragment_address.start
                stop = start + mapping.lp_fragment_address.numel
            else:  # other ranks hold it
                continue
            if start < stop:
                yield Piece(name=name, start=start, stop=stop, offset=begins[group] + offset)


def _whole(parameters: Mapping[str, nn.Parameter]) -> Iterator[Piece]:
    offset = 0
    for name, parameter in parameters.items():
        yield Piece(name=name, start=0, stop=parameter.numel(), offset=offset)
        offset += parameter.numel()
