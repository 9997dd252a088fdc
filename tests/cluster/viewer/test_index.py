"""The table of episodes: what it holds, what the presets find, and how it keeps up with a run that writes."""

import shutil

import pytest

from cluster.viewer import index as index_module
from cluster.viewer import queries
from cluster.viewer.filters import PRESETS, Filter
from cluster.viewer.index import EpisodeIndex
from tests.cluster.viewer.drawn import episode, heldout, turn, write_run, write_without


@pytest.fixture(autouse=True)
def _always_look(monkeypatch):
    monkeypatch.setattr(index_module, "CHECK_S", 0.0)


def found(con, **values) -> set[tuple[str, int]]:
    rows = queries.page(con, Filter.of(values), offset=0, limit=1000)
    return {(row["sample"], row["index"]) for row in rows}


def test_tokens_are_counted_from_the_turns(tmp_path):
    rows = [episode(0), episode(1, asked=True), episode(2, turns=[turn(view="full")])]
    con = EpisodeIndex(write_run(tmp_path, {"episodes/step-000001": rows})).cursor()
    listed = queries.page(con, Filter(), offset=0, limit=10)
    counted = {row["index"]: (row["visual_tokens"], row["full_tokens"], row["generated_tokens"]) for row in listed}
    assert counted == {0: (16, 64, 3), 1: (80, 64, 6), 2: (64, 64, 3)}


def test_presets_find_what_they_say(tmp_path):
    """The sample's own word on whether the full view is needed counts; without it, what the group shows."""
    rows = [
        episode(0, sample="said-no", needs_full=False, asked=True),
        episode(1, sample="said-no", needs_full=False),
        episode(0, sample="said-yes", needs_full=True, correct=False),
        episode(1, sample="said-yes", needs_full=True, asked=True),
        episode(0, sample="shown-no", asked=True),
        episode(1, sample="shown-no"),
        episode(0, sample="shown-yes", correct=False),
        episode(1, sample="shown-yes", asked=True),
        episode(0, sample="open", asked=True, correct=False),
        episode(1, sample="open", correct=False),
        episode(0, sample="masked", correct=None),
        episode(0, sample="broken", correct=False, status="malformed", answer=None, is_well_formed=False),
        episode(0, sample="disputed", answer="a line", correct=True),
        episode(1, sample="disputed", answer="a line", correct=False),
    ]
    rows += [heldout("said-no", "always_full", True, needs_full=False), heldout("x", "always_quarter", False)]
    con = EpisodeIndex(
        write_run(tmp_path, {"episodes/step-000001": rows[:-2], "heldout/step-000001": rows[-2:]})
    ).cursor()
    assert found(con, preset="needless") == {("said-no", 0), ("shown-no", 0)}
    assert found(con, preset="missed") == {("said-yes", 0), ("shown-yes", 0)}
    assert found(con, preset="masked") == {("masked", 0)}
    assert found(con, preset="malformed") == {("broken", 0)}
    assert found(con, preset="disagree") == {("disputed", 0), ("disputed", 1)}
    assert found(con, preset="wrong", set="heldout") == {("x", 0)}
    total, presets = queries.counts(con, Filter.of({"preset": "wrong", "set": "training"}))
    assert total == presets["wrong"] == 6
    assert presets.keys() == PRESETS.keys()
    assert presets["needless"] == 2, "the chosen preset does not narrow the others"


def test_filters_search_and_sort(tmp_path):
    rows = [episode(n, sample=f"0-{n}", answer=f"Straße {n}", reward=float(n)) for n in range(5)]
    rows[2] |= {"question": "100% of _it_? \\ '\"", "reason": None, "reference": None}
    con = EpisodeIndex(write_run(tmp_path, {"episodes/step-000001": rows})).cursor()
    assert found(con, q="STRASSE") == set()
    assert found(con, q="STRAßE 3") == {("0-3", 3)}
    assert found(con, q="100% of _it_? \\ '\"") == {("0-2", 2)}
    assert found(con, q="%") == {("0-2", 2)}, "a percent sign is one"
    first = queries.page(con, Filter.of({"sort": "-reward"}), offset=1, limit=2)
    assert [row["reward"] for row in first] == [3.0, 2.0]


def test_a_live_run_is_followed_forth_and_back(tmp_path):
    run = write_run(tmp_path, {"episodes/step-000001": [episode(0)]})
    index = EpisodeIndex(run)
    assert len(found(index.cursor())) == 1
    write_run(run, {"episodes/step-000002": [episode(1, step=2), episode(2, step=2)]})
    (run / "episodes" / "step-000003.parquet.tmp").write_bytes(b"half")
    assert len(found(index.cursor())) == 3
    (run / "episodes" / "step-000002.parquet").unlink()  # a resumed run starts again after step 1
    write_run(run, {"episodes/step-000001": [episode(7), episode(8)]})
    assert found(index.cursor()) == {("0-7", 7), ("0-7", 8)}
    shutil.rmtree(run)
    assert found(index.cursor()) == set()


