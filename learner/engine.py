"""The DeepSpeed engine (the only file that imports it): sharded optimizer steps, and a state independent of sharding.

DeepSpeed averages gradients over data-parallel ranks; losses here are shares of a sum (`learner.loss`), so each is
scaled by the number of ranks first. Its own count of accumulation steps is switched off
(`managed_gradient_accumulation`): a mini-batch has as many micro-batches as its tokens need.

A loss or gradient that is not finite skips the update on all ranks together (rule I of the reliability rules):
DeepSpeed skips a step whose gradient norm, which all ranks share, is not finite, and a non-finite loss is propagated
into that norm.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from actors.errors import InterruptedCallError
from actors.importing import without
from configs.learner import LearnerConfig
from learner.lora.merging import is_adapter, merged, name_of_weight
from learner.memory import deepspeed_stage
from learner.rendezvous import meet_on_loopback
from learner.state.partition import MOMENTS, Partition
from learner.zero.gathering import GatherOrders
from learner.zero.gradient_sums import speed_up_gradient_sums
from learner.zero.optimizer import ClippedAdamW, adamw_settings, learning_rate
from learner.zero.sharding import learner_settings, part_sizes

GATHER_ELEMENTS = 2**27
"""Parameters gathered together from ZeRO-3 shards; as many again are in flight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    is_applied: bool
    """False if the step was skipped on all ranks."""
    grad_norm: float
    """Before clipping; inf if the step was skipped."""


def import_deepspeed(*, on_gpu: bool) -> Any:
    """DeepSpeed, told what device it is to use."""
    # Read at import: DeepSpeed would otherwise use the GPU of a machine whose learner should run on CPU.
    os.environ["DS_ACCELERATOR"] = "cuda" if on_gpu else "cpu"
    # A rank sees only its own device, however it was launched.
    os.environ["LOCAL_RANK"] = "0"
    with without("mlflow"):  # half of what DeepSpeed imports, for its tuner, which is not used
        import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # An all-reduce through shared memory, for inference on CPUs: two minutes of compilation that training never uses.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def join_process_group(*, rank: int, world_size: int, address: str, port: int, timeout_s: float, on_gpu: bool) -> None:
    """Initialize the process group, NCCL or gloo; a collective that waits longer than `timeout_s` fails."""
    deepspeed = import_deepspeed(on_gpu=on_gpu)
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(rank), str(world_size)
    if not dist.is_initialized():
        if not on_gpu:
            meet_on_loopback(rank=rank, world_size=world_size, address=address, port=port, timeout_s=timeout_s)
        deepspeed.init_distributed(
            dist_backend="nccl" if on_gpu else "gloo",
            auto_mpi_discovery=False,
            verbose=False,
            timeout=timedelta(seconds=timeout_s),
            init_method=f"tcp://{address}:{port}",
            rank=rank,
            world_size=world_size,
        )
        _reset_counters()


def leave_process_group() -> None:
    """Leave it whole, so that this process can join another."""
    if dist.is_initialized():
        import deepspeed

        deepspeed.comm.destroy_process_group()  # with the groups that DeepSpeed keeps beside torch's


def abort_process_group() -> None:
    """Free the thread that waits in a collective for a rank that is gone. From another thread; NCCL alone needs it."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        dist.distributed_c10d._abort_process_group()


def is_collective_failure(error: BaseException) -> bool:
    """Whether a collective failed, because another rank is gone or the way to it is."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "NCCL", "TCPStore"))
    )


def _reset_counters() -> None:
    """Number the parameters and modules of a new ZeRO-3 engine from 0.

    DeepSpeed 0.19.8 goes on counting in a process, and ranks name what they gather by these numbers: one that joins
    later, or sat out, would disagree with the others. Nothing of the engines before is left when this is called.
    """
    from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
    from deepspeed.runtime.zero.partition_parameters import Init

    Init.param_id = 0
    (counter,) = DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__
    counter[0] = 0


