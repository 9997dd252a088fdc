"""What a crash takes from the records is restored or told, never passed over."""

import json

import pytest

from cluster.records.repair import repair_ledger, repair_records

ORDER = [f"0-{number}" for number in range(12)]
STEPS = {1: ORDER[:3], 2: ORDER[3:5], 3: ORDER[5:8], 4: ORDER[8:12]}


def lines(*steps):
    return [{"step": step, "samples": STEPS[step]} for step in steps]


def test_a_whole_ledger_is_left_as_it_is():
    ledger = repair_ledger(lines(1, 2, 3, 4), 4, ORDER, {})
    assert (ledger.samples, ledger.problems) == (STEPS, ())


@pytest.mark.parametrize("lost", [1, 2, 3, 4])
def test_a_lost_line_follows_from_its_neighbours(lost):
    ledger = repair_ledger(lines(*(STEPS.keys() - {lost})), 4, ORDER, {})
    assert ledger.samples == STEPS
    assert list(ledger.samples) == [1, 2, 3, 4]
    assert ledger.problems == (f"ledger.jsonl has no line for step {lost}: it is restored from the data's order",)


def test_several_lost_lines_need_the_number_of_samples_of_each_step():
    known = repair_ledger(lines(1, 4), 4, ORDER, {2: 2, 3: 3})
    assert known.samples == STEPS
    unknown = repair_ledger(lines(1, 4), 4, ORDER, {2: 2})
    assert sorted(unknown.samples) == [1, 4]
    assert unknown.problems == (
        "ledger.jsonl has no line for steps 2, 3: it cannot be restored: their samples are unknown",
    )


def test_later_and_repeated_lines_do_not_count():
    ledger = repair_ledger([*lines(1, 2), {"step": 2, "samples": ["9-9"]}, *lines(3, 4)], 3, ORDER[:8], {})
    assert ledger.samples == {step: STEPS[step] for step in (1, 2, 3)}


def test_samples_out_of_order_are_told():
    changed = [*lines(1), {"step": 2, "samples": ["0-9", "0-4"]}, *lines(3, 4)]
    (problem,) = repair_ledger(changed, 4, ORDER, {}).problems
    assert "samples of step 2 are not those of the data's order" in problem


def test_a_torn_line_in_the_middle_is_restored_on_disk_and_lost_figures_are_named(tmp_path):
    """As a crash leaves it: the line of step 3 torn, the next one behind it on the same line."""
    (tmp_path / "episodes").mkdir()
    for step in (1, 2, 4):
        (tmp_path / "episodes" / f"step-{step:06d}.parquet").touch()
    texts = [json.dumps(line) for line in lines(1, 2, 3, 4)]
    (tmp_path / "ledger.jsonl").write_bytes(
        f"{texts[0]}\n{texts[1]}\n{texts[2][:15]}".encode() + b"\xff\n" + f"{texts[3]}\n".encode()
    )
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in (1, 2, 4)))
    problems = repair_records(tmp_path, 4, ORDER)
    assert [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()] == lines(1, 2, 3, 4)
    assert problems == [
        "ledger.jsonl has no line for step 3: it is restored from the data's order",
        "metrics.jsonl has no line for step 3: their figures are lost",
        "episodes/ has no file for step 3: their episodes are lost",
    ]
    assert len(repair_records(tmp_path, 4, ORDER)) == 2, "the ledger is whole now"
