"""Each benchmark's metric on cases worked by hand from its official program; the source is named above each table."""

import pytest

from actors.data.benchmarks.row import BenchmarkRow
from judge.benchmarks import mathvista
from judge.benchmarks.chartqa import is_relaxed_match
from judge.benchmarks.docvqa import anls
from judge.benchmarks.mathverse import plain_answer
from judge.benchmarks.mmvet import shown_reference
from judge.benchmarks.ocrbench import contains_answer
from judge.benchmarks.realworldqa import is_exact_match
from judge.benchmarks.yes_no import mme_answer, pope_answer


# google-research/pix2struct pix2struct/metrics.py, relaxed_correctness; ChartQA (arXiv 2203.10244) section 5.1.
@pytest.mark.parametrize(
    ("prediction", "target", "is_right"),
    [
        ("105", "100", True),  # |105 - 100| / 100 = 0.05, the bound itself
        ("95", "100", True),
        ("105.1", "100", False),
        ("94.9", "100", False),
        ("-100", "-104", True),
        ("100", "-100", False),
        ("25%", "0.25", True),  # a percent sign divides by 100
        ("25", "25%", False),  # 25 against 0.25
        ("26%", "25%", True),  # 0.26 against 0.25: 4 %
        ("1,000", "1000", False),  # no number for float(): compared as text
        ("1,000", "1,000", True),
        ("5 cm", "5", False),
        ("0", "0", True),  # a target of 0 is false in Python: compared as text
        ("0.0", "0", False),
        ("0.01", "0", False),
        ("2011", "2010", True),  # years are numbers to the official code
        ("yes", "Yes", True),
        ("Yes.", "Yes", False),
        (" 100", "100", True),  # float() ignores white space
        ("nan", "5", False),
        ("", "5", False),
        ("", "", True),
        ("1e2", "100", True),
        ("%", "5", False),
    ],
)
def test_chartqa_relaxed_accuracy(prediction, target, is_right):
    assert is_relaxed_match(prediction, target) is is_right


# Yuliang-Liu/MultimodalOCR OCRBench/example.py.
@pytest.mark.parametrize(
    ("prediction", "answers", "dataset", "is_right"),
    [
        ("The word is CENTRE.", ["centre"], "IIIT5K", True),
        ("centr", ["centre"], "IIIT5K", False),
        ("cen tre", ["centre"], "IIIT5K", False),  # spaces count outside of HME100k
        ("new\nyork", ["New York"], "textVQA", True),  # a line feed is a space
        ("$12.50", ["12.5", "12.50"], "SROIE", True),  # any of several
        ("112.50", ["12.5"], "SROIE", True),  # containment, not equality
        ("x ^ { 2 } + 1", ["x^{2}+1"], "HME100k", True),
        ("X^2", ["x^2"], "HME100k", False),  # case counts in HME100k
        ("a\n+ b", ["a + b"], "HME100k", True),
        ("", ["a"], "svt", False),
    ],
)
def test_ocrbench_containment(prediction, answers, dataset, is_right):
    assert contains_answer(prediction, answers, dataset) is is_right


# Biten et al. (ICCV 2019) eq. 1; QwenLM/Qwen-VL eval_mm/infographicsvqa_eval.py for the order of steps.
@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("ITC Limited", ["itc limited"], 1.0),
        ("abcd", ["abcf"], 0.75),  # one of four letters
        ("abxy", ["abcd"], 0.5),  # exactly 0.5 counts in the evaluator
        ("axyz", ["abcd"], 0.0),  # 0.25 is below the threshold
        ("1/8/93", ["1/8/93", "January 8, 1993"], 1.0),  # the best of several
        ("jan 8", ["feb 9", "jan 8th"], 1 - 2 / 7),
        ("a  b", ["a b"], 1.0),  # white space is evened out
        ("ab  cd", ["ab ce"], 1 - 1 / 6),  # one letter over the longer text as written: 6, not 5
        ("", [""], 1.0),
        ("", ["a"], 0.0),
        ("straße", ["strasse"], 1 - 2 / 7),  # ß to s and one more, over len("STRASSE") = 7
    ],
)
def test_docvqa_anls(prediction, answers, score):
    assert anls(prediction, answers) == pytest.approx(score)


# MME eval_tool/calculation.py, parse_pred_ans.
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        ("Yes, there is a dog", "yes"),
        ("No, there is no dog", "no"),
        ("There is a dog", "other"),
        ("There is not", "other"),  # only four characters are looked at
        ("Not at all", "no"),
        ("None", "no"),
        ("Noyes", "no"),
        ("A yes", "other"),  # `a ye`
        ("y", "other"),
        ("", "other"),
        ("是", "other"),
    ],
)
def test_mme_reads_the_first_four_characters(text, said):
    assert mme_answer(text) == said


# AoiDragon/POPE evaluate.py.
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", "yes"),
        ("no", "no"),
        ("No, there is no dog", "no"),
        ("There is not a dog.", "no"),
        ("Yes. It is not small.", "yes"),  # the first sentence alone
        ("I see nothing", "yes"),  # `nothing` is neither of the three words
        ("NO", "yes"),  # only No, no and not
        ("No!", "yes"),  # only commas are taken away
        ("", "yes"),
    ],
)
def test_pope_reads_the_first_sentence(text, said):
    assert pope_answer(text) == said


