"""Settled rows: the shipped sets hold what they promise, and a bad file is refused by file, line and column."""

import json
from collections import Counter

import pytest

from actors.errors import DataError
from judge.trust.goldset import ATTACKS_FILE, GOLD_FILE, read_gold

ROW = {"question": "?", "reference": "red", "prediction": "blue", "verdict": 0, "kind": "colour"}


def without(name):
    return {key: value for key, value in ROW.items() if key != name}


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
    counts = Counter(row.request for row in read_gold(file))
    assert [row for row, count in counts.items() if count > 1] == []


def test_a_kind_is_optional_and_other_columns_are_ignored(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({**without("kind"), "id": 7}) + "\n\n" + json.dumps({**ROW, "verdict": True}) + "\n")
    first, second = read_gold(path)
    assert (first.is_correct, first.kind, first.prediction) == (False, "row", "blue")
    assert (second.is_correct, second.kind) == (True, "colour")
    assert second.request.predictions == ("blue",)


def test_separators_inside_a_text_do_not_cut_a_row(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({**ROW, "prediction": "a\u2028b\x85c\x0c"}, ensure_ascii=False), encoding="utf-8")
    assert read_gold(path)[0].prediction.startswith("a\u2028b")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        ("3", "not a JSON object"),
        (json.dumps({**ROW, "verdict": 2}), "column 'verdict' is 2: must be 1"),
        (json.dumps({**ROW, "verdict": "1"}), "column 'verdict' is '1'"),
        (json.dumps(without("verdict")), "column 'verdict' is None"),
        (json.dumps(without("question")), "column 'question' is None: must be a string"),
        (json.dumps({**ROW, "prediction": 3.5}), "column 'prediction' is 3.5: must be a string"),
        (json.dumps({**ROW, "reference": " "}), "column 'reference' is ' '"),
        (json.dumps({**ROW, "kind": None}), "column 'kind' is None"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_column(tmp_path, line, message):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + line + "\n")
    with pytest.raises(DataError, match=message) as caught:
        read_gold(path)
    assert "own.jsonl, line 2" in str(caught.value)


def test_missing_empty_and_binary_files_are_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    for name, message in (("none", "cannot be read"), ("empty", "has no row"), ("binary", "cannot be read")):
        with pytest.raises(DataError, match=message):
            read_gold(tmp_path / f"{name}.jsonl")
