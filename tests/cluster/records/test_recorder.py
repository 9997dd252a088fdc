import errno
import json
import os
import resource
import signal
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from actors.data.dataset import CursorState
from actors.episode import SampleRef, VersionSpan
from actors.errors import RunError
from actors.views import Crop
from cluster.heldout import HeldoutPlay
from cluster.records.metrics import summarize
from cluster.records.reading import read_skips
from cluster.records.recorder import Recorder
from cluster.step import LostGroup, ScoredGroup, StepBatch
from configs.rewards import RewardConfig
from judge.reward import group_rewards
from judge.verdict import NoVerdict, Usage, Verdict
from tests.fakes import make_episode, make_group, make_turn

LLM = Verdict(
    is_correct=True,
    judge="openai",
    reason="equal",
    judge_version="v1",
    model="gpt-4o-2024-11-20",
    usage=Usage(num_calls=1, prompt_tokens=90, reply_tokens=3),
)


def collected(uid: str) -> StepBatch:
    played = make_group([make_episode(asked=True, sample=uid), make_episode(answer=None, index=1, sample=uid)])
    outcomes = (LLM, NoVerdict(reason="late", usage=Usage(num_calls=3)))
    group = ScoredGroup(
        played=played,
        outcomes=outcomes,
        rewards=(*group_rewards(played.episodes[:1], outcomes[:1], RewardConfig()), None),
        advantages=(0.5, None),
        image=None,
    )
    return StepBatch(
        trained=(group,),
        without_signal=(),
        lost=(),
        drawn=(SampleRef(dataset="train", row=0, uid=uid),),
        cursor=CursorState(seed=0, epoch=0, position=1),
        seconds=1.0,
    )


def write_steps(folder, first, last):
    recorder = Recorder(folder, step=first - 1)
    for step in range(first, last + 1):
        recorder.record_step(step, collected(f"0-{step}"), {"reward/mean": float(step)})
    recorder.close()


