"""Which rule fires, whether it settles the answer, and what it says where nobody else is asked."""

import pytest

from configs.judges import JudgeConfig, LLMJudgeConfig
from judge.chain import Chain
from judge.rules.findings import Rule
from judge.rules.judge import RulesJudge, find_by_rules
from judge.trust.check import check_rows, measure
from judge.trust.goldset import ATTACKS_FILE, GOLD_FILE, read_gold
from judge.trust.precheck import Precheck
from judge.verdict import Failure, JudgeRequest, NoVerdict, Verdict

UNCERTAIN = {
    *(Rule.SIGNS_AGAINST_WORDS, Rule.OTHER_TEXT, Rule.SIMILAR, Rule.DISSIMILAR, Rule.LIKELY_OPTION, Rule.UNSAID_UNIT),
    *(Rule.UNKNOWN_UNIT, Rule.UNCLEAR_UNIT, Rule.UNSAID_SCALE, Rule.UNSAID_PERCENT, Rule.YES_NO_UNCLEAR),
    *(Rule.NEARLY, Rule.LABEL, Rule.FRACTION, Rule.SIGN, Rule.RESTATED),
    *(Rule.DATE_UNCLEAR, Rule.RANK_OR_NUMBER, Rule.ITEMS_UNCLEAR),
}
COLOURS = "Which colour?\nA. red\nB. blue"
SIDES = "Which side is longest?\nA. AB\nB. BC\nC. AC\nD. BD"
ANIMALS = "Which animals? A. cats B. dogs C. Both A and B"
RIGHT, WRONG = True, False
CASES = [
    ("?", "red", "?!", Rule.ONLY_SIGNS, WRONG),
    ("?", "Solution", "solution:", Rule.TEXT, RIGHT),
    ("?", "12", "\\boxed{11} \\boxed{12}", Rule.BOXES, WRONG),
    ("?", "<", "<", Rule.SIGNS, RIGHT),
    ("What number?", "62", "6'2\"", Rule.OTHER_TEXT, WRONG),
    ("How tall?", "6'2\"", "62", Rule.OTHER_TEXT, WRONG),
    ("How long?", '5"', "5'", Rule.OTHER_TEXT, WRONG),
    ("How tall?", "6'2\"", "6′2″", Rule.TEXT, RIGHT),
    ("What does it say?", "Route 66", "'Route 66'", Rule.TEXT, RIGHT),
    ("What does it say?", "the 'No. 5' pub", "No. 5 pub", Rule.TEXT, RIGHT),
    ("When?", "1990's", "the 1990s", Rule.TEXT, RIGHT),
    ("What does it say?", "don't stop", "dont stop", Rule.TEXT, RIGHT),
    ("?", "≤", "<=", Rule.SIGNS, RIGHT),
    ("?", "→", "->", Rule.SIGNS, RIGHT),
    ("?", "+", "=", Rule.SIGNS, WRONG),
    ("?", "😀", "🙂", Rule.SIGNS_AGAINST_WORDS, WRONG),
    ("?", "infinity", "∞", Rule.SIGNS_AGAINST_WORDS, WRONG),
    ("?", "red", "The red.", Rule.TEXT, RIGHT),
    ("?", "red", "crimson", Rule.OTHER_TEXT, WRONG),
    ("What song?", "The answer is blowing in the wind", "the answer is blowing in the wind.", Rule.TEXT, RIGHT),
    ("?", "3, 4", "\\boxed{3}, \\boxed{4}", Rule.TEXT, RIGHT),
    ("?", "3, 4", "\\boxed{3}, \\boxed{5}", Rule.ITEM_NUMBERS, WRONG),
    ("?", "3, 4", "\\boxed{3}, \\boxed{4", Rule.BOXES, WRONG),
    ("?", "5", "so \\boxed 5", Rule.TEXT, RIGHT),
    ("?", "5 cm", "$\\boxed 5 cm$", Rule.TEXT, RIGHT),
    ("?", "5", "\\boxed 6", Rule.NUMBER, WRONG),
    ("?", "5", "\\boxed", Rule.BOXES, WRONG),
    ("What sign?", "-", "–", Rule.SIGNS, RIGHT),
    ("What sign?", "question mark", "?", Rule.SIGNS_AGAINST_WORDS, RIGHT),
    ("What sign?", "question", "!", Rule.ONLY_SIGNS, WRONG),
    ("?", "no comment", ",", Rule.ONLY_SIGNS, WRONG),
    # options
    (COLOURS, "B", "(a)", Rule.OPTION, WRONG),
    (COLOURS, "B", "blue", Rule.OPTION, RIGHT),
    (COLOURS, "B", "D", Rule.NO_OPTION, WRONG),
    (COLOURS, "B", "B. red", Rule.NO_OPTION, WRONG),
    (COLOURS, "B", "A or B", Rule.SEVERAL_OPTIONS, WRONG),
    (COLOURS, "B", "B. the navy one", Rule.OTHER_TEXT, WRONG),
    ("How long? A. 5 m B. 6 m", "A", "5", Rule.LIKELY_OPTION, RIGHT),
    ("Which? A. red B. blue C. green", "A, C", "C and A", Rule.OPTION, RIGHT),
    ("Which? A. red B. blue C. green", "A, C", "A", Rule.OPTION, WRONG),
    (SIDES, "AC", "C", Rule.OPTION, RIGHT),
    (SIDES, "AC", "A", Rule.OPTION, WRONG),
    (SIDES, "C", "AC", Rule.OPTION, RIGHT),
    ("Which current? A. AC B. DC C. both", "AC", "A", Rule.OPTION, RIGHT),
    ("Which? A. both B. A, C C. red", "A, C", "B", Rule.OPTION, RIGHT),
    ("Which letter? A. D B. C C. B D. A", "A", "D", Rule.LIKELY_OPTION, WRONG),
    ("Which? A. I B. II C. III", "A", "I", Rule.OPTION, RIGHT),
    (ANIMALS, "C", "A and B", Rule.OTHER_TEXT, WRONG),
    (ANIMALS, "A and B", "C", Rule.OTHER_TEXT, WRONG),
    ("Which animals? A. cats B. dogs C. all of the above", "C", "A, B", Rule.OTHER_TEXT, WRONG),
    ("Which?", "A", "A. or B", Rule.SEVERAL_OPTIONS, WRONG),
    ("Which?", "A", "A. red", Rule.OPTION, RIGHT),
    ("Which?", "A", "A. red, or is it B?", Rule.LIKELY_OPTION, RIGHT),
    ("Which? A. D B. C C. B D. A", "D", "D", Rule.OPTION, RIGHT),
    ("Who?", "A. SMITH", "A. LINCOLN", Rule.OTHER_TEXT, WRONG),
    ("Which grade?", "A*", "A", Rule.OTHER_TEXT, WRONG),
    # numbers
    ("?", "12", "13", Rule.NUMBER, WRONG),
    ("?", "-3", "minus three", Rule.NUMBER, RIGHT),
    ("?", "2 m", "200 cm", Rule.NUMBER, RIGHT),
    ("?", "25 °C", "77 °F", Rule.NUMBER, RIGHT),
    ("?", "2 m", "2 kg", Rule.OTHER_DIMENSION, WRONG),
    ("?", "12", "7 or 12", Rule.SEVERAL_NUMBERS, WRONG),
    ("?", "12", "10-15", Rule.SEVERAL_NUMBERS, WRONG),
    ("?", "5551234", "555-1234", Rule.OTHER_TEXT, WRONG),
    ("?", "105", "one hundred and five", Rule.OTHER_TEXT, WRONG),
    ("?", "1.5", "1,5", Rule.OTHER_TEXT, WRONG),
    ("?", "10-15 kg", "between 10 and 15 kg", Rule.RANGE, RIGHT),
    ("?", "3-2", "2-3", Rule.OTHER_TEXT, WRONG),
    ("?", "10 miles", "16 km", Rule.NEARLY, WRONG),
    ("?", "10 miles", "18 km", Rule.NUMBER, WRONG),
    ("How many km is it?", "16", "10 miles", Rule.NEARLY, WRONG),
    ("?", "3.33", "10/3", Rule.NEARLY, WRONG),
    ("?", "007", "7", Rule.LABEL, RIGHT),
    ("By how much did it fall?", "5%", "-5%", Rule.SIGN, RIGHT),
    ("By how much did it grow?", "5%", "-5%", Rule.NUMBER, WRONG),
    ("How many minutes are 2 hours?", "120", "2 hours", Rule.RESTATED, WRONG),
    ("What is x?", "5", "y = 5", Rule.OTHER_TEXT, WRONG),
    ("?", "1990", "1990s", Rule.OTHER_TEXT, WRONG),
    # a unit on one side
    ("How heavy is it?", "5", "5 kg", Rule.UNSAID_UNIT, RIGHT),
    ("How many dogs and cats are there?", "5", "5 dogs", Rule.UNKNOWN_UNIT, RIGHT),
    ("How many students passed the exam?", "5", "5 exams", Rule.UNKNOWN_UNIT, WRONG),
    ("How many were sold?", "1,200,000", "1.2M", Rule.UNCLEAR_UNIT, RIGHT),
    ("What ratio?", "2", "200%", Rule.UNSAID_PERCENT, RIGHT),
    ("How heavy is it?", "5 kg", "5", Rule.UNSAID_UNIT, RIGHT),
    ("How heavy is it?", "5000", "5 kg", Rule.UNSAID_UNIT, WRONG),
    ("How heavy is it?", "5", "6 kg", Rule.NO_READING, WRONG),
    ("What is its weight in kg?", "5", "5 kg", Rule.NUMBER, RIGHT),
    ("What is its weight in kg?", "5", "5000 g", Rule.NUMBER, RIGHT),
    ("What is its weight (kg)?", "5", "5 lb", Rule.NUMBER, WRONG),
    ("How many kilograms of apples?", "5", "5 kg", Rule.NUMBER, RIGHT),
    ("How many apples are there?", "5", "5 kg", Rule.UNIT_OF_A_COUNT, WRONG),
    ("How many red apples are there?", "5", "five apples", Rule.COUNT, RIGHT),
    ("How many apples are on the table?", "5", "5 tables", Rule.UNKNOWN_UNIT, WRONG),
    ("What is on the table?", "5 apples", "5", Rule.UNKNOWN_UNIT, WRONG),
    ("How much did sales grow in day 3?", "5", "$5", Rule.UNSAID_UNIT, RIGHT),
    ("How many live there?", "5 million", "5M", Rule.UNCLEAR_UNIT, RIGHT),
    ("?", "£5", "5 pounds", Rule.UNCLEAR_UNIT, RIGHT),
    ("?", "25 °C", "25°", Rule.UNCLEAR_UNIT, RIGHT),
    ("?", "1 year", "52 weeks", Rule.UNCLEAR_UNIT, WRONG),
    ("How many were sold?", "5 million", "5", Rule.UNSAID_SCALE, WRONG),
    ("How many were sold, in millions?", "5", "5 million", Rule.UNSAID_SCALE, RIGHT),
    # percent
    ("By how much?", "12%", "0.12", Rule.UNSAID_PERCENT, RIGHT),
    ("By how much?", "12%", "1.2", Rule.NO_READING, WRONG),
    ("What share?", "12%", "0.12", Rule.NUMBER, RIGHT),
    ("What share?", "0.5", "0.5%", Rule.UNSAID_PERCENT, WRONG),
    ("What percentage?", "12", "12 %", Rule.NUMBER, RIGHT),
    ("What share?", "0.8%", "0.8", Rule.UNSAID_PERCENT, RIGHT),
    ("What share?", "0.8%", "0.9", Rule.NO_READING, WRONG),
    # units with two meanings, or in two parts
    ("How many more minutes does A take than B?", "5", "5 minutes", Rule.UNSAID_UNIT, RIGHT),
    ("How many total hours did she work?", "8", "8 hours", Rule.UNSAID_UNIT, RIGHT),
    ("How many total hours did she work?", "8", "9 hours", Rule.NO_READING, WRONG),
    ("How many extra kilometers must he drive?", "12", "12 km", Rule.UNSAID_UNIT, RIGHT),
    ("How many US dollars does it cost?", "5", "$5", Rule.UNSAID_UNIT, RIGHT),
    ("How many British pounds is it?", "5", "£5", Rule.UNSAID_UNIT, RIGHT),
    ("How many more did he earn?", "5", "$5", Rule.UNSAID_UNIT, RIGHT),
    ("How many minutes is it?", "30", "30m", Rule.UNCLEAR_UNIT, RIGHT),
    ("How many days is it?", "30", "1 month", Rule.UNCLEAR_UNIT, WRONG),
    ("How many degrees is angle A?", "30", "30°", Rule.NUMBER, RIGHT),
    ("How many degrees is angle A?", "30", "30 degrees", Rule.NUMBER, RIGHT),
    ("What is the speed in miles per hour?", "60", "60 mph", Rule.NUMBER, RIGHT),
    ("What is the speed in miles per hour?", "60", "60 miles per hour", Rule.NUMBER, RIGHT),
    ("How many miles per gallon?", "30", "30 miles", Rule.UNSAID_UNIT, RIGHT),
    ("What was the revenue?", "$1.2M", "1.2M", Rule.UNCLEAR_UNIT, RIGHT),
    ("What was the revenue?", "5 million dollars", "5M", Rule.UNCLEAR_UNIT, RIGHT),
    ("What was the revenue?", "5 million dollars", "6M", Rule.UNCLEAR_UNIT, WRONG),
    ("How long?", "30m", "30 minutes", Rule.UNCLEAR_UNIT, RIGHT),
    ("How long?", "5 min", "5 m", Rule.UNCLEAR_UNIT, RIGHT),
    ("How far?", "5 miles", "5 m", Rule.UNCLEAR_UNIT, WRONG),
    ("How much?", "25c", "25 cents", Rule.UNCLEAR_UNIT, RIGHT),
    ("How much?", "355 ml", "12 oz", Rule.UNCLEAR_UNIT, RIGHT),
    ("How fast?", "60 km/h", "60 km", Rule.UNCLEAR_UNIT, WRONG),
    ("How hot?", "300 K", "26.85 °C", Rule.UNCLEAR_UNIT, RIGHT),
    ("How hot?", "300 K", "300 °C", Rule.UNCLEAR_UNIT, WRONG),
    ("How far is it?", "16", "10 miles", Rule.UNSAID_UNIT, WRONG),
    ("How long?", "150 minutes", "2 hours, 30 minutes", Rule.OTHER_TEXT, WRONG),
    ("How tall?", "70 inches", "5 feet, 10 inches", Rule.OTHER_TEXT, WRONG),
    ("How long?", "5 m", "5 m, 500 cm", Rule.OTHER_TEXT, WRONG),
    ("How long?", "5 m", "5 m or 6 m", Rule.SEVERAL_NUMBERS, WRONG),
    ("What ratio?", "0.5", "50%, 0.5", Rule.OTHER_TEXT, WRONG),
    ("What is it?", "1/3", "1/3, 0.333", Rule.OTHER_TEXT, WRONG),
    ("For how long?", "2 years", "2010-2012", Rule.OTHER_TEXT, WRONG),
    # numbers written otherwise
    ("What was the result?", "-1,234", "(1,234)", Rule.SIGN, RIGHT),
    ("What was the result?", "(1,234)", "-1,234", Rule.SIGN, RIGHT),
    ("How many?", "1,000", "1.000", Rule.UNSAID_SCALE, WRONG),
    ("How many?", "1.234", "1234", Rule.UNSAID_SCALE, WRONG),
    ("How many?", "1,200", "1.2", Rule.NUMBER, WRONG),
    ("What is the blood pressure?", "120/80", "60/40", Rule.FRACTION, RIGHT),
    ("What is the blood pressure?", "120/80", "1.5", Rule.FRACTION, RIGHT),
    ("What date is circled?", "10/12", "5/6", Rule.FRACTION, RIGHT),
    ("What fraction is red?", "10/12", "5/6", Rule.NUMBER, RIGHT),
    ("How many of the 5 are red?", "2", "2/5", Rule.FRACTION, WRONG),
    ("What is x?", "2.5", "5/2", Rule.NUMBER, RIGHT),
    ("What is x?", "\\frac{24}{12}", "2", Rule.NUMBER, RIGHT),
    ("?", "1.2 million", "1,234,567", Rule.NEARLY, WRONG),
    ("?", "1.2 million", "1,264,567", Rule.NUMBER, WRONG),
    ("What average?", "12", "12.4", Rule.NEARLY, WRONG),
    ("What average?", "12", "12.6", Rule.NUMBER, WRONG),
    ("What average?", "0.3", "1/3", Rule.NUMBER, WRONG),
    ("How heavy?", "5", "5.04 kg", Rule.NEARLY, WRONG),
    ("By how much?", "12%", "0.124", Rule.NEARLY, WRONG),
    ("By how much?", "12%", "0.014", Rule.NO_READING, WRONG),
    ("What date?", "5/6", "6/5", Rule.FRACTION, WRONG),
    ("What is n!?", "120", "5!", Rule.OTHER_TEXT, WRONG),
    ("What is the difference?", "5", "-5", Rule.SIGN, RIGHT),
    ("How heavy is it?", "5 tons", "4535.9237 kg", Rule.UNCLEAR_UNIT, WRONG),
    ("What power?", "5 MW", "5 mW", Rule.UNCLEAR_UNIT, RIGHT),
    ("What power?", "5 MW", "5 Mw", Rule.TEXT, RIGHT),
    ("How many did they earn?", "5", "$5", Rule.UNSAID_UNIT, RIGHT),
    ("What percent is red?", "50", "0.5", Rule.NUMBER, WRONG),
    ("What percent is red?", "33", "1/3", Rule.UNSAID_PERCENT, WRONG),
    ("What percent is red?", "33", "1/2", Rule.NUMBER, WRONG),
    ("?", "1 1/2", "11/2", Rule.FRACTION, WRONG),
    ("?", "1 1/2", "12/2", Rule.NUMBER, WRONG),
    ("What version is it?", "3.10", "3.1", Rule.LABEL, RIGHT),
    ("What is the serial number?", "5E2", "500", Rule.LABEL, RIGHT),
    ("What is the serial number?", "5E2", "5e2", Rule.TEXT, RIGHT),
    # yes and no
    ("?", "yes", "No, it is shut", Rule.YES_NO, WRONG),
    ("?", "yes", "yes and no", Rule.YES_AND_NO, WRONG),
    ("?", "yes", "Yes it is", Rule.YES_NO_UNCLEAR, RIGHT),
    ("?", "yes", "Yes, but only one", Rule.YES_NO_UNCLEAR, WRONG),
    ("?", "no", "No idea", Rule.YES_NO_UNCLEAR, WRONG),
    ("?", "no", "no, I cannot tell", Rule.YES_NO_UNCLEAR, WRONG),
    ("Is it red?", "yes", "Yes, it is red", Rule.YES_NO, RIGHT),
    ("Does it rise?", "yes", "Yes, it rises", Rule.YES_NO, RIGHT),
    ("Is it red?", "yes", "Yes, it is free of red", Rule.YES_NO_UNCLEAR, RIGHT),
    ("Is it red?", "yes", "Yes, it is hardly red", Rule.YES_NO_UNCLEAR, WRONG),
    ("Is it red?", "yes", "Yes, it lacks any red", Rule.YES_NO_UNCLEAR, WRONG),
    ("Is it red?", "no", "No, it is red", Rule.YES_NO_UNCLEAR, RIGHT),
    ("Is it red?", "no", "No, it is blue", Rule.YES_NO, RIGHT),
    ("Is it red?", "no", "No, it isn't red", Rule.YES_NO, RIGHT),
    ("Is it red?", "no", "No. 5", Rule.YES_NO_UNCLEAR, RIGHT),
    ("In the picture, is it red?", "no", "false", Rule.YES_NO, RIGHT),
    ("What is written?", "No", "False", Rule.YES_NO_UNCLEAR, RIGHT),
    ("What is written?", "No", "Yes", Rule.YES_NO, WRONG),
    # dates, times, ranks
    ("?", "3 May 2021", "2021-05-03", Rule.DATE, RIGHT),
    ("?", "3 May 2021", "Monday, May 3rd, 2021", Rule.DATE, RIGHT),
    ("?", "Saturday, May 5", "Sunday, May 5", Rule.DATE_UNCLEAR, WRONG),
    ("?", "Sat, May 5", "Saturday, 5 May", Rule.DATE, RIGHT),
    ("?", "3 May 2021", "03/05/2021", Rule.DATE_UNCLEAR, RIGHT),
    ("?", "3 May 2021", "13/05/2021", Rule.DATE, WRONG),
    ("?", "3 May 2021", "May 3", Rule.DATE_UNCLEAR, RIGHT),
    ("?", "3 May 2021", "May 4", Rule.DATE, WRONG),
    ("?", "Tuesday", "Tue.", Rule.DATE, RIGHT),
    ("?", "December", "October", Rule.DATE, WRONG),
    ("?", "Sun", "Sunday", Rule.OTHER_TEXT, WRONG),
    ("?", "3:30 pm", "15:30", Rule.DATE, RIGHT),
    ("?", "3:30 pm", "3:30 am", Rule.DATE, WRONG),
    ("?", "3:30", "15:30", Rule.DATE_UNCLEAR, RIGHT),
    ("?", "3:15", "quarter to three", Rule.DATE, WRONG),
    ("?", "7.30", "7:30", Rule.OTHER_TEXT, WRONG),
    ("?", "10:20", "20:40", Rule.DATE_UNCLEAR, RIGHT),
    ("?", "19th century", "the nineteenth century", Rule.ORDINAL, RIGHT),
    ("?", "the 21st", "twenty-second", Rule.ORDINAL, WRONG),
    ("Which floor?", "3", "third", Rule.RANK_OR_NUMBER, RIGHT),
    ("How many?", "3", "third", Rule.OTHER_TEXT, WRONG),
    # lists
    ("?", "red, green, blue", "blue, red, and green", Rule.ITEMS, RIGHT),
    ("?", "red, green", "1. green\n2. red", Rule.ITEMS, RIGHT),
    ("?", "imports and exports", "exports and imports", Rule.ITEMS_UNCLEAR, RIGHT),
    ("?", "imports and exports", "imports", Rule.OTHER_TEXT, WRONG),
    ("?", "red, green", "red", Rule.ITEMS_UNCLEAR, WRONG),
    ("?", "red, green", "red, lime", Rule.ITEMS_UNCLEAR, WRONG),
    ("?", "red, green", "red, green, blue", Rule.ITEMS_UNCLEAR, WRONG),
    ("?", "1, 2, 3", "1, 2", Rule.ITEM_NUMBERS, WRONG),
    ("?", "1, 2, 3", "1, 2, 4", Rule.ITEM_NUMBERS, WRONG),
    ("?", "1, 2", "1 m, 2 m", Rule.ITEMS_UNCLEAR, RIGHT),
    ("?", "(3, 4)", "(4, 3)", Rule.ITEM_ORDER, WRONG),
    ("What points?", "(3, 4)", "[3, 4]", Rule.ITEMS_UNCLEAR, RIGHT),
    ("Which interval?", "[1, 5]", "(1, 5)", Rule.ITEMS_UNCLEAR, RIGHT),
    ("What colours?", "[red, blue]", "blue, red", Rule.ITEMS_UNCLEAR, WRONG),
    ("What was the result?", "(1,234)", "1,234", Rule.SIGN, RIGHT),
    ("What numbers?", "1,234", "1, 234", Rule.ITEMS_UNCLEAR, WRONG),
    ("What point?", "(3,4)", "3.4", Rule.ITEMS_UNCLEAR, WRONG),
    ("List the colours in order.", "red, blue", "blue, red", Rule.ITEM_ORDER, WRONG),
    ("Read the digits in order", "3, 1, 2", "1, 2, 3", Rule.ITEM_ORDER, WRONG),
    ("What is needed in order to bake?", "salt, flour", "flour, salt", Rule.ITEMS, RIGHT),
    ("Which two are ranked above 5?", "Rome, Oslo", "Oslo, Rome", Rule.ITEMS_UNCLEAR, WRONG),
    ("What are the length and the width?", "5, 3", "3, 5", Rule.ITEMS_UNCLEAR, RIGHT),
    ("What is the solution?", "x = 5, y = 6", "6, 5", Rule.ITEMS_UNCLEAR, WRONG),
    ("What is the solution?", "x = 5, y = 6", "5, 6", Rule.ITEMS, RIGHT),
    ("What roots?", "2, 2", "2", Rule.ITEMS_UNCLEAR, WRONG),
    ("What did he order?", "tea, cake", "cake, tea", Rule.ITEMS, RIGHT),
    ("Name them from left to right.", "red, green", "green, red", Rule.ITEM_ORDER, WRONG),
]


