"""Lists as answers: take them apart, and pair their items."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from judge.rules.asked import Order
from judge.rules.findings import Finding, Rule, right, wrong
from judge.rules.normalise import digits_of, fold_unicode, normalise, strip_latex, unwrap
from judge.rules.quantity import parse_quantity

_SEPARATOR = re.compile(
    r"\s*[;\n]\s*(?:and\s+)?|\s*,\s+(?:(?:and|&)\s+)?|\s*,(?![0-9]{3}(?![0-9]))\s*|\s+and\s+|\s+&\s+"
)
_MAX_PAIRED = 40
"""Items of a list that are compared each with each: 600 on both sides would take seconds."""
_HAS_MARK = re.compile(r"[;\n]|,")
_HAS_AND = re.compile(r"\s(?:and|&)\s")
_BULLET = re.compile(r"\s*(?:(?P<number>[0-9]{1,2})[.)]|[-*•])\s+(?P<item>\S.*)")


def is_list(text: str) -> bool:
    """Marked as a list by commas, semicolons or lines."""
    return _HAS_MARK.search(text.strip()) is not None


def is_pair(text: str) -> bool:
    """Items joined by `and` alone, such as `imports and exports`: perhaps a list, perhaps a sentence."""
    return _HAS_AND.search(text) is not None


def compare_lists(
    reference: str,
    prediction: str,
    compare_item: Callable[[str, str], Finding | None],
    *,
    order: Order,
) -> Finding:
    """Items in any order, each used once; in a pair of numbers `(3, 4)`, or where asked for, the order counts.

    Args:
        compare_item: finding on one item against another, None where it has nothing to say.
        order: what the question says of it.
    """
    expected, given = split_items(reference), split_items(prediction)
    # `1, 234` may be `1,234`.
    is_one_writing = digits_of(reference) == digits_of(prediction) or _have_decimal_commas(reference, prediction)
    are_numbers = not is_one_writing and all(parse_quantity(item) is not None for item in (*expected, *given))
    if len(expected) != len(given):
        # `2` for `2, 2` may be a double root.
        is_repeated = {normalise(item) for item in expected} == {normalise(item) for item in given}
        rule = Rule.ITEM_NUMBERS if are_numbers and not is_repeated else Rule.ITEMS_UNCLEAR
        return wrong(rule, f"{len(given)} against {len(expected)}")
    in_order = [compare_item(item, other) for item, other in zip(expected, given, strict=True)]
    if all(finding is not None and finding.is_correct for finding in in_order):
        return _same(in_order)
    if len(expected) > _MAX_PAIRED:
        if sorted(map(normalise, expected)) != sorted(map(normalise, given)):
            return wrong(Rule.ITEMS_UNCLEAR, "too many to pair")
        return _in_another_order(reference, prediction, [right(Rule.TEXT)], order, are_numbers=are_numbers)
    table = [[compare_item(item, other) for other in given] for item in expected]
    paired = _pair(table)
    if paired is None:
        is_settled = are_numbers and all(_is_certain(finding) for row in table for finding in row)
        return wrong(Rule.ITEM_NUMBERS if is_settled else Rule.ITEMS_UNCLEAR, "different")
    return _in_another_order(reference, prediction, paired, order, are_numbers=are_numbers)


def _in_another_order(
    reference: str, prediction: str, paired: Sequence[Finding | None], order: Order, *, are_numbers: bool
) -> Finding:
    if order is Order.ASKED or (are_numbers and reference.strip().startswith("(")):
        return wrong(Rule.ITEM_ORDER)
    # `6, 5` for `x = 5, y = 6`.
    has_names_on_one_side = ("=" in reference) != ("=" in prediction)
    if has_names_on_one_side or order is Order.SPOKEN_OF or reference.strip().startswith(("(", "[")):
        return wrong(Rule.ITEMS_UNCLEAR, "another order")
    return right(Rule.ITEMS_UNCLEAR, "another order") if order is Order.SEVERAL_ASKED else _same(paired)


def _have_decimal_commas(reference: str, prediction: str) -> bool:
    """Whether the texts hold the same numbers once commas are read as points: `1.000,00` and `1000`."""
    (one, one_swapped), (other, other_swapped) = (
        [_numbers(text, commas) for commas in (",.", ".,")] for text in (reference, prediction)
    )
    if one is None and other is None:
        return one_swapped is not None and one_swapped == other_swapped
    # `1,200` has a reading of its own: it is no 1.2.
    return (one is not None and one == other_swapped) or (other is not None and other == one_swapped)


def _numbers(text: str, commas: str) -> list[Fraction] | None:
    swapped = text.translate(str.maketrans(",.", commas))
    parts = re.split(rf"[;\n]|{re.escape(commas[0])}\s+|\s(?:and|&)\s", swapped)
    quantities = [parse_quantity(part) for part in parts if part.strip()]
    return None if None in quantities else [quantity.value for quantity in quantities if quantity]


def split_items(text: str) -> list[str]:
    """`red, green and blue`, one item per line, `1. red` and `- red` -> the items."""
    lines = [line for line in strip_latex(text.strip()).splitlines() if line.strip()]
    bullets = [_BULLET.fullmatch(line) for line in lines]
    if len(lines) > 1 and all(bullets):
        return [unwrap(bullet["item"]) for bullet in bullets if bullet]
    folded = "\n".join(fold_unicode(line) for line in lines)
    return [item for item in _SEPARATOR.split(unwrap(folded)) if item.strip()]


def _pair(table: Sequence[Sequence[Finding | None]]) -> list[Finding | None] | None:
    """A right finding per row, no column used twice, all certain if they can be; None where a row finds none."""
    fits = [[at for at, finding in enumerate(row) if finding and finding.is_correct] for row in table]
    certain = [[at for at in columns if _is_certain(row[at])] for row, columns in zip(table, fits, strict=True)]
    columns = _assign(certain) or _assign(fits)
    return [row[at] for row, at in zip(table, columns, strict=True)] if columns else None


def _assign(fits: Sequence[Sequence[int]]) -> list[int] | None:
    """One of its columns for every row, none given twice; None where there are too few.

    A row that finds its columns taken moves their rows to others, along the shortest chain of such moves (an
    augmenting path: Kuhn, 1955): `100, 105` fits `103, 99` although 103 is near to both.
    """
    row_at: dict[int, int] = {}
    column_of: dict[int, int] = {}
    for start in range(len(fits)):
        came_from: dict[int, int] = {}
        rows, free = [start], None
        for row in rows:
            for column in fits[row]:
                if column in came_from:
                    continue
                came_from[column] = row
                if column not in row_at:
                    free = column
                    break
                rows.append(row_at[column])
            if free is not None:
                break
        if free is None:
            return None
        while free is not None:
            row = came_from[free]
            row_at[free] = row
            left = column_of.get(row)
            column_of[row] = free
            free = left
    return [column_of[row] for row in range(len(fits))]


def _same(findings: Sequence[Finding | None]) -> Finding:
    return right(Rule.ITEMS if all(map(_is_certain, findings)) else Rule.ITEMS_UNCLEAR, "same")


def _is_certain(finding: Finding | None) -> bool:
    return finding is not None and finding.is_certain
