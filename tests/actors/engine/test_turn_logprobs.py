"""Log-probabilities that leave the engine once a turn: those of the right tokens, for the requests that want them."""

from dataclasses import dataclass, field

from actors.engine.turn_logprobs import TurnLogprobs


@dataclass
class Output:
    request_id: str
    new_token_ids: list[int] = field(default_factory=list)
    finish_reason: object = None


def test_a_turn_has_them_with_its_last_step_and_others_have_none() -> None:
    turns = TurnLogprobs()
    turns.begin("a")
    turns.begin("b")
    rows = {"silent": 0, "a": 1, "b": 2}
    first = [
        turns.add(Output(name, [ids]), [-9.0, -1.5, -2.5], rows) for name, ids in (("a", 7), ("silent", 1), ("b", 8))
    ]
    assert first == [None, None, None]
    rows = {"b": 0, "a": 1}
    assert turns.add(Output("b", [9], "stop"), [-0.25, -0.5], rows) == ([8, 9], [-2.5, -0.25])
    assert turns.add(Output("a", [6]), [-0.25, -0.5], rows) is None
    assert turns.add(Output("a", [5], "length"), [-9.0, -4.0], {"silent": 0, "a": 1}) == ([7, 6, 5], [-1.5, -0.5, -4.0])
    assert len(turns) == 0


def test_a_step_may_sample_several_tokens_of_a_request() -> None:
    turns = TurnLogprobs()
    turns.begin("a")
    turns.begin("b")
    values, rows, starts = [-1.0, -2.0, -3.0], {"a": 0, "b": 1}, [0, 2]
    assert turns.add(Output("b", [5], "stop"), values, rows, starts) == ([5], [-3.0])
    assert turns.add(Output("a", [3, 4]), values, rows, starts) is None
    assert turns.add(Output("a", [6], "stop"), [-4.0], {"a": 0}) == ([3, 4, 6], [-1.0, -2.0, -4.0])


def test_an_aborted_turn_is_forgotten_and_its_late_output_has_none() -> None:
    turns = TurnLogprobs()
    turns.begin("a")
    turns.add(Output("a", [3]), [-1.0], {"a": 0})
    turns.forget("a")
    turns.forget("a")  # as well
    assert len(turns) == 0
    assert turns.add(Output("a", [], "abort"), [], {}) is None


def test_a_turn_that_ends_without_a_sample_has_those_before() -> None:
    turns = TurnLogprobs()
    turns.begin("a")
    turns.add(Output("a", [3]), [-1.0], {"a": 0})
    assert turns.add(Output("a", [], "error"), [], {}) == ([3], [-1.0])