@pytest.mark.parametrize(("question", "reference", "prediction", "rule", "is_correct"), CASES)
def test_each_answer_falls_under_its_rule(question, reference, prediction, rule, is_correct):
    finding = find_by_rules(question, reference, prediction, relative_tolerance=1e-3)
    assert (finding.rule, finding.is_correct) == (rule, is_correct)
    assert finding.is_certain is (rule not in UNCERTAIN)


def test_every_rule_has_a_case_and_none_other_than_these_is_uncertain():
    assert {rule for rule in Rule if not rule.is_certain} == UNCERTAIN
    metrics = {Rule.SIMILAR, Rule.DISSIMILAR}
    assert {case[3] for case in CASES} == set(Rule) - metrics


@pytest.mark.parametrize(("question", "reference", "prediction", "rule", "is_correct"), CASES)
async def test_only_the_last_judge_says_what_it_is_not_sure_of(question, reference, prediction, rule, is_correct):
    request = JudgeRequest(question=question, reference=reference, predictions=(prediction,))
    (last,) = await RulesJudge(relative_tolerance=1e-3).grade(request)
    (first,) = await RulesJudge(relative_tolerance=1e-3, is_last=False).grade(request)
    assert isinstance(last, Verdict)
    assert last.is_correct is is_correct
    if rule.is_certain:
        assert first == last
    else:
        assert isinstance(first, NoVerdict)
        assert (first.failure, first.reason) == (Failure.UNDECIDED, last.reason)


