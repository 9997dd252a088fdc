"""What a run says about itself, and that it survives being written down."""

from __future__ import annotations

import json
import math

import pytest

from cluster.status.views import (
    MemberView,
    RunStatus,
    ScaleAnswer,
    decode_status,
    encode_status,
    members_line,
)
from configs.ranges import Range

SIZES = {"rollouts": Range(minimum=2, maximum=4), "learner": Range(minimum=1, maximum=2)}


def rollouts(*states: str) -> list[MemberView]:
    return [MemberView(name=f"rollout worker {i}", role="rollouts", state=state) for i, state in enumerate(states)]


def ranks(*states: str) -> list[MemberView]:
    return [MemberView(name=f"learner rank {i}", role="learner", state=state) for i, state in enumerate(states)]


STATUS = RunStatus(
    run="tiny",
    state="running",
    step=3,
    num_steps=20,
    phase="step 4: rollouts and judging 3/32",
    eta_s=61.5,
    version=3,
    members=(
        MemberView(name="rollout worker 0", role="rollouts", state="serving", version=3, node="n1", in_flight=4),
        MemberView(name="rollout worker 1", role="rollouts", state="pending", since=5.0, detail="no node has 1 GPU"),
    ),
    wanted={"rollouts": "2..4", "learner": "1"},
    num_judges=2,
    scale=ScaleAnswer(id="a", requested={"rollouts": "2..4"}, is_accepted=True, reason="waits"),
)


def test_a_status_survives_its_file():
    assert decode_status(json.loads(json.dumps(encode_status(STATUS)))) == STATUS
    assert [member.name for member in STATUS.waiting] == ["rollout worker 1"]


def test_fields_of_a_later_version_are_ignored():
    fields = json.loads(json.dumps(encode_status(STATUS)))
    fields["mood"] = "good"
    fields["members"][0]["temperature"] = 41
    assert decode_status(fields) == STATUS


@pytest.mark.parametrize(
    "change",
    [
        {"state": "happy"}, {"wanted": None}, {"members": [{"name": "x"}]}, {"scale": 3}, {"num_steps": "x"},
        {"step": None}, {"eta_s": math.nan}, {"wanted": {"rollouts": 5}}, {"cause": None},
        {"members": [{"name": "x", "role": "rollouts", "state": "serving", "node": 5}]},
        {"members": [{"name": "x", "role": "rollouts", "state": "serving", "since": math.inf}]},
    ],
)  # fmt: skip
def test_what_is_no_status_is_refused(change):
    with pytest.raises(ValueError, match="not the status of a run"):
        decode_status(encode_status(STATUS) | change)
    with pytest.raises(ValueError, match="not the status of a run"):
        decode_status({})


@pytest.mark.parametrize(
    ("members", "judges", "line"),
    [
        ([], None, ""),
        (rollouts("serving", "serving", "serving", "pending"), None, "rollouts 3/4 serving, 1 pending"),
        (rollouts("serving") + ranks("serving", "serving"), 3, "rollouts 1/4 serving; learner 2 ranks; judges 3"),
        (ranks("serving", "starting"), 0, "learner 1/2 ranks, 1 starting; judges 0"),
    ],
)
def test_the_line_of_the_display_counts_members_against_what_is_wanted(members, judges, line):
    assert members_line(members, SIZES, judges) == line


def test_a_learner_of_one_is_one_rank():
    assert members_line(ranks("serving"), {"learner": Range(minimum=1, maximum=1)}) == "learner 1 rank"
