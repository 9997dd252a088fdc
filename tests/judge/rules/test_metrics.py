"""Published metrics, against values worked out by hand from the papers' definitions."""

import pytest

from judge.rules.judge import best_guess, certain_verdict


@pytest.mark.parametrize(
    ("question", "reference", "prediction", "is_correct", "is_certain"),
    [
        ("What is the value?", "100", "104", True, True),
        ("What is the value?", "100", "95", True, True),
        ("What is the value?", "100", "105.01", False, False),
        ("What is the value?", "-100", "-105", True, True),
        ("What is the value?", "-100", "100", False, False),
        ("What is the value?", "0", "0.01", False, False),
        ("What is the value?", "12%", "12.5%", True, True),
        ("How many people came?", "1000", "1049", True, True),
        ("How many people came?", "1000", "1051", False, True),
        ("How many years did it take?", "100", "104", True, True),
        ("Which country?", "France", "Frances", False, False),
        # Never a year, a label or an identifier; open where in doubt.
        ("In which year did it peak?", "2016", "2012", False, False),
        ("In which year did it peak?", "2020.0", "2018", False, False),
        ("What is the value?", "2020.0", "2022", False, False),
        ("When did sales peak?", "1998", "1999", False, False),
        ("What is the number of the bus?", "117", "118", False, False),
        ("What is the account number?", "100200300", "100200301", False, False),
        ("Which section is it?", "3.10", "3.1", False, False),
        ("What is shown?", "41", "42", True, False),
        ("What is shown?", "3.10", "3.2", True, False),
        ("What has the highest sales?", "20 March", "21 March", False, False),
        ("What is the address with the highest value?", "20 Downing Street", "21 Downing Street", False, False),
        ("Which store has the highest sales?", "20", "21", False, False),
        ("What is the price?", "$20", "$21", True, True),
        ("Which is it? A. 100 B. 102", "A", "102", False, True),
    ],
)
def test_relaxed_is_5_percent_of_an_amount_and_of_nothing_else(question, reference, prediction, is_correct, is_certain):
    texts = question, reference, prediction
    certain = certain_verdict(*texts, metric="relaxed")
    assert (certain is not None) == is_certain
    assert (certain or best_guess(*texts, metric="relaxed")).is_correct == is_correct
    assert not (certain_verdict(*texts) or best_guess(*texts)).is_correct


@pytest.mark.parametrize(
    ("reference", "prediction", "is_correct", "is_certain", "reason"),
    [
        ("TALKING HEADS", "talking  heads", True, True, "same text"),
        ('["IBM", "International Business Machines"]', "ibm", True, True, "same text"),
        ("grass", "The answer is GLASS.", True, False, "best guess: ANLS 0.80"),
        ("kitten", "sitting", True, False, "best guess: ANLS 0.57"),
        ('["red", "grass"]', "glass", True, False, "best guess: ANLS 0.80"),
        # NL is 0.5: not below the threshold.
        ("12", "1", False, False, "best guess: ANLS 0.00"),
        ("red", "blue", False, False, "best guess: ANLS 0.00"),
        ("[1, 2]", "[1, 3]", True, False, "best guess: ANLS 0.83"),
        ("[" * 100_000, "red", False, False, "best guess: ANLS 0.00"),
    ],
)
def test_anls_is_certain_of_the_same_text_alone(reference, prediction, is_correct, is_certain, reason):
    certain = certain_verdict("?", reference, prediction, metric="anls")
    assert (certain is not None) == is_certain
    finding = certain or best_guess("?", reference, prediction, metric="anls")
    assert (finding.is_correct, finding.reason) == (is_correct, reason)


ODD = [
    *("1" + "0" * 399, "9" * 5000, "1e999", "-1e999", "10**400", "0." + "0" * 390 + "1", "1," + ",".join(["000"] * 90)),
    *("1/" + "9" * 70, "1/0", "9" * 38 + "/" + "9" * 38, "9" * 55 + " kg", "9" * 39 + " trillion trillion km"),
    *("9" * 310 + "' 1", "$" + "9" * 70, "nan", "inf kg", "٣", "½", "-500 °C", "5 m/0", "99999999999 January 2020"),
    *("0000-00-00", "[" + "1" * 5000 + "]", "[" * 5000, "[null]", "\ud800", "\x00", "\\boxed{" * 50, "(" * 300),
]


@pytest.mark.parametrize("metric", ["strict", "relaxed", "anls"])
@pytest.mark.parametrize("question", ["how many?", "in which year?", "by how much did it fall in kg?", "A. 1 B. 2"])
def test_odd_answers_get_a_verdict_and_no_traceback(question, metric):
    for reference in ODD:
        for prediction in ODD:
            certain = certain_verdict(question, reference, prediction, metric=metric)
            assert certain is None or certain.is_correct in (True, False)
            assert best_guess(question, reference, prediction, metric=metric).reason
        assert certain_verdict(question, reference, reference, metric=metric).is_correct