class LearnerEngine:
    """A module under DeepSpeed: forward, backward, step, and its whole state by parameter name."""

    def __init__(self, module: nn.Module, config: LearnerConfig, *, dtype: torch.dtype) -> None:
        import deepspeed

        if config.zero_stage == 0 and dtype != torch.float32:
            raise ValueError(
                f"learner.zero_stage=0 is invalid: {dtype} needs the float32 master weights of stages 1 to 3"
            )
        self._config = config
        self._stage = deepspeed_stage(config, in_bfloat16=dtype == torch.bfloat16)
        self.world_size = dist.get_world_size()
        self.dtype = dtype
        self.optimizer_step = 0
        """Steps applied so far: the version of the weights."""
        self.num_passes = 0
        """Forward and backward passes and steps so far; equally many on all ranks. Read by another thread."""
        self.is_discarded = False
        """Set by another thread: the next pass raises InterruptedCallError, because another rank is gone."""
        optimizer = None
        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if config.zero_stage == 0:
            optimizer = ClippedAdamW(trainable, max_norm=config.max_grad_norm, **adamw_settings(config))
        self._engine: Any = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            model_parameters=trainable,
            config=learner_settings(config, dtype, part_sizes(module)),
            dist_init_required=False,
        )[0]
        self._orders = GatherOrders(self._engine.optimizer) if self._stage == 3 else None
        if self._stage in (1, 2) and not config.offload_optimizer:
            speed_up_gradient_sums(self._engine.optimizer)
        self.partition = Partition(dict(self._trained()), self._engine.optimizer, self._adam, self._stage)
        self._reset_moments()
        self._finish_writing()

    @property
    def module(self) -> nn.Module:
        module: nn.Module = self._engine.module
        return module

    @property
    def device(self) -> torch.device:
        return torch.device(self._engine.device)

    def close(self) -> None:
        """Free what DeepSpeed holds. The module cannot be used any more."""
        self._engine.destroy()

    def __call__(self, *inputs: Any) -> Any:
        """The module's forward pass. Under ZeRO-3 its backward pass comes before the next call, or not at all."""
        if self.is_discarded:
            raise InterruptedCallError("the update is discarded: another rank is gone")
        self.num_passes += 1
        if self._orders is not None:
            self._orders.follow(_kind(inputs))
        return self._engine(*inputs)

    def backward(self, loss: Tensor, through: tuple[Tensor, Tensor] | None = None) -> None:
        """Accumulate the gradient of this loss, and that of `through`, as in `backward_through`, in the same pass."""
        self.num_passes += 1
        poison = torch.where(torch.isfinite(loss.detach()), 1.0, math.nan)
        scaled = loss * poison * self.world_size
        self._engine.backward(scaled if through is None else scaled + _carried(*through))

    def backward_through(self, outputs: Tensor, gradient: Tensor) -> None:
        """Accumulate the gradient of these outputs, given what `backward` has left as theirs."""
        self.num_passes += 1
        self._engine.backward(_carried(outputs, gradient))

    def step(self) -> StepResult:
        """One optimizer step with the gradients accumulated since the last, clipped; skipped if they are not finite."""
        self.num_passes += 1
        rate = learning_rate(self._config, self.optimizer_step)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        norm = math.inf if norm is None else float(norm)
        applied = bool(self._engine.was_step_applied()) and math.isfinite(norm)
        self.optimizer_step += int(applied)
        self._clear_sums()
        self._finish_writing()
        return StepResult(is_applied=applied, grad_norm=norm)

    def _clear_sums(self) -> None:
        """Zero the sums of gradients that DeepSpeed keeps from step to step.

        In the first backward pass after a step it overwrites them, in later ones it adds. A parameter that is not in
        the first one, such as the vision tower's, would be added to its sum of the step before.
        """
        optimizer: Any = self._engine.optimizer
        if self._stage == 3:
            optimizer.grad_partitions_flat_buffer.zero_()
        elif self._stage and self._config.offload_optimizer:
            for total in optimizer.accumulated_grads_in_cpu.values():
                total.zero_()
            # After a skipped step DeepSpeed 0.19.8 would add to the values that were not finite.
            optimizer.averaged_gradients = dict.fromkeys(optimizer.averaged_gradients)

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(name, whole parameter as the forward pass has it), in order, on every rank: a collective under ZeRO-3.

        Adapters are added to the weights that they belong to. Take each before the next.
        """
        return merged(self._whole, self._config.lora.scale)

    def adapters(self) -> dict[str, Tensor]:
        """Whole adapters as the forward pass has them, by name, on every rank: a collective under ZeRO-3."""
        return {name: parameter.clone() for name, parameter in self._whole(is_adapter)}

    def _whole(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
        """Those of the whole parameters whose names are wanted.

        Under ZeRO-3 each is there until the next is taken, and the following ones are gathered meanwhile.
        """
        named = [(name, parameter) for name, parameter in self.module.named_parameters() if wanted(name)]
        if self._stage != 3 or not named:
            yield from ((name, parameter.detach()) for name, parameter in named)
            return
        chunks = list(_chunks(named))
        gathers = deque([_Gather(chunks[0])])
        try:
            for chunk, following in itertools.zip_longest(chunks, chunks[1:]):
                if following is not None:
                    gathers.append(_Gather(following))
                gathers[0].wait()
                yield from ((name, parameter.detach()) for name, parameter in chunk)
                gathers.popleft().release()
        finally:
            for gather in gathers:
                gather.release()

    def resident_parameters(self) -> list[Tensor] | None:
        """All parameters in order if they are whole at any time, and stay where they are; None under ZeRO-3, and with
        adapters, which are added on the way out."""
        if self._stage == 3 or self._config.lora.rank:
            return None
        return [parameter.detach() for parameter in self.module.parameters()]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each of `parameters`."""
        return {name_of_weight(name): _shape(p) for name, p in self.module.named_parameters() if not is_adapter(name)}

    def trained_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each whole parameter that is trained, and so part of the state."""
        return {name: _shape(parameter) for name, parameter in self._trained()}

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.module.named_parameters() if p.requires_grad)

    def load_state(self, state_3N: Tensor, *, optimizer_step: int) -> None:
        """Take over this rank's part of a state, laid out as `partition.wanted()`. A collective."""
        self.partition.copy_from(state_3N)
        self.optimizer_step = optimizer_step
        self._set_adam_step(optimizer_step)
        self._finish_writing()

    def _finish_writing(self) -> None:
        """Wait for the device: gathers on a stream of their own must see the weights that were written."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _reset_moments(self) -> None:
        """Create Adam's state at zero steps, so that it can be saved and loaded at any time."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        for flat in self.partition.flats:
            self._adam.state[flat].update({moment: torch.zeros_like(flat) for moment in MOMENTS})
        if self._stage in (1, 2):
            for parameters, flat in zip(self._engine.optimizer.bit16_groups, self.partition.flats, strict=True):
                lazy_init_hp_params_optimizer_state(parameters, flat, self._adam.state)
        self._set_adam_step(0)

    def _set_adam_step(self, step: int) -> None:
        for flat in self.partition.flats:
            # The fused kernel reads the count on the device, the others on the CPU.
            self._adam.state[flat]["step"] = torch.tensor(float(step), device=flat.device if self._is_fused else "cpu")

    @property
    def _is_fused(self) -> bool:
        return any(group.get("fused") for group in self._adam.param_groups)

    @property
    def _adam(self) -> torch.optim.Optimizer:
        optimizer: Any = self._engine.optimizer
        adam: torch.optim.Optimizer = optimizer if self._stage == 0 else optimizer.optimizer
        return adam