async def test_where_rules_decide_people_agree_and_they_decide_most_rows():
    before_an_llm = Chain(judges=[Precheck(max_answer_chars=2000), RulesJudge(relative_tolerance=1e-3, is_last=False)])
    rows = read_gold(GOLD_FILE)
    trust = measure(await check_rows(before_an_llm, rows, timeout_s=5))
    assert trust.agreement.share >= 0.99
    assert trust.agreement.num_cases / len(rows) >= 0.71
    attacks = measure(await check_rows(before_an_llm, read_gold(ATTACKS_FILE), timeout_s=5))
    assert attacks.false_positives.num_hits == 0
    assert attacks.agreement.num_cases >= 35  # a bare "correct" may mean yes: that is for the next judge


def test_a_share_of_its_value_makes_no_year_or_label_certainly_equal_to_another():
    def find(question, reference, prediction):
        return find_by_rules(question, reference, prediction, relative_tolerance=1e-3, metric="relaxed")

    assert find("Which bar is lowest?", "2010", "2015").rule is Rule.LABEL
    assert find("How many were sold?", "2010", "2015").rule is Rule.NUMBER
    assert not find("Which year is lowest?", "2010", "2015").is_correct
    assert not find("Which flight is it?", "310", "311").is_correct
    assert find("Which value?", "310", "311").is_correct


