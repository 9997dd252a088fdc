"""ChartQA: relaxed accuracy.

Source: Masry et al., ACL 2022 (arXiv 2203.10244), section 5.1, as computed by google-research/pix2struct
`pix2struct/metrics.py` and, alike, by lmms-eval `tasks/chartqa/utils.py`.
"""

from __future__ import annotations

TOLERANCE = 0.05


def is_relaxed_match(prediction: str, target: str) -> bool:
    """Within 5 % of a numeric target, bounds included; any other target has to be met exactly but for case.

    As in the official code: a percent sign divides by 100 (`25%` is 0.25, not 25), a number with a comma or a unit is
    text, and a target of zero is met only by the same text.
    """
    wanted, given = _number(target), _number(prediction)
    if given is not None and wanted:
        return abs(given - wanted) / abs(wanted) <= TOLERANCE
    return prediction.lower() == target.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
