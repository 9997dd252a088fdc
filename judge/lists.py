"""Lists as answers: take them apart, and pair their items."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from judge.findings import Finding, Rule, right, wrong
from judge.normalise import fold_unicode, strip_latex, unwrap
from judge.quantity import parse_quantity

_SEPARATOR = re.compile(
    r"\s*[;\n]\s*(?:and\s+)?|\s*,\s+(?:(?:and|&)\s+)?|\s*,(?![0-9]{3}(?![0-9]))\s*|\s+and\s+|\s+&\s+"
)
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
    reference: str, prediction: str, compare_item: Callable[[str, str], Finding | None], *, is_ordered: bool
) -> Finding:
    """Items in any order, each used once; in brackets `(3, 4)` and `[3, 4]`, or where asked for, the order counts.

    Args:
        compare_item: finding on one item against another, None where it has nothing to say.
        is_ordered: the question asks for an order.
    """
    expected, given = split_items(reference), split_items(prediction)
    are_numbers = all(parse_quantity(item) is not None for item in (*expected, *given))
    if len(expected) != len(given):
        rule = Rule.ITEM_NUMBERS if are_numbers else Rule.ITEMS_UNCLEAR
        return wrong(rule, f"{len(given)} against {len(expected)}")
    table = [[compare_item(item, other) for other in given] for item in expected]
    in_order = [table[index][index] for index in range(len(expected))]
    if all(finding is not None and finding.is_correct for finding in in_order):
        return _same(in_order)
    paired = _pair(table)
    if paired is None:
        is_settled = are_numbers and all(finding is not None and finding.is_certain for row in table for finding in row)
        return wrong(Rule.ITEM_NUMBERS if is_settled else Rule.ITEMS_UNCLEAR, "different")
    is_tuple = reference.strip().rstrip(".!?;: ")[:1] in ("(", "[")
    return wrong(Rule.ITEM_ORDER) if is_tuple or is_ordered else _same(paired)


def split_items(text: str) -> list[str]:
    """`red, green and blue`, one item per line, `1. red` and `- red` -> the items."""
    lines = [line for line in strip_latex(text.strip()).splitlines() if line.strip()]
    bullets = [_BULLET.fullmatch(line) for line in lines]
    if len(lines) > 1 and all(bullets):
        return [unwrap(bullet["item"]) for bullet in bullets if bullet]
    folded = "\n".join(fold_unicode(line) for line in lines)
    return [item for item in _SEPARATOR.split(unwrap(folded)) if item.strip()]


def _pair(table: Sequence[Sequence[Finding | None]]) -> list[Finding | None] | None:
    """A right finding per row, no column used twice, certain ones first; None where a row finds none."""
    free, found = set(range(len(table))), list[Finding | None]()
    for row in table:
        fitting = [(finding, at) for at, finding in enumerate(row) if at in free and finding and finding.is_correct]
        if not fitting:
            return None
        finding, at = min(fitting, key=lambda fit: not fit[0].is_certain)
        free.discard(at)
        found.append(finding)
    return found


def _same(findings: Sequence[Finding | None]) -> Finding:
    is_certain = all(finding is not None and finding.is_certain for finding in findings)
    return right(Rule.ITEMS if is_certain else Rule.ITEMS_UNCLEAR, "same")
