from dataclasses import replace

import pytest

from actors.errors import CheckpointError
from cluster.identity import Identity, check_identity

SAVED = {"dataset": "abc", "model": "m1", "seed": 0, "packages": {"ray": "2.60.0"}}
CURRENT = Identity(dataset="abc", model="m1", seed=0, packages={"ray": "2.60.0"})


def test_the_same_run_goes_on():
    check_identity(SAVED, CURRENT)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dataset": "xyz"}, r"dataset='abc'.*'xyz'.*data\.train"),
        ({"model": "m2"}, r"model='m1'.*'m2'.*model\.path"),
        ({"seed": 7}, r"seed=0.*7.*run\.seed"),
        ({"packages": {"ray": "2.61.0"}}, r"2\.60\.0.*2\.61\.0.*uv sync"),
    ],
)
def test_another_run_is_refused_with_both_values_and_the_remedy(change, words):
    with pytest.raises(CheckpointError, match=words):
        check_identity(SAVED, replace(CURRENT, **change))
