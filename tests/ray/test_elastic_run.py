"""The whole command while its members come and go: ranks, a worker and a node are lost, and both sizes change.

Run it with `pytest -n 0 -s -m slow tests/ray/test_elastic_run.py`.
"""

import json

import pytest

from actors.data.dataset import Dataset, PromptCursor
from tests.bench.elastic import differences, play_part

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("part", ["elastic", "losses"])
def test_a_run_survives_consumes_every_sample_once_and_learns_as_if_nothing_had_happened(tmp_path, part):
    play_part(part, tmp_path, [])
    run = json.loads((tmp_path / f"{part}.json").read_text())
    print(run["recovery_s"])
    consumed = [sample for samples in run["ledger"] for sample in samples]
    data = str(tmp_path / "shapes" / "train.parquet")
    cursor = PromptCursor(dataset=data, num_rows=len(Dataset.open(data)), seed=0)
    assert consumed == [ref.uid for ref in cursor.take(len(consumed))]
    found = differences(run)
    print(found)
    assert found["steps_compared"] > len(run["ledger"]) / 2, "most steps had something to learn from"
    assert found["loss_difference"] <= 1e-6
    assert found["grad_norm_difference"] <= 1e-3
    assert found["weight_difference"] <= 1e-5
    heldout = run["heldout"]
    assert heldout["accuracy"] >= 0.95 * heldout["accuracy_full"]
    assert heldout["ask_share_needed"] >= 0.9
    assert heldout["ask_share_unneeded"] <= 0.1