@pytest.mark.parametrize("metric", ["strict", "relaxed", "anls"])
async def test_no_attack_passes_under_any_metric(metric):
    judge = RulesJudge(relative_tolerance=1e-3, metric=metric)
    trust = measure(await check_rows(judge, read_gold(ATTACKS_FILE), timeout_s=5))
    assert (trust.false_positives.num_hits, trust.num_unjudged) == (0, 0)


def test_the_config_says_whether_rules_are_last_and_by_which_metric():
    alone = RulesJudge.from_config(JudgeConfig(metric="relaxed", relative_tolerance=0.5))
    assert alone == RulesJudge(relative_tolerance=0.5, metric="relaxed", is_last=True)
    first = RulesJudge.from_config(JudgeConfig(chain=("rules", "openai"), llm=LLMJudgeConfig(model="m")))
    assert not first.is_last


@pytest.mark.parametrize("reference", ["100, 105", "105, 100"])
@pytest.mark.parametrize("prediction", ["103, 99", "99, 103"])
def test_items_are_paired_so_that_all_fit(reference, prediction):
    finding = find_by_rules("What values?", reference, prediction, relative_tolerance=1e-3, metric="relaxed")
    assert (finding.rule, finding.is_correct) == (Rule.ITEMS, RIGHT)
    finding = find_by_rules("What values?", reference, "103, 112", relative_tolerance=1e-3, metric="relaxed")
    assert (finding.rule, finding.is_correct) == (Rule.ITEM_NUMBERS, WRONG)
