"""Seeds derived from a run's seed."""

import random

import numpy as np
import pytest
import torch

from configs.schema import RunConfig
from configs.seeds import derive_seed

RUN_SEEDS = (0, 1, 42, 20261129, 2**31, 2**32 - 1, 2**32, 2**64, 10**300, -1, -20261129, -(2**63) - 1)


@pytest.mark.parametrize("seed", RUN_SEEDS)
def test_whatever_the_runs_seed_is_every_library_takes_what_is_derived_from_it(seed):
    assert RunConfig(seed=seed).seed == seed
    for index in range(50):
        derived = derive_seed(seed, "rollout worker", index)
        np.random.RandomState(derived)  # what vLLM seeds in each of its processes: 32 bits at most
        torch.Generator().manual_seed(derived)
        random.Random(derived)


def test_no_two_processes_of_a_run_share_a_seed():
    derived = [derive_seed(seed, role, index) for seed in RUN_SEEDS for role in ("a", "b") for index in range(100)]
    assert len(set(derived)) == len(derived)


@pytest.mark.parametrize(
    ("one", "other"),
    [((1, "a"), (1, "b")), ((1, "a", 1), (1, "a", 2)), ((1, "a", 12), (1, "a1", 2)), ((1, 1), (1, "1")), ((1,), (-1,))],
)
def test_every_argument_counts(one, other):
    assert derive_seed(*one) != derive_seed(*other)


def test_a_seed_is_the_same_in_every_process_and_release():
    assert derive_seed(0, "rollout worker", 0) == 415599709
