import copy
import math

import pytest
import torch
from torch import nn

from configs.learner import LearnerConfig
from learner import engine as engine_module
from learner.engine import LearnerEngine, join_process_group
from learner.state.snapshot import ROWS, copy_rows, plan_copies
from learner.worker import LearnerRank
from learner.zero.optimizer import learning_rate
from learner.zero.sharding import learner_settings
from tests.learner.whole_state import whole_state

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
STAGES = [0, 1, 2, 3]


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x):
        return self.second(self.first(x).tanh())


@pytest.fixture(scope="module", autouse=True)
def process_group():
    address, port = LearnerRank.rendezvous(None)
    join_process_group(rank=0, world_size=1, address=address, port=port, timeout_s=60, on_gpu=False)


def settings(stage, **changes):
    return LearnerConfig(
        **{"zero_stage": stage, "learning_rate": 1e-2, "weight_decay": 0.1, "max_grad_norm": 0.5, **changes}
    )


def mini_batch(seed, num_micro_batches):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 5, generator=generator) for _ in range(num_micro_batches)]


def learn(engine, micro_batches, *, factor=1.0):
    for x in micro_batches:
        engine.backward(engine(x).square().sum() * factor)
    return engine.step()


def weights(engine):
    return {name: p.clone() for name, p in engine.parameters()}


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_equals_plain_adamw_on_the_summed_loss(stage):
    engine, plain = LearnerEngine(Net(), settings(stage), dtype=torch.float32), Net()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    for step, num_micro_batches in enumerate([3, 1, 4]):
        batches = mini_batch(step, num_micro_batches)
        sum(plain(x).square().sum() for x in batches).backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        result = learn(engine, batches)
        assert result.is_applied
        assert result.grad_norm == pytest.approx(norm.item(), rel=1e-5)
        for (_, found), expected in zip(engine.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(found, expected.detach(), atol=1e-6, rtol=0)
    assert engine.optimizer_step == 3


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_skipped_and_leaves_no_trace(stage, factor):
    disturbed = LearnerEngine(Net(), settings(stage), dtype=torch.float32)
    undisturbed = LearnerEngine(Net(), settings(stage), dtype=torch.float32)
    for engine in (disturbed, undisturbed):
        assert learn(engine, mini_batch(0, 2)).is_applied
    before = weights(disturbed)
    result = learn(disturbed, mini_batch(1, 2), factor=factor)
    assert (result.is_applied, result.grad_norm, disturbed.optimizer_step) == (False, math.inf, 1)
    for name, weight in weights(disturbed).items():
        assert torch.equal(weight, before[name])
    for engine in (disturbed, undisturbed):
        learn(engine, mini_batch(2, 3))
    expected = weights(undisturbed)
    for name, weight in weights(disturbed).items():
        assert torch.equal(weight, expected[name])


@pytest.mark.parametrize("stage", STAGES)
def test_a_loss_that_is_not_finite_skips_the_step_even_where_its_gradient_is(stage):
    engine = LearnerEngine(Net(), settings(stage), dtype=torch.float32)
    (x,) = mini_batch(0, 1)
    engine.backward(engine(x).square().sum() + math.inf)
    assert not engine.step().is_applied


def held_state(engine):
    """What the engine's only rank holds, as it would save it."""
    held = engine.partition.held()
    rows = torch.zeros(3, engine.partition.num_elements(held))
    engine.partition.copy_to(rows)
    return rows, held


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_rank_holds_is_what_deepspeed_gathers(stage):
    engine = LearnerEngine(Net(), settings(stage), dtype=torch.float32)
    learn(engine, mini_batch(0, 2))
    rows, held = held_state(engine)
    expected = dict(whole_state(engine))
    assert sorted(piece.name for piece in held) == sorted(engine.shapes())
    for row, kind in zip(rows, ROWS, strict=True):
        for piece in held:
            found = row[piece.offset : piece.offset + piece.num_elements]
            assert torch.equal(found, expected[f"{kind}/{piece.name}"].flatten()), (kind, piece.name)


@pytest.mark.parametrize("written_by", STAGES)
@pytest.mark.parametrize("read_by", STAGES)
def test_state_goes_from_any_stage_to_any_other_bit_for_bit_and_learning_goes_on_alike(written_by, read_by):
    writer = LearnerEngine(Net(0), settings(written_by), dtype=torch.float32)
    for step in range(2):
        learn(writer, mini_batch(step, 2))
    rows, held = held_state(writer)
    reader = LearnerEngine(Net(9), settings(read_by), dtype=torch.float32)
    wanted = reader.partition.wanted()
    own = torch.zeros(3, reader.partition.num_elements(wanted))
    copy_rows(plan_copies(wanted, [held])[0], rows.numpy(), own.numpy())
    reader.load_state(own, optimizer_step=writer.optimizer_step)
    assert reader.optimizer_step == 2
    state = dict(whole_state(writer))
    for key, tensor in whole_state(reader):
        assert torch.equal(tensor, state[key]), key
    assert all(torch.equal(weight, state[f"weight/{name}"]) for name, weight in weights(reader).items())
    for step in range(2, 4):
        learn(writer, mini_batch(step, 2))
        learn(reader, mini_batch(step, 2))
    expected = weights(writer)
    for name, weight in weights(reader).items():
        if written_by == read_by:
            assert torch.equal(weight, expected[name]), name
        else:
            # Stages lay tensors out differently, and on some CPUs the last bit depends on where a vector ends.
            torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bfloat16_weights_follow_the_masters_that_were_restored(stage):
    writer, reader = (LearnerEngine(Net(seed), settings(stage), dtype=torch.bfloat16) for seed in (0, 9))
    writer.backward(writer(mini_batch(0, 1)[0].bfloat16()).float().square().sum())
    writer.step()
    reader.load_state(held_state(writer)[0], optimizer_step=1)
    expected = weights(writer)
    for name, weight in weights(reader).items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize("stage", STAGES)
def test_state_can_be_saved_before_the_first_step(stage):
    engine = LearnerEngine(Net(), settings(stage), dtype=torch.float32)
    state = dict(whole_state(engine))
    assert set(engine.shapes()) == {key.removeprefix("weight/") for key in state if key.startswith("weight/")}
    assert all(tensor.count_nonzero() == 0 for key, tensor in state.items() if key.startswith("exp_avg"))
    for name, parameter in Net().named_parameters():
        assert torch.equal(state[f"weight/{name}"], parameter)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bfloat16_weights_follow_float32_masters(stage):
    engine = LearnerEngine(Net(), settings(stage, learning_rate=1e-4), dtype=torch.bfloat16)
    for step in range(3):
        engine.backward(engine(mini_batch(step, 1)[0].bfloat16()).float().square().sum())
        assert engine.step().is_applied
    masters = {key.removeprefix("weight/"): tensor for key, tensor in whole_state(engine) if key.startswith("weight/")}
    for name, weight in weights(engine).items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(masters[name].bfloat16(), weight)
    assert any(not torch.equal(masters[name].bfloat16().float(), masters[name]) for name in masters)


class Sum(nn.Module):
    """Its gradient is its input."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.weight * x


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_small_gradients_are_not_lost_beside_a_large_one_in_bfloat16(stage):
    engine = LearnerEngine(Sum(), settings(stage, max_grad_norm=100.0), dtype=torch.bfloat16)
    for x in [1.0] + [0.002] * 500:
        engine.backward(engine(torch.tensor([x], dtype=torch.bfloat16)).float().sum())
    # Each small gradient is under half a unit in the last place of 1.
    assert engine.step().grad_norm == pytest.approx(2.0, rel=2e-3)


def test_bfloat16_without_masters_is_refused():
    with pytest.raises(ValueError, match=r"learner\.zero_stage=0.*stages 1 to 3"):
        LearnerEngine(Net(), settings(0), dtype=torch.bfloat16)


def test_the_learning_rate_rises_linearly_and_stays():
    config = settings(1, learning_rate=1.0, warmup_steps=4)
    assert [learning_rate(config, step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert learning_rate(settings(1, learning_rate=0.5), 0) == 0.5


def test_the_warm_up_reaches_the_optimizer():
    module = copy.deepcopy(Net())
    engine = LearnerEngine(module, settings(1, warmup_steps=2, weight_decay=0.0), dtype=torch.float32)
    before = weights(engine)
    learn(engine, mini_batch(0, 1))
    # Adam's first step is the learning rate itself, towards lower loss.
    moved = max((weight - before[name]).abs().max().item() for name, weight in weights(engine).items())
    assert moved == pytest.approx(5e-3, rel=1e-3)


def test_offload_keeps_the_optimizer_in_host_memory():
    zero = learner_settings(settings(2, offload_optimizer=True), torch.bfloat16)["zero_optimization"]
    assert zero["offload_optimizer"]["device"] == "cpu"


def statuses(engine):
    return [parameter.ds_status.name for parameter in engine.module.parameters()]


def test_the_next_parameters_are_gathered_while_these_are_used(monkeypatch):
    monkeypatch.setattr(engine_module, "GATHER_ELEMENTS", 1)
    engine = LearnerEngine(Net(), settings(3, param_persistence_threshold=0), dtype=torch.float32)
    seen = [(name, statuses(engine)) for name, _ in engine.parameters()]
    assert [name for name, _ in seen] == [name for name, _ in Net().named_parameters()]
    for index, (_, found) in enumerate(seen):
        expected = ["NOT_AVAILABLE"] * len(seen)
        expected[index : index + 2] = ["AVAILABLE", "INFLIGHT"][: len(seen) - index]
        assert found == expected
    assert set(statuses(engine)) == {"NOT_AVAILABLE"}


def test_parameters_not_read_to_the_end_leave_nothing_gathered():
    engine = LearnerEngine(Net(), settings(3, param_persistence_threshold=0), dtype=torch.float32)
    taken = engine.parameters()
    next(taken)
    taken.close()
    assert set(statuses(engine)) == {"NOT_AVAILABLE"}
    assert learn(engine, mini_batch(0, 2)).is_applied
