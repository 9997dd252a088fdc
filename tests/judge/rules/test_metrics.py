"""Published metrics, against values worked out by hand from the papers' definitions."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge.rules.findings import Rule
from judge.rules.judge import find_by_rules
from judge.rules.metrics import MAX_ANLS_CHARS, RELAXED_TOLERANCE, alternatives, anls, is_within, levenshtein


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("abc", "abc", 0), ("ab", "ba", 2)],
)
def test_levenshtein_distances_are_the_known_ones(one, other, distance):
    assert levenshtein(one, other) == levenshtein(other, one) == distance


@given(st.text("abc", max_size=8), st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_the_distance_is_a_metric(one, other, third):
    assert (levenshtein(one, other) == 0) == (one == other)
    assert abs(len(one) - len(other)) <= levenshtein(one, other) <= max(len(one), len(other))
    assert levenshtein(one, third) <= levenshtein(one, other) + levenshtein(other, third)


@pytest.mark.parametrize(
    ("reference", "prediction", "score"),
    [
        ("TALKING HEADS", "talking  heads", 1.0),
        ("grass", "glass", 1 - 1 / 5),
        ("kitten", "sitting", 1 - 3 / 7),
        ("12", "1", 0.0),  # NL is 0.5: not below the threshold
        ("abcd", "abxy", 0.0),
        ("abcde", "abcxy", 1 - 2 / 5),
        ("red", "blue", 0.0),
        ('["IBM", "International Business Machines"]', "ibm", 1.0),
        ('["red", "grass"]', "glass", 0.8),
        ("[1, 2]", "[1, 2]", 1.0),
    ],
)
def test_anls_is_one_minus_the_distance_over_the_longer_length_below_one_half(reference, prediction, score):
    assert anls(reference, prediction) == pytest.approx(score)


def test_only_a_json_array_of_texts_is_several_references():
    assert alternatives('["a", "b"]') == ("a", "b")
    for text in ("a", "[3, 4]", "[]", "[", '["a", 1]', "[" * 100_000):
        assert alternatives(text) == (text,)


def test_long_texts_are_similar_only_if_equal():
    long = "a" * (MAX_ANLS_CHARS + 1)
    assert anls(long, long) == 1
    assert anls(long, long + "b") == 0


@pytest.mark.parametrize(
    ("reference", "prediction", "expected"),
    [
        (100, 105, True),
        (100, 95, True),
        (100, Fraction(10501, 100), False),
        (-100, -105, True),
        (-100, 100, False),
        (0, 0, True),
        (0, Fraction(1, 10**9), False),
    ],
)
def test_relaxed_is_five_percent_of_the_reference_and_zero_is_exact(reference, prediction, expected):
    assert is_within(Fraction(reference), Fraction(prediction), RELAXED_TOLERANCE) is expected


@pytest.mark.parametrize(
    ("question", "reference", "prediction", "expected"),
    [
        ("What is the value?", "100", "104", True),
        ("What is the value?", "100", "106", False),
        ("What is the value?", "12%", "12.5%", True),
        ("What is the value?", "0", "0.01", False),
        ("Which country?", "France", "France", True),
        ("Which country?", "France", "Frances", False),
        ("In which year did it peak?", "2015", "2015", True),
        ("In which year did it peak?", "2015", "2016", False),
        ("How many years did it take?", "100", "104", True),
        ("What are the values?", "100, 200", "199, 101", True),
        ("Which is it? A. 100 B. 102", "A", "102", False),
    ],
)
def test_relaxed_accuracy_of_answers(question, reference, prediction, expected):
    finding = find_by_rules(question, reference, prediction, relative_tolerance=1e-3, metric="relaxed")
    assert finding.is_correct is expected


def test_anls_decides_alone_but_leaves_similar_text_to_whoever_follows():
    def find(prediction):
        return find_by_rules("?", "grass", prediction, relative_tolerance=0, metric="anls")

    assert find("The answer is GRASS.").is_correct
    assert (find("grass").is_correct, find("grass").is_certain) == (True, True)
    assert (find("glass").rule, find("glass").is_correct, find("glass").is_certain) == (Rule.SIMILAR, True, False)
    assert "0.80" in find("glass").reason
    assert (find("lawn").is_correct, find("lawn").is_certain) == (False, False)
