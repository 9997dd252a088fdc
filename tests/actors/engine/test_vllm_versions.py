"""Versions of tokens, with a stand-in for vLLM before it labelled them. The real engine is in tests/ray."""

from types import SimpleNamespace

import pytest

from actors.engine.vllm_versions import RunningTurns, joined
from actors.episode import VersionSpan


def spans(*pairs):
    return tuple(VersionSpan(version=version, num_tokens=num_tokens) for version, num_tokens in pairs)


@pytest.mark.parametrize(
    ("starts", "num_tokens", "expected"),
    [
        ([(7, 0)], 5, spans((7, 5))),
        ([(7, 0), (8, 3)], 5, spans((7, 3), (8, 2))),
        ([(7, 0), (8, 0)], 5, spans((8, 5))),
        ([(7, 0), (8, 5)], 5, spans((7, 5))),
        ([(7, 0), (8, 2), (9, 2), (10, 4)], 5, spans((7, 2), (9, 2), (10, 1))),
        ([(7, 0), (7, 2), (8, 4)], 5, spans((7, 4), (8, 1))),
        ([(7, 0), (8, 2), (7, 2)], 5, spans((7, 5))),
        ([(7, 0)], 0, spans((7, 0))),
    ],
)
def test_spans_cover_each_token_once_and_neighbours_differ(starts, num_tokens, expected):
    assert joined(starts, num_tokens) == expected


class Unlabelled:
    """An `AsyncLLM` without labels, as far as turns are counted."""

    def __init__(self):
        self.output_processor = SimpleNamespace(external_req_ids={}, request_states={})

    def sample(self, request_id, num_tokens):
        """The turn has now so many tokens."""
        detokenizer = SimpleNamespace(num_output_tokens=lambda: num_tokens)
        self.output_processor.external_req_ids[request_id] = [f"{request_id}-x"]
        self.output_processor.request_states[f"{request_id}-x"] = SimpleNamespace(detokenizer=detokenizer)

    def end(self, request_id):
        del self.output_processor.external_req_ids[request_id]


def completion(num_tokens):
    return SimpleNamespace(token_ids=[0] * num_tokens)


async def test_without_labels_tokens_are_counted_when_the_version_changes():
    engine = Unlabelled()
    turns = RunningTurns(engine, has_labels=False)
    await turns.set_version(7)
    with turns.running("long"), turns.running("ended"), turns.running("not yet sent"):
        engine.sample("long", 4)
        engine.sample("ended", 6)
        engine.end("ended")
        await turns.set_version(8)
        engine.sample("long", 9)
        await turns.set_version(9)
        with turns.running("late"):
            assert turns.spans("late", completion(3)) == spans((9, 3))
        assert turns.spans("long", completion(12)) == spans((7, 4), (8, 5), (9, 3))
        assert turns.spans("ended", completion(6)) == spans((7, 6))
        assert turns.spans("not yet sent", completion(2)) == spans((7, 2)), "in doubt, the older version"


async def test_with_labels_they_are_what_counts():
    class Labelling(Unlabelled):
        labels: list[str] = []

        async def update_weight_version(self, version):
            self.labels.append(version)

    engine = Labelling()
    turns = RunningTurns(engine, has_labels=True)
    await turns.set_version(7)
    with turns.running("turn"):
        await turns.set_version(8)
        choice = completion(5)
        choice.weight_versions = [
            SimpleNamespace(version="7", start=0, end=2),
            SimpleNamespace(version="8", start=2, end=5),
        ]
        assert turns.spans("turn", choice) == spans((7, 2), (8, 3))
    assert engine.labels == ["7", "8"]
