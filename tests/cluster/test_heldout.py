"""What an evaluation says of plays that nobody could judge."""

import io
from dataclasses import dataclass, field

import pytest
from rich.console import Console

from actors.episode import SkippedSample
from cluster.display import Display
from cluster.fleet import Fleet
from cluster.heldout import evaluate
from configs.load import load_config
from judge.pool import JudgePool
from judge.verdict import Failure, Verdict
from tests.fakes import make_episode, make_group
from tests.judge.scripted import Judges, failed, llm_config

CONFIG = load_config("tiny")


@dataclass
class Plays:
    """Every sample is played, and answered with its row."""

    num_rows: int
    kinds: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return self.num_rows

    async def play(self, request):
        self.kinds.append(request.kind)
        return make_group([make_episode(answer=str(request.ref.row))], ref=request.ref), None


async def evaluated(num_rows: int, judge):
    shown = io.StringIO()
    display = Display(CONFIG, Console(file=shown, width=200))
    plays = Plays(num_rows)
    judges = JudgePool(Judges(judge), llm_config(max_tries=1))
    fleet = Fleet(rollouts=plays, judges=judges)
    return await evaluate(fleet, plays, CONFIG, display), shown.getvalue()


async def test_rows_without_a_verdict_are_in_no_accuracy_and_are_told():
    def judge(request, prediction):
        filtered = int(prediction) < 5
        right = Verdict(is_correct=True, judge="llm", reason="")
        return failed(Failure.REJECTED, "the endpoint filtered the reply") if filtered else right

    evaluation, shown = await evaluated(20, judge)
    assert (evaluation.policy.accuracy, evaluation.policy.num_unscored, evaluation.num_lost) == (1.0, 5, 0)
    assert "15 of 60 episodes have no verdict" in shown
    assert "the endpoint filtered the reply" in shown


@pytest.mark.parametrize("is_correct", [True, False])
async def test_nothing_is_told_where_every_row_has_its_verdict(is_correct):
    evaluation, shown = await evaluated(20, lambda *_: Verdict(is_correct=is_correct, judge="llm", reason=""))
    assert evaluation.figures()["accuracy"] == float(is_correct)
    assert "no verdict" not in shown


async def test_an_unusable_row_is_warned_of_once_for_all_kinds_and_evaluations():
    class TwoBroken(Plays):
        async def play(self, request):
            if request.ref.row in (3, 7):
                return SkippedSample(ref=request.ref, reason=f"row {request.ref.row}: truncated image"), None
            return await super().play(request)

    shown = io.StringIO()
    display = Display(CONFIG, Console(file=shown, width=200))
    plays = TwoBroken(200)
    judges = JudgePool(Judges(lambda *_: Verdict(is_correct=True, judge="llm", reason="")), llm_config(max_tries=1))
    fleet = Fleet(rollouts=plays, judges=judges)
    first, second = [await evaluate(fleet, plays, CONFIG, display) for _ in range(2)]
    assert first.num_lost == second.num_lost == 6
    assert shown.getvalue().count("truncated image") == 2