def construction(settings: dict[str, Any]) -> AbstractContextManager[object]:
    """In which to build the model of an engine with these settings: under ZeRO-3, ranks keep their shares alone."""
    import deepspeed

    if settings["zero_optimization"]["stage"] != 3:
        return nullcontext()
    # Without overrides of dtypes, which would round the rotary frequencies.
    context: AbstractContextManager[object] = deepspeed.zero.Init(config_dict_or_path=settings, tensor_overrides=())
    return context


class ShardedForward:
    """The forward pass of a frozen module whose parameters are sharded and gathered layer by layer. A collective."""

    def __init__(self, module: nn.Module, settings: dict[str, Any]) -> None:
        import deepspeed

        self._engine: Any = deepspeed.initialize(model=module, config=settings, dist_init_required=False)[0]
        self._orders = GatherOrders(self._engine.optimizer)

    def __call__(self, *inputs: Any) -> Any:
        self._orders.follow(_kind(inputs))
        return self._engine(*inputs)

    def close(self) -> None:
        """Free what DeepSpeed holds."""
        self._engine.destroy()


def _carried(outputs: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose gradient with respect to these outputs is the given one."""
    return (outputs.to(gradient.dtype) * gradient).sum()


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Of the whole parameter, sharded or not."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _kind(inputs: tuple[Any, ...]) -> Hashable:
    """What decides the order of modules in a call, with its backward pass."""
    return type(inputs[0]), torch.is_grad_enabled()


def _chunks(named: Sequence[tuple[str, Any]]) -> Iterator[list[tuple[str, Any]]]:
    """Parameters in runs of bounded size; a sharded one counts at its whole size."""
    chunk: list[tuple[str, Any]] = []
    elements = 0
    for name, parameter in named:
        size = getattr(parameter, "ds_numel", parameter.numel())
        if chunk and elements + size > GATHER_ELEMENTS:
            yield chunk
            chunk, elements = [], 0
        chunk.append((name, parameter))
        elements += size
    if chunk:
        yield chunk


class _Gather:
    """Whole parameters of a chunk, in flight until `wait` and present until `release`. Each step is a collective."""

    def __init__(self, chunk: Sequence[tuple[str, Any]]) -> None:
        # Parameters too small to be sharded stay present between steps.
        self._absent = [parameter for _, parameter in chunk if parameter.ds_status.name == "NOT_AVAILABLE"]
        self._handle = self._absent[0].all_gather_coalesced(self._absent) if self._absent else None

    def wait(self) -> None:
        if self._handle is not None:
            self._handle.wait()

    def release(self) -> None:
        self.wait()
        if self._absent:
            self._absent[0].partition(param_list=self._absent)
