"""Forms of Unicode and what encloses an answer."""

import pytest

from judge.rules.text import bare, boxed_answer, fold_unicode


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *[("℃", "°C"), ("ﬁre", "fire"), ("Ａ", "A"), ("H₂O", "H2O"), ("½", "1/2"), ("2½", "2 1/2"), ("−3", "-3")],
        *[("25 ㎡", "25 m²"), ("x²", "x^2"), ("µm", "μm"), ("don’t", "don't"), ("6′2″", "6'2\""), ("a\u00a0 b", "a b")],
    ],
)
def test_forms_of_the_same_text_are_the_same(one, other):
    assert fold_unicode(one) == fold_unicode(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x²", "x2"),
        ("m²", "m2"),
        ("①", "1"),
        ("2½", "21/2"),
        ("n!", "n"),
        ("Co", "CO"),
        ("10³", "103"),
        ("Word™", "WordTM"),
    ],
)
def test_what_compatibility_forms_would_conflate_stays_apart(one, other):
    assert fold_unicode(one) != fold_unicode(other)


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ("The answer is **red**.", "red"),
        ("So, the final answer is: red", "red"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("$5$", "5"),
        ("$5", "$5"),
        ("A*", "A*"),
        ("n!", "n!"),
        ("-5", "-5"),
        ("(1, 5)", "(1, 5)"),
        ("\\boxed{12} or \\boxed{13}", "\\boxed{12} or \\boxed{13}"),
    ],
)
def test_what_encloses_the_whole_answer_is_taken_off_and_signs_are_not(text, inner):
    assert bare(text) == inner


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("red", "red"),
        ("so \\boxed{12}.", "12"),
        ("\\boxed{a{b{c}}}", "a{b{c}}"),
        ("\\boxed 5", "5"),
        ("\\boxed{12} or \\boxed{12}", "12"),
        ("\\boxed{12} or \\boxed{13}", None),
        ("\\boxed{12", None),
        ("\\boxed{" * 5000, None),
    ],
)
def test_boxes_that_disagree_or_never_close_hold_no_answer(text, content):
    assert boxed_answer(text) == content
