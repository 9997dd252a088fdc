"""Sizes of a live run: what may be asked, what is answered, what is kept."""

from __future__ import annotations

import pytest

from cluster.status.scaling import (
    REQUEST,
    SIZES,
    ScaleRequest,
    SizeDesk,
    configured_sizes,
    parse_arguments,
    read_request,
    shortage,
    size_problem,
    withdraw_request,
    write_request,
)
from configs.load import load_config
from configs.ranges import Range, parse_range


def request(number=1, **sizes):
    return ScaleRequest(id=f"r{number}", time=12.5, sizes={role: str(size) for role, size in sizes.items()})


def ranges(rollouts, learner):
    return {"rollouts": parse_range("rollouts", rollouts), "learner": parse_range("learner", learner)}


GPUS = ["rollout.num_gpus=1", "learner.num_gpus=1", "model.dtype=bfloat16"]


def test_arguments_become_sizes():
    assert parse_arguments(["rollouts=2..6", "learner= 3 "]) == {"rollouts": "2..6", "learner": "3"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rollouts"], "ROLE=SIZE"),
        (["workers=2"], "workers is not a role: sizes can be given for rollouts and learner"),
        (["judges=2"], r"judge\.min_replicas"),
        (["rollouts=0"], "at least 1"),
        (["rollouts=6..2"], "smaller number first"),
        (["rollouts=-1"], "MIN..MAX"),
        (["rollouts=1..100000"], "at most 10000"),
        (["rollouts=2", "rollouts=3"], "given twice"),
    ],
)
def test_what_is_no_size_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        parse_arguments(arguments)


def test_sizes_come_from_the_config_until_they_are_changed(tmp_path):
    desk = SizeDesk(tmp_path, load_config("tiny", ["rollout.num_workers=3"]))
    assert desk.desired("rollouts") == Range(minimum=3, maximum=3)
    answer = desk.consider(request(rollouts="2..6"))
    assert answer is not None
    assert (answer.id, answer.is_accepted, answer.reason) == ("r1", True, "")
    assert desk.desired("rollouts") == Range(minimum=2, maximum=6)
    assert desk.desired("learner") == Range(minimum=1, maximum=1)
    assert desk.consider(request(rollouts="2..6")) is None, "it has its answer"


def test_sizes_outlive_the_driver_and_a_refusal(tmp_path):
    config = load_config("tiny", [])
    first = SizeDesk(tmp_path, config)
    first.consider(request(1, rollouts="2..6"))
    first.consider(request(2, learner=2))
    refused = first.consider(request(3, rollouts=4, judges=1))
    assert refused is not None
    assert not refused.is_accepted
    resumed = SizeDesk(tmp_path, config)
    assert resumed.sizes == ranges("2..6", 2)


def test_a_resumption_with_another_setting_has_the_last_word(tmp_path):
    SizeDesk(tmp_path, load_config("tiny", [])).consider(request(rollouts="2..6", learner=2))
    assert SizeDesk(tmp_path, load_config("tiny", ["rollout.num_workers=3"])).sizes == ranges(3, 2)


def test_a_request_is_taken_as_a_whole(tmp_path):
    desk = SizeDesk(tmp_path, load_config("tiny", ["learner.copy_state=false"]))
    answer = desk.consider(request(rollouts=5, learner=2))
    assert answer is not None
    assert not answer.is_accepted
    assert answer.reason.startswith("learner=2: must stay 1 with learner.copy_state=false")
    assert desk.sizes == ranges(1, 1)
    assert not (tmp_path / SIZES).exists()


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"rollouts": "2"}', '{"rollouts": {"size": "x", "setting": "1"}}', '{"a": {"size": "2"}}']
)
def test_kept_sizes_that_are_damaged_are_those_of_the_config(tmp_path, text):
    (tmp_path / SIZES).write_text(text)
    assert SizeDesk(tmp_path, load_config("tiny", [])).sizes == ranges(1, 1)


def test_a_shared_gpu_takes_no_more_members():
    config = load_config("tiny", ["rollout.num_gpus=0.5", "learner.num_gpus=0.5", "model.dtype=bfloat16"])
    assert config.transport == "ipc"
    assert size_problem(config, ranges(1, 1)) is None
    assert "take 1.5" in str(size_problem(config, ranges("1..2", 1)))


def test_a_zero_3_learner_is_not_squeezed_below_what_was_checked():
    config = load_config("tiny", [*GPUS, "learner.zero_stage=3", "learner.num_ranks=4"])
    assert size_problem(config, ranges(1, "4..8")) is None
    assert "learner=2" in str(size_problem(config, ranges(1, 2)))
    whole = load_config("tiny", [*GPUS, "learner.zero_stage=2", "learner.num_ranks=4"])
    assert size_problem(whole, ranges(1, 2)) is None


def test_what_the_cluster_lacks_is_a_remark_and_no_refusal(tmp_path):
    config = load_config("tiny", [*GPUS, "rollout.num_workers=2"])
    assert shortage(config, ranges("1..2", 1), {"CPU": 8.0, "GPU": 3.0}) == ""
    words = shortage(config, ranges("1..6", 2), {"CPU": 8.0, "GPU": 4.0})
    assert "8 GPUs where the cluster has 4" in words
    assert "CPU" not in words
    desk = SizeDesk(tmp_path, config, remark=lambda sizes: shortage(config, sizes, {"CPU": 8.0}))
    answer = desk.consider(request(rollouts=2))
    assert answer is not None
    assert answer.is_accepted
    assert "3 GPUs where the cluster has 0" in answer.reason


def test_a_request_crosses_the_folder_and_can_be_taken_back(tmp_path):
    assert read_request(tmp_path) is None
    asked = request(rollouts="2..6")
    write_request(tmp_path, asked)
    assert read_request(tmp_path) == asked
    withdraw_request(tmp_path, request(2))
    assert read_request(tmp_path) == asked, "it is somebody else's"
    withdraw_request(tmp_path, asked)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        '{"id": 1}',
        '{"id": "a", "sizes": [2]}',
        "[" * 200_000,
        f'{{"id": "a", "sizes": {{}}, "time": {10**400}}}',
    ],
)
def test_a_file_that_is_no_request_is_none(tmp_path, text):
    (tmp_path / REQUEST).write_text(text)
    assert read_request(tmp_path) is None


def test_ranges_in_the_config_are_sizes_too():
    assert configured_sizes(load_config("tiny", ["learner.num_ranks=2"])) == ranges(1, 2)
