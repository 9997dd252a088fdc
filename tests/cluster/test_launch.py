"""What a run refuses before anything of it comes up."""

import time

import pytest

from actors.errors import JudgeError
from cluster import launch as launching
from cluster.display import Display
from configs.load import load_config

NO_WORDING = ["judge.chain=[rules,openai]", "judge.llm.model=m", "judge.llm.prompt=no-such-wording"]
NO_FOLDER = ["judge.chain=[rules,cluster]", "judge.llm.model=no-such-folder"]


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [(NO_WORDING, ValueError, "judge.llm.prompt='no-such-wording'"), (NO_FOLDER, JudgeError, "'no-such-folder'")],
)
@pytest.mark.parametrize("is_training", [True, False])
async def test_a_judge_that_cannot_be_asked_is_refused_before_ray_comes_up(
    overrides, error, words, is_training, monkeypatch, tmp_path
):
    monkeypatch.setattr(launching, "connect", lambda: pytest.fail("Ray came up"))
    config = load_config("tiny", [*overrides, f"run.dir={tmp_path}"])
    display = Display(config)
    if is_training:
        parts = launching.launch(config, resume=False, display=display, started_at=time.monotonic())
    else:
        parts = launching.launch_fleet(config, display=display)
    with pytest.raises(error, match=words):
        async with parts:
            pytest.fail("everything came up")
    assert list(tmp_path.iterdir()) == []