QUESTION = "How many lanes are there?\n\nA. One\nB. Two\nC. Three\nPlease answer directly with only the letter."


# lmms-eval tasks/realworldqa/utils.py: letters, and the exact text.
@pytest.mark.parametrize(
    ("question", "prediction", "reference", "is_right"),
    [
        (QUESTION, "B", "B", True),
        (QUESTION, "(b)", "B", True),
        (QUESTION, "B. Two", "B", True),
        (QUESTION, "Two", "B", True),
        (QUESTION, "The answer is B.", "B", True),
        (QUESTION, "B. Three", "B", False),  # letter and text contradict each other
        (QUESTION, "A or B", "B", False),
        (QUESTION, "A", "B", False),
        ("Is it left or right?", "B.", "B", True),
        ("Is it left or right?", "Because", "B", False),
        ("Which way does the road go?", "Downhill.", "downhill", True),
        ("How many?", "3", "3", True),
        ("How many?", "three", "3", False),
    ],
)
def test_realworldqa_matches_letter_or_word(question, prediction, reference, is_right):
    assert is_exact_match(question, prediction, reference) is is_right


def problem(answer, *, answer_type="text", precision=None, choices=()):
    return BenchmarkRow(
        question="?",
        references=(answer,),
        choices=choices,
        question_type="multi_choice" if choices else "free_form",
        answer_type=answer_type,
        precision=precision,
    )


PARTS = ("3/11", "8/11", "6/11", "3/5")


# lupantech/MathVista evaluation/calculate_score.py, normalize_extracted_answer and safe_equal.
@pytest.mark.parametrize(
    ("extracted", "row", "is_right"),
    [
        ("B", problem("8/11", choices=PARTS), True),
        ("(B) 8/11", problem("8/11", choices=PARTS), True),
        ("(b)", problem("8/11", choices=PARTS), True),
        ("8/12", problem("8/11", choices=PARTS), True),  # the nearest choice by edit distance
        ("b", problem("8/11", choices=PARTS), False),  # no letter without brackets: nearest is 3/5, four edits away
        ("E", problem("8/11", choices=PARTS), False),
        ("14", problem("14", answer_type="integer"), True),
        ("14.9", problem("14", answer_type="integer"), True),  # int(float(…)) cuts
        ("1,400", problem("1400", answer_type="integer"), False),
        ("14 cm", problem("14", answer_type="integer"), False),
        ("inf", problem("14", answer_type="integer"), False),
        ("nan", problem("14", answer_type="integer"), False),
        ("1", problem("1.0", answer_type="float", precision=1), True),
        ("1.25", problem("1.2", answer_type="float", precision=1), True),  # Python rounds half to even
        ("12%", problem("0.12", answer_type="float", precision=2), False),
        ("[2007, 2008]", problem("[2007, 2008]", answer_type="list"), True),
        ("[2007,2008]", problem("[2007, 2008]", answer_type="list"), False),  # compared as text
        ("null", problem("14", answer_type="integer"), False),
    ],
)
def test_mathvista_normalisation(extracted, row, is_right):
    assert mathvista.is_right(extracted, row) is is_right


# lupantech/MathVista evaluation/extract_answer.py: what needs no LLM.
@pytest.mark.parametrize(
    ("answer", "row", "plain"),
    [
        ("8/11", problem("8/11", choices=PARTS), "8/11"),
        ("B", problem("8/11", choices=PARTS), "B"),
        ("B.", problem("8/11", choices=PARTS), "B"),
        ("B)", problem("8/11", choices=PARTS), "B"),
        ("(B).", problem("8/11", choices=PARTS), "B"),
        ("3 cm.", problem("3 cm.", choices=("3 cm.", "3 m")), "3 cm."),
        ("The answer is B", problem("8/11", choices=PARTS), None),
        ("014", problem("14", answer_type="integer"), "14"),
        ("14.0", problem("14", answer_type="integer"), None),  # int("14.0") fails
        ("1e1", problem("10.0", answer_type="float", precision=1), "10.0"),
        ("about 3", problem("3", answer_type="integer"), None),
    ],
)
def test_mathvista_plain_answers(answer, row, plain):
    assert mathvista.plain_answer(answer, row) == plain


def test_mathverse_takes_boxes_and_few_words_as_they_are():
    assert plain_answer(r"so we get \boxed{2\sqrt{3}}") == r"2\sqrt{3}"
    assert plain_answer("D") == "D"
    assert plain_answer("Domain: (-3, 3]") == "Domain: (-3, 3]"
    assert plain_answer("I cannot tell which of the options this would be") is None
    assert plain_answer(r"\boxed{1} or \boxed{2} and a few more words here") is None


# yuweihao/MM-Vet mm-vet_evaluator.ipynb: the marks stand apart.
def test_mmvet_sets_the_marks_of_a_reference_apart():
    assert shown_reference("-1<AND>-5") == "-1 <AND> -5"
    assert shown_reference("cat <OR> kitten<OR>pet") == "cat <OR> kitten <OR> pet"
