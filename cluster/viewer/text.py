"""The tokens of a turn as spans that a page colours."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

LEVELS = (0.99, 0.9, 0.7, 0.4, 0.1)
"""Lower ends of the probabilities that have a colour of their own."""
MAX_PENDING = 8
"""Tokens that may make up one character."""
HALF_CHARACTER = "\ufffd"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSpan:
    """A token, or several that make up one character."""

    text: str
    ids: tuple[int, ...]
    logprob: float
    """Sum over its tokens."""
    version: int | None

    @property
    def probability(self) -> float:
        return math.exp(min(0.0, self.logprob)) if math.isfinite(self.logprob) else 0.0

    @property
    def level(self) -> int:
        """0 for a token that was all but certain, up to 5 for one that was hardly to be expected."""
        return sum(self.probability < end for end in LEVELS)


def load_tokenizer(model: str) -> Tokenizer | None:
    """Of a model folder; None where it is gone or damaged."""
    path = Path(model) / "tokenizer.json"
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a path with a zero byte
        return None
    return _parse(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _parse(path: Path, mtime_ns: int, size: int) -> Tokenizer | None:
    try:
        return Tokenizer.from_buffer(path.read_bytes())  # `from_file` has no error of its own for a damaged file
    except (OSError, ValueError):
        return None


def spans_of(tokenizer: Tokenizer, turn: Mapping[str, Any]) -> list[TokenSpan]:
    """The sampled tokens of a turn as it was recorded, in order; none where the record of them is damaged."""
    ids, logprobs = turn["completion_ids"], turn["logprobs"]
    if None in logprobs or any(token_id is None or token_id < 0 for token_id in ids):
        return []
    spans, pending = [], list[tuple[int, float, int | None]]()
    for token in zip(ids, logprobs, _versions(turn["version_spans"], len(ids)), strict=False):
        pending.append(token)
        text = tokenizer.decode([token_id for token_id, _, _ in pending], skip_special_tokens=False)
        if text.endswith(HALF_CHARACTER) and len(pending) < MAX_PENDING:
            continue
        spans.append(_span(text, pending))
        pending = []
    if pending:
        spans.append(_span(tokenizer.decode([token_id for token_id, _, _ in pending]), pending))
    return spans


def _span(text: str, tokens: Sequence[tuple[int, float, int | None]]) -> TokenSpan:
    return TokenSpan(
        text=text,
        ids=tuple(token_id for token_id, _, _ in tokens),
        logprob=sum(logprob for _, logprob, _ in tokens),
        version=tokens[-1][2],
    )


def _versions(spans: Sequence[Mapping[str, int]], num: int) -> Iterator[int | None]:
    """The version of each token."""
    for span in spans:
        yield from [span["version"]] * (span["num_tokens"] or 0)
    yield from [None] * num
