"""Settled rows: the shipped sets hold what they promise, and a bad file is refused by file, line and field."""

import json
from collections import Counter

import pytest

from actors.errors import DataError
from judge.trust.goldset import ATTACKS_FILE, GOLD_FILE, read_gold

ROW = {"question": "?", "reference": "red", "prediction": "blue", "verdict": 0, "kind": "colour"}


def test_the_shipped_sets_are_large_and_cover_every_kind():
    gold, attacks = read_gold(GOLD_FILE), read_gold(ATTACKS_FILE)
    assert len(gold) >= 250
    assert len(attacks) >= 120
    assert not any(row.is_correct for row in attacks)
    assert 0.4 < sum(row.is_correct for row in gold) / len(gold) < 0.6
    assert {"synonyms", "units", "percent", "dates", "wrong by one", "refusals", "lists"} <= {row.kind for row in gold}
    assert {"instruction", "fake verdict", "fake end of fence", "role tag", "master key", "unicode", "very long"} <= {
        row.kind for row in attacks
    }


@pytest.mark.parametrize("file", [GOLD_FILE, ATTACKS_FILE], ids=["gold", "attacks"])
def test_no_row_is_there_twice(file):
    counts = Counter((row.question, row.reference, row.prediction) for row in read_gold(file))
    assert [row for row, count in counts.items() if count > 1] == []


def test_a_file_that_does_not_say_is_decidable(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(ROW) + "\n\n" + json.dumps({**ROW, "verdict": 1, "decidable_by_rules": False}) + "\n")
    first, second = read_gold(path)
    assert (first.is_correct, first.is_decidable_by_rules) == (False, True)
    assert (second.is_correct, second.is_decidable_by_rules) == (True, False)


def test_separators_inside_a_text_do_not_cut_a_row(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({**ROW, "prediction": "a\u2028b\x85c\x0c"}, ensure_ascii=False), encoding="utf-8")
    assert read_gold(path)[0].prediction.startswith("a\u2028b")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("3", "an object is wanted, not int"),
        (json.dumps({**ROW, "verdict": 2}), "field 'verdict' is 2"),
        (json.dumps({**ROW, "verdict": True}), "field 'verdict' is bool"),
        (json.dumps({**ROW, "verdict": "1"}), "field 'verdict' is str"),
        (json.dumps({**ROW, "reference": " "}), "field 'reference' is empty"),
        (json.dumps({**ROW, "score": 1}), "unknown field 'score'"),
        (json.dumps({k: v for k, v in ROW.items() if k != "kind"}), "field 'kind' is missing"),
        (json.dumps({**ROW, "decidable_by_rules": 1}), "field 'decidable_by_rules' is int"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path, line, message):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + line + "\n")
    with pytest.raises(DataError, match=message) as caught:
        read_gold(path)
    assert "own.jsonl, line 2" in str(caught.value)


def test_missing_empty_and_binary_files_are_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    for name, message in (("none", "cannot be read"), ("empty", "holds no row"), ("binary", "cannot be read")):
        with pytest.raises(DataError, match=message):
            read_gold(tmp_path / f"{name}.jsonl")
