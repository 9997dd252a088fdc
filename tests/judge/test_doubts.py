"""Answers that look settled and are not, beside plain ones that must stay settled."""

import pytest

from judge.rules.findings import Rule
from judge.rules.judge import find_by_rules

RIGHT, WRONG = True, False
SIGN_CASES = [
    ("What was the result?", "($1,234)", "-1,234", Rule.SIGN, RIGHT),
    ("What was the result?", "(1,234)", "-$1,234", Rule.SIGN, RIGHT),
    ("By how much did it fall?", "12%", "-12", Rule.SIGN, RIGHT),
    ("By how much did it fall?", "12%", "-0.12", Rule.SIGN, RIGHT),
    ("By how much did it fall?", "12%", "-13", Rule.NO_READING, WRONG),
    ("By how much did it fall?", "$5 million", "-5 million", Rule.SIGN, RIGHT),
    ("By how much did it fall?", "5 km", "-5000 m", Rule.SIGN, RIGHT),
    ("By how much did it grow?", "12%", "-12", Rule.NO_READING, WRONG),
    ("What was the drop in temperature?", "5°C", "-5", Rule.SIGN, RIGHT),
    ("How many fewer apples are there?", "5 apples", "-5", Rule.SIGN, RIGHT),
]
MATHS_CASES = [
    ("?", "\\frac{1}{2x}", "\\frac{1}{2}x", Rule.OTHER_TEXT, WRONG),
    ("?", "\\frac{a}{bc}", "\\frac{a}{b}c", Rule.OTHER_TEXT, WRONG),
    ("?", "\\frac{1}{2x}", "$\\dfrac{1}{2x}$", Rule.TEXT, RIGHT),
    ("?", "\\frac{ab}{c}", "ab/c", Rule.TEXT, RIGHT),
    ("How fast?", "60 km/h", "60 \\frac{\\text{kilometers}}{\\text{hour}}", Rule.NUMBER, RIGHT),
    ("What is written?", "a-b", "a b", Rule.OTHER_TEXT, WRONG),
    ("What is it?", "x-y", "x y", Rule.OTHER_TEXT, WRONG),
    ("What is it?", "x-ray", "X ray", Rule.TEXT, RIGHT),
    ("What is it?", "T-shirt", "t shirt", Rule.TEXT, RIGHT),
    ("What is it?", "5", "5-", Rule.OTHER_TEXT, WRONG),
    ("How long?", "5 feet", "5-foot", Rule.NUMBER, RIGHT),
]
NAMED_SIGN_CASES = [
    ("Which sign?", "less than", "<", Rule.SIGNS_AGAINST_WORDS, RIGHT),
    ("Which sign?", "plus", "+", Rule.SIGNS_AGAINST_WORDS, RIGHT),
    ("Which sign?", "equals", "=", Rule.SIGNS_AGAINST_WORDS, RIGHT),
    ("Which sign?", "dollar sign", "$", Rule.SIGNS_AGAINST_WORDS, RIGHT),
    ("Which sign?", "multiplication", "×", Rule.SIGNS_AGAINST_WORDS, RIGHT),
    ("Which sign?", "division", "÷", Rule.SIGNS_AGAINST_WORDS, RIGHT),
    ("Which sign?", "parentheses", "()", Rule.SIGNS_AGAINST_WORDS, RIGHT),
    ("Is there enough?", "no, there is less", "<", Rule.SIGNS_AGAINST_WORDS, WRONG),
    ("Which sign?", "+", "plus", Rule.SIGNS_AGAINST_WORDS, WRONG),
    ("Which sign?", "less than", "...", Rule.ONLY_SIGNS, WRONG),
    ("Which colour?", "red", "**", Rule.ONLY_SIGNS, WRONG),
]
DECIMAL_COMMA_CASES = [
    ("How much?", "12,50", "12.5", Rule.ITEMS_UNCLEAR, WRONG),
    ("How much?", "12,50 €", "12.5 €", Rule.ITEMS_UNCLEAR, WRONG),
    ("How much?", "1.000,00", "1000", Rule.ITEMS_UNCLEAR, WRONG),
    ("How much?", "1.234,50", "1,234.5", Rule.ITEMS_UNCLEAR, WRONG),
    ("How much?", "12,50", "12,5", Rule.ITEMS_UNCLEAR, WRONG),
    ("Which sums?", "1,50; 2,50", "1.5; 2.5", Rule.ITEMS_UNCLEAR, WRONG),
    ("How many?", "1,200", "1,20", Rule.ITEM_NUMBERS, WRONG),
    ("How much?", "12,50", "12.6", Rule.ITEM_NUMBERS, WRONG),
    ("Which numbers?", "1, 20", "1, 2", Rule.ITEM_NUMBERS, WRONG),
]
UNIT_CASES = [
    ("How long?", "3 hours", "3 hrs", Rule.NUMBER, RIGHT),
    ("How heavy?", "2 pounds", "2 lbs", Rule.NUMBER, RIGHT),
    ("What is the weight in pounds?", "5", "5 lbs", Rule.NUMBER, RIGHT),
    ("How old?", "5 years", "5 yrs", Rule.NUMBER, RIGHT),
    ("How heavy?", "5 kg", "5 kgs", Rule.NUMBER, RIGHT),
    ("How long?", "5 cm", "5 cms", Rule.NUMBER, RIGHT),
    ("How long is it (in cm)?", "12", "12 cm", Rule.NUMBER, RIGHT),
    ("How long is it (in cm)?", "12", "12 m", Rule.NUMBER, WRONG),
    ("What is angle A (in degrees)?", "12", "12°", Rule.NUMBER, RIGHT),
    ("What does it cost (in $)?", "12", "$12", Rule.NUMBER, RIGHT),
    ("How long is it (cm)?", "12", "12 cm", Rule.NUMBER, RIGHT),
]
OPTION_CASES = [
    ("Who? A) John B) Mary C) John and Mary", "C", "A and B", Rule.OTHER_TEXT, WRONG),
    ("Who? A) John B) Mary C) John and Mary", "A and B", "C", Rule.OTHER_TEXT, WRONG),
    ("Which are even? A. 2 B. 4 C. 2 and 4", "C", "A and B", Rule.OTHER_TEXT, WRONG),
    ("Who? A) John B) Mary C) Sue", "C", "A and B", Rule.SEVERAL_OPTIONS, WRONG),
    ("Which is it? (1) 5 (2) 6", "2", "6", Rule.LIKELY_OPTION, RIGHT),
    ("Which is it? (1) 5 (2) 6", "6", "2", Rule.LIKELY_OPTION, RIGHT),
    ("Which is it? (1) 5 (2) 6", "2", "5", Rule.NUMBER, WRONG),
    ("Which is it?\n1. 5\n2. 6", "2", "2", Rule.TEXT, RIGHT),
    ("Which helps? (A) Vitamin A (B) Vitamin C", "B", "C", Rule.OTHER_TEXT, WRONG),
    ("Which helps? (A) Vitamin C (B) Vitamin A", "B", "A", Rule.LIKELY_OPTION, WRONG),
    ("Which helps? (A) Vitamin C (B) Vitamin A", "B", "B", Rule.OPTION, RIGHT),
    ("Which helps? (A) Vitamin A (B) Vitamin C", "B", "D", Rule.NO_OPTION, WRONG),
]
PAIR_CASES = [
    ("What is the rating?", "4.5/5", "4.5", Rule.FRACTION, WRONG),
    ("What is the rating?", "4.5", "4.5/5", Rule.FRACTION, WRONG),
    ("What is the rating?", "8/10", "8", Rule.FRACTION, WRONG),
    ("Which season?", "2019/20", "2019/2020", Rule.FRACTION, WRONG),
    ("Which season?", "2019/20", "2019/2021", Rule.NUMBER, WRONG),
    ("What is x?", "1/2", "1/3", Rule.NUMBER, WRONG),
    ("What is x?", "1/2", "0.5", Rule.NUMBER, RIGHT),
]
LABEL_CASES = [
    ("How many people are in the room?", "5", "five", Rule.NUMBER, RIGHT),
    ("What is the accuracy of the model?", "0.5", "0.50", Rule.NUMBER, RIGHT),
    ("What is the cost of the flight?", "1,200", "1200", Rule.NUMBER, RIGHT),
    ("What is the room temperature?", "20", "20.0", Rule.NUMBER, RIGHT),
    ("How many lines of code are there?", "1,000", "1000", Rule.NUMBER, RIGHT),
    ("What is the number of lines of code?", "1,000", "1000", Rule.NUMBER, RIGHT),
    ("How many versions are listed?", "3", "three", Rule.NUMBER, RIGHT),
    ("What is the room number?", "3.10", "3.1", Rule.LABEL, RIGHT),
    ("Which flight is it?", "5E2", "500", Rule.LABEL, RIGHT),
    ("What is the error code?", "5E2", "500", Rule.LABEL, RIGHT),
    ("What code is shown?", "5E2", "500", Rule.LABEL, RIGHT),
]
POLAR_CASES = [
    ("Are there two dogs?", "Yes", "Yes, there are three dogs", Rule.YES_NO_UNCLEAR, RIGHT),
    ("Are there two dogs?", "Yes", "Yes, there are two dogs", Rule.YES_NO, RIGHT),
    ("Are there two dogs?", "Yes", "Yes, there are 2 dogs", Rule.YES_NO, RIGHT),
    ("Are there two dogs?", "No", "No, there are three dogs", Rule.YES_NO_UNCLEAR, RIGHT),
    ("Are there three dogs?", "No", "No, there are 3 dogs", Rule.YES_NO_UNCLEAR, RIGHT),
    ("Is there a dog?", "No", "No, there is one dog", Rule.YES_NO_UNCLEAR, RIGHT),
    ("Are there two dogs?", "No", "No, there are no dogs", Rule.YES_NO, RIGHT),
    ("Are there two dogs?", "No", "No, there are cats", Rule.YES_NO, RIGHT),
    ("What does it say?", "No", "No, it says stop", Rule.YES_NO_UNCLEAR, RIGHT),
    ("What does it say?", "Yes", "No, it says stop", Rule.YES_NO, WRONG),
]
RESTATED_CASES = [
    ("How many cents are in 5 dollars?", "500", "$5", Rule.RESTATED, WRONG),
    ("How many cents are in 5 dollars?", "500", "500 cents", Rule.NUMBER, RIGHT),
    ("Convert 5 km to meters.", "5000 m", "5km", Rule.RESTATED, WRONG),
    ("Convert 5 km to meters.", "5000 m", "5.0 km", Rule.RESTATED, WRONG),
    ("Convert 5 km to meters.", "5000 m", "5,000 meters", Rule.NUMBER, RIGHT),
    ("How many inches are in 3 feet?", "36", "3 ft", Rule.RESTATED, WRONG),
    ("How many minutes are in an hour?", "60", "1 hour", Rule.RESTATED, WRONG),
    ("How many minutes are in an hour?", "60", "60 min", Rule.NUMBER, RIGHT),
    ("How many eggs are in 2 dozen?", "24", "2 dozen", Rule.RESTATED, WRONG),
    ("How many eggs are in 2 dozen eggs?", "24", "2 dozen eggs", Rule.RESTATED, WRONG),
    ("How many eggs are in a dozen?", "12", "1 dozen", Rule.RESTATED, WRONG),
    ("How many eggs are in 2 dozen?", "24", "twenty-four", Rule.NUMBER, RIGHT),
    ("What is 3/4 as a decimal?", "0.75", "3/4", Rule.RESTATED, WRONG),
    ("What is 3/4 as a decimal?", "0.75", ".75", Rule.NUMBER, RIGHT),
    ("Compute 6/3", "2", "6/3", Rule.RESTATED, WRONG),
    ("Compute $\\frac{6}{3}$.", "2", "\\frac{6}{3}", Rule.RESTATED, WRONG),
    ("Convert 25 C to Fahrenheit.", "77 °F", "25 °C", Rule.RESTATED, WRONG),
    ("Are there one or two?", "2", "two", Rule.NUMBER, RIGHT),
    ("Which is larger, 1,000 or 999?", "1000", "1,000", Rule.NUMBER, RIGHT),
]
CASE_CASES = [
    ("How large?", "5 Mb", "5 MB", Rule.UNCLEAR_UNIT, RIGHT),
    ("How fast?", "5 Mbps", "5 MBps", Rule.UNCLEAR_UNIT, RIGHT),
    ("How fast?", "5.0 Mbps", "5 MBps", Rule.UNCLEAR_UNIT, RIGHT),
    ("How fast?", "5 Mbps", "5 mbps", Rule.TEXT, RIGHT),
    ("How large?", "16 GB", "16 gb", Rule.TEXT, RIGHT),
    ("How large?", "16 GB", "16 Gb", Rule.UNCLEAR_UNIT, RIGHT),
    ("How many?", "5 M", "5 m", Rule.UNCLEAR_UNIT, RIGHT),
    ("How many?", "5 M", "5.0 m", Rule.UNCLEAR_UNIT, RIGHT),
    ("How much?", "$5M", "$5m", Rule.TEXT, RIGHT),
    ("How heavy?", "5 kg", "5 KG", Rule.TEXT, RIGHT),
]
CASES = [
    *RESTATED_CASES,
    *CASE_CASES,
    *LABEL_CASES,
    *POLAR_CASES,
    *OPTION_CASES,
    *PAIR_CASES,
    *SIGN_CASES,
    *MATHS_CASES,
    *NAMED_SIGN_CASES,
    *DECIMAL_COMMA_CASES,
    *UNIT_CASES,
]


@pytest.mark.parametrize(("question", "reference", "prediction", "rule", "is_correct"), CASES)
def test_each_answer_falls_under_its_rule(question, reference, prediction, rule, is_correct):
    finding = find_by_rules(question, reference, prediction, relative_tolerance=1e-3)
    assert (finding.rule, finding.is_correct) == (rule, is_correct)