def steps_of(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_every_episode_is_on_disk_with_what_it_earned(tmp_path):
    write_steps(tmp_path, 1, 1)
    scored, unscored = pq.read_table(tmp_path / "episodes" / "step-000001.parquet").to_pylist()
    assert (scored["is_correct"], scored["reward"], scored["advantage"]) == (True, 1.5, 0.5)
    assert [turn["view"] for turn in scored["turns"]] == ["quarter", "full"]
    assert scored["turns"][0]["completion_ids"] == [3, 4]
    assert (unscored["is_correct"], unscored["reward"], unscored["reason"]) == (None, None, "late")


def test_what_a_verdict_took_and_who_gave_it_is_on_disk(tmp_path):
    write_steps(tmp_path, 1, 1)
    columns = ("judge", "judge_version", "judge_model", "num_calls", "prompt_tokens", "reply_tokens")
    rows = pq.read_table(tmp_path / "episodes" / "step-000001.parquet", columns=list(columns)).to_pylist()
    assert [tuple(row[name] for name in columns) for row in rows] == [
        ("openai", "v1", "gpt-4o-2024-11-20", 1, 90, 3),
        (None, None, None, 3, 0, 0),
    ]


def rows_of(folder, *groups):
    recorder = Recorder(folder, step=0)
    recorder.record_step(1, replace(collected("0-1"), trained=tuple(groups)), {})
    recorder.close()
    return pq.read_table(folder / "episodes" / "step-000001.parquet").to_pylist()


def test_what_a_sample_needs_and_whether_just_that_was_shown_is_on_disk(tmp_path):
    (group,) = collected("0-1").trained
    asked, malformed = group.played.episodes
    region = Crop(left=56, top=0, right=112, bottom=56)
    cropped = replace(asked, turns=(asked.turns[0], replace(asked.turns[1], view=region, num_visual_tokens=4)))
    needs = {"full": (True, 80), region: (False, 20), "quarter": (False, 16)}
    for n, (needed, (is_right, least)) in enumerate(needs.items()):
        played = replace(group.played, needed_view=needed)
        first, second = rows_of(tmp_path / str(n), replace(group, played=played))
        assert (first["needed_view"], first["is_right_tool"]) == (str(needed), is_right)
        assert (first["least_visual_tokens"], second["is_right_tool"]) == (least, False)
    played = replace(group.played, needed_view=region, episodes=(cropped, malformed))
    assert rows_of(tmp_path / "right", replace(group, played=played))[0]["is_right_tool"] is True
    played = replace(group.played, needs_full=False)
    assert rows_of(tmp_path / "yes or no", replace(group, played=played))[0]["needed_view"] == "quarter"
    unknown = rows_of(tmp_path / "unknown", group)[0]
    assert [unknown[name] for name in ("needed_view", "is_right_tool", "least_visual_tokens")] == [None] * 3
    at_once = replace(malformed, turns=(make_turn("full"),))
    played = replace(group.played, needed_view=region, episodes=(at_once, at_once))
    full = rows_of(tmp_path / "full at once", replace(group, played=played))[0]
    assert (full["needed_view"], full["is_right_tool"], full["least_visual_tokens"]) == (str(region), None, None)


def test_a_reward_is_on_disk_in_its_parts(tmp_path):
    (group,) = collected("0-1").trained
    config = RewardConfig(penalty="always", budget_weight=0.2, token_budget=0.25, area_weight=0.5)
    rewards = group_rewards(group.played.episodes[:1], group.outcomes[:1], config)
    scored, unscored = rows_of(tmp_path, replace(group, rewards=(*rewards, None)))
    parts = scored["reward_parts"]
    assert parts == pytest.approx(
        {"accuracy": 1.0, "format": 0.5, "box": 0.0, "control": 0.1, "area": 0.0, "budget": 0.2, "overlong": 0.0}
    )
    added = sum(parts[name] for name in ("accuracy", "format", "box"))
    taken = sum(parts[name] for name in ("control", "area", "budget", "overlong"))
    assert scored["reward"] == pytest.approx(added - taken)
    assert unscored["reward_parts"] is None


def test_why_a_call_was_refused_is_on_disk(tmp_path):
    (group,) = collected("0-1").trained
    asked, malformed = group.played.episodes
    refused = replace(malformed, turns=(replace(malformed.turns[0], fault="no tool is on offer"),))
    rows = rows_of(tmp_path, replace(group, played=replace(group.played, episodes=(asked, refused))))
    assert [[turn["fault"] for turn in row["turns"]] for row in rows] == [[None, None], ["no tool is on offer"]]


def test_which_versions_sampled_an_episode_is_on_disk_and_its_age_counts_from_the_oldest(tmp_path):
    batch = collected("0-1")
    (group,) = batch.trained
    asked, direct = group.played.episodes
    spans = (VersionSpan(version=3, num_tokens=1), VersionSpan(version=5, num_tokens=1))
    second = make_turn("full", version=6, prompt=(1, 2, 3, 4, 5))
    asked = replace(asked, turns=(replace(asked.turns[0], version_spans=spans), second))
    direct = replace(direct, turns=(replace(direct.turns[0], version_spans=(VersionSpan(version=6, num_tokens=2),)),))
    batch = replace(batch, trained=(replace(group, played=replace(group.played, episodes=(asked, direct))),))
    recorder = Recorder(tmp_path, step=0)
    recorder.record_step(1, batch, {})
    recorder.close()
    rows = pq.read_table(tmp_path / "episodes" / "step-000001.parquet").to_pylist()
    assert [(row["oldest_version"], row["newest_version"]) for row in rows] == [(3, 6), (6, 6)]
    assert [[tuple(span.values()) for span in turn["version_spans"]] for turn in rows[0]["turns"]] == [
        [(3, 1), (5, 1)],
        [(6, 2)],
    ]
    figures = summarize(batch, policy_version=6)
    assert (figures["policy/staleness_max"], figures["policy/mixed_version_share"]) == (3, 0.5)


def test_a_group_that_got_too_few_verdicts_is_on_disk_for_another_judge(tmp_path):
    (group,) = collected("0-1").trained
    lost = LostGroup(ref=group.played.ref, reason="too few verdicts: late", is_skipped_row=False, group=group)
    recorder = Recorder(tmp_path, step=0)
    recorder.record_step(1, replace(collected("0-1"), trained=(), lost=(lost,)), {})
    recorder.close()
    rows = pq.read_table(tmp_path / "episodes" / "step-000001.parquet").to_pylist()
    assert [(row["answer"], row["is_correct"], row["is_trained"]) for row in rows] == [
        ("red", True, False),
        (None, None, False),
    ]
    assert json.loads((tmp_path / "lost.jsonl").read_text())["reason"] == "too few verdicts: late"


def test_a_resumed_run_tells_one_story(tmp_path):
    write_steps(tmp_path, 1, 4)
    write_steps(tmp_path, 3, 5)
    assert steps_of(tmp_path / "ledger.jsonl") == [1, 2, 3, 4, 5]
    assert steps_of(tmp_path / "metrics.jsonl") == [1, 2, 3, 4, 5]
    assert len(list((tmp_path / "episodes").iterdir())) == 5


def test_held_out_episodes_are_on_disk_like_those_of_the_steps(tmp_path):
    played = make_group([make_episode(asked=True, sample="heldout-3")])
    recorder = Recorder(tmp_path, step=0)
    plays = [HeldoutPlay(kind="always_full", played=played, outcomes=(LLM,))]
    recorder.record_evaluation(7, plays, {"heldout/accuracy": 1.0})
    recorder.close()
    (row,) = pq.read_table(tmp_path / "heldout" / "step-000007.parquet").to_pylist()
    assert (row["kind"], row["step"], row["sample"]) == ("always_full", 7, played.ref.uid)
    assert (row["is_correct"], row["judge"], row["reward"], row["is_trained"]) == (True, "openai", None, False)
    Recorder(tmp_path, step=6).close()
    assert not list((tmp_path / "heldout").iterdir()), "a run that resumes before that step tells another story"


def test_a_torn_last_line_is_cut(tmp_path):
    write_steps(tmp_path, 1, 2)
    with (tmp_path / "ledger.jsonl").open("a") as ledger:
        ledger.write('{"step": 3, "samp')
    write_steps(tmp_path, 3, 3)
    assert steps_of(tmp_path / "ledger.jsonl") == [1, 2, 3]


def test_tensorboard_is_told_anew_on_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_steps(tmp_path, 1, 4)
    write_steps(tmp_path, 3, 3)
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    assert [event.step for event in events.Tensors("reward/mean")] == [1, 2, 3]


def test_a_full_disk_is_one_line_and_leaves_what_was_recorded_whole(tmp_path, monkeypatch):
    """The disk takes the episodes of step 3 and half of its ledger line."""
    write_steps(tmp_path, 1, 2)
    recorder = Recorder(tmp_path, step=2)
    write = os.write

    def half(handle, content):
        if b'"samples"' in content and len(content) > 8:
            return write(handle, content[:8])
        if content.endswith(b"\n"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, content)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises(RunError, match=r"ledger\.jsonl cannot be written: No space left.*run\.name=") as stopped:
            recorder.record_step(3, collected("0-3"), {})
    assert "\n" not in str(stopped.value)
    assert steps_of(tmp_path / "ledger.jsonl") == [1, 2]
    assert steps_of(tmp_path / "metrics.jsonl") == [1, 2]
    recorder.record_step(3, collected("0-3"), {})
    recorder.close()
    assert steps_of(tmp_path / "ledger.jsonl") == [1, 2, 3]


def test_episodes_that_do_not_fit_leave_no_partial_file(tmp_path, monkeypatch):
    recorder = Recorder(tmp_path, step=0)

    def full(table, where, **_):
        where.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(RunError, match="No space left on device; make room"):
        recorder.record_step(1, collected("0-1"), {})
    recorder.close()
    assert list((tmp_path / "episodes").iterdir()) == []
    assert not (tmp_path / "ledger.jsonl").exists(), "the ledger never lists a step without its episodes"


def test_curves_that_do_not_fit_cost_nothing_else(tmp_path, capfd, caplog):
    """A limit on the size of files, which the events of TensorBoard reach first."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    recorder = Recorder(tmp_path, step=0)
    figures = {f"a/{number}": 1.0 for number in range(20)}
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
        for step in range(1, 9):
            recorder.record_figures(step, figures)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    recorder.close()
    assert steps_of(tmp_path / "metrics.jsonl") == list(range(1, 9))
    assert caplog.text.count("no TensorBoard events from step") == 1
    assert "Traceback" not in "".join(capfd.readouterr())


def test_rows_that_were_unusable_are_counted_on_after_a_resumption(tmp_path):
    skipped = LostGroup(
        ref=SampleRef(dataset="d", row=7, uid="0-7"), reason="no image", is_skipped_row=True, group=None
    )
    failed = replace(skipped, ref=SampleRef(dataset="d", row=8, uid="0-8"), reason="late", is_skipped_row=False)
    recorder = Recorder(tmp_path, step=0)
    figures = {"groups/drawn": 5.0, "groups/lost": 1.0, "groups/skipped": 1.0}
    for step in (1, 2):
        recorder.record_step(step, replace(collected(f"0-{step}"), lost=(skipped, failed)), figures)
    recorder.close()
    assert read_skips(tmp_path, "d", 1) == (3, [(skipped.ref, "no image")])
    assert read_skips(tmp_path, "d", 2) == (6, [(skipped.ref, "no image")] * 2)


def test_a_copy_that_somebody_put_beside_the_episodes_stays_and_stops_nothing(tmp_path):
    write_steps(tmp_path, 1, 2)
    kept = tmp_path / "episodes" / "step-000002 (copy).parquet"
    kept.write_bytes((tmp_path / "episodes" / "step-000002.parquet").read_bytes())
    Recorder(tmp_path, step=1).close()
    assert {path.name for path in (tmp_path / "episodes").iterdir()} == {kept.name, "step-000001.parquet"}