def test_a_damaged_file_costs_its_episodes_and_is_named(tmp_path):
    run = write_run(tmp_path, {f"episodes/step-00000{n}": [episode(n, step=n)] for n in (1, 2, 3)})
    whole = (run / "episodes" / "step-000002.parquet").read_bytes()
    (run / "episodes" / "step-000002.parquet").write_bytes(whole[: len(whole) // 2])
    (run / "episodes" / "step-000003.parquet").write_bytes(b"")
    index = EpisodeIndex(run)
    assert found(index.cursor()) == {("0-7", 1)}
    assert index.unreadable.keys() == {"training/step-000002", "training/step-000003"}
    (run / "episodes" / "step-000002.parquet").write_bytes(whole)
    assert found(index.cursor()) == {("0-7", 1), ("0-7", 2)}
    assert index.unreadable.keys() == {"training/step-000003"}


def test_a_file_of_an_older_version_lacks_columns_and_is_shown(tmp_path):
    run = write_run(tmp_path, {})
    write_without(run / "episodes" / "step-000001.parquet", [episode(3)], "kind", "num_calls", "judge_model")
    assert found(EpisodeIndex(run).cursor()) == {("0-7", 3)}


def test_an_episode_is_opened_whole_or_not_at_all(tmp_path):
    run = write_run(tmp_path, {"episodes/step-000001": [episode(0), episode(1, asked=True)]})
    index = EpisodeIndex(run)
    key = {"set": "training", "file": "step-000001", "sample": "0-7", "kind": "policy", "index": "1"}
    row = queries.episode(index.cursor(), key)
    assert row is not None
    assert [turn["view"] for turn in index.read(row)["turns"]] == ["quarter", "full"]
    assert queries.episode(index.cursor(), key | {"index": "9"}) is None
    assert queries.episode(index.cursor(), key | {"index": "1; --"}) is None
    assert queries.episode(index.cursor(), {}) is None
    (run / "episodes" / "step-000001.parquet").unlink()
    with pytest.raises(ValueError, match="any more"):
        index.read(row)


def test_scores_leave_out_what_has_no_verdict(tmp_path):
    rows = [
        heldout(f"heldout-{n}", "policy", correct, needs_full=n < 2) for n, correct in enumerate((True, False, None))
    ]
    rows[0] |= {"asked": True, "turns": [turn(), turn(view="full")]}
    rows.append(heldout("heldout-0", "always_full", True))
    con = EpisodeIndex(write_run(tmp_path, {"heldout/step-000003": rows})).cursor()
    policy, full = queries.scores(con, "heldout")
    assert (policy.kind, policy.num, policy.accuracy.num_hits, policy.accuracy.num_cases) == ("policy", 3, 1, 2)
    assert (policy.tool_calls_needed.num_hits, policy.tool_calls_needed.num_cases) == (1, 2)
    assert policy.tool_calls_unneeded.share == 0.0
    assert policy.token_ratio == (16 + 64 + 16 + 16) / (3 * 64)
    assert (full.kind, full.token_ratio) == ("always_full", 1.0)


def test_two_evaluations_are_compared_by_sample_and_question(tmp_path):
    """Paired proportions by hand: of 4 pairs one was won, none lost: 1/4 with half width z * sqrt(1 - 1/4) / 4."""
    first = [heldout(f"heldout-{n}", "policy", right) for n, right in enumerate((True, False, False, True, None, True))]
    second = [heldout(f"heldout-{n}", "policy", right) for n, right in enumerate((True, True, False, True, True, True))]
    second[5] |= {"question": "another data set"}
    con = EpisodeIndex(write_run(tmp_path, {"heldout/step-000001": first, "heldout/step-000002": second})).cursor()
    sides = [queries.heldout_rows(con, f"step-00000{n}", "policy") for n in (1, 2)]
    compared = queries.compare(*sides)
    assert [len(compared.of(*pair)) for pair in ((True, True), (False, True), (True, False), (False, False))] == [
        2,
        1,
        0,
        1,
    ]
    assert compared.num_unpaired == 3, "without a verdict, and the question that either has alone"
    share, low, high = compared.difference or (0, 0, 0)
    half = 1.959964 * 0.75**0.5 / 4
    assert (share, low, high) == pytest.approx((0.25, 0.25 - half, 0.25 + half), abs=1e-6)
    assert queries.compare({}, {}).difference is None
