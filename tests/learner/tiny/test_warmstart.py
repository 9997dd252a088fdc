import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.data.shapes import COARSE, FINE, ShapesRow, draw_scene
from actors.prompts import ChatRenderer, load_prompt_style, load_tokenizer, vision_token_ids
from actors.replies import Answer, parse_reply
from actors.tools.registry import RESIZE_ALONE, ToolCall
from actors.tools.resize import RESIZE_CALL
from learner.families.architectures import architecture_of
from learner.families.lookup import FAMILIES
from learner.model import load_policy
from learner.tiny.lessons import LessonBook, answer_reply, call_reply
from learner.tiny.model import SPECIAL_TOKENS, TAGS, build_model, build_tokenizer
from learner.tiny.probe import probe, probe_lessons
from learner.tiny.shapes import FORMS, SHAPES_TASK, lessons_of, thought
from learner.tiny.task import tokenizer_corpus
from learner.tiny.warmstart import draw_lessons, learning_rate_at, lesson_loss, stage_at, warm_start

SHIPPED = Path(__file__).resolve().parents[3] / "configs" / "tiny"
STYLE = load_prompt_style("tiny")
ANSWERS = SHAPES_TASK.answers
SMALL = replace(SHAPES_TASK, batch_size=8)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(tokenizer_corpus(SHAPES_TASK, STYLE))


@pytest.fixture(scope="module")
def book(tokenizer):
    return LessonBook(tokenizer, STYLE, ANSWERS)


def rows(count: int, kind="stripes", stripe_width=FINE):
    rng = np.random.default_rng(0)
    return [ShapesRow(scene=draw_scene(rng, "train", stripe_width=stripe_width), kind=kind) for _ in range(count)]


@pytest.mark.parametrize("text", ["", "a\x00b", "naïve 🙂\r\n\t x  y", "<think", "<|im_end", "ไม่"])
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_special_tokens_and_tags_are_one_token_each_and_only_tags_are_text(tokenizer):
    for token in (*SPECIAL_TOKENS, *TAGS):
        ids = tokenizer.encode(token, add_special_tokens=False)
        assert len(ids) == 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == (token if token in TAGS else "")
    assert len(vision_token_ids(tokenizer)) == 4


def test_the_shipped_tokenizer_is_the_one_that_the_prompts_call_for(tokenizer):
    assert load_tokenizer(str(SHIPPED)).get_vocab() == tokenizer.get_vocab()


def test_the_shipped_folder_is_small():
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) <= 5_000_000


def test_the_chat_template_renders_the_prompts_of_training(tokenizer):
    question = "which shape is it?"
    content = [{"type": "image"}, {"type": "text", "text": STYLE.user.format(question=question)}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    expected = ChatRenderer(tokenizer, STYLE).first_turn(question, 1, RESIZE_ALONE)
    assert tuple(tokenizer.encode(text, add_special_tokens=False)) == expected


def test_replies_are_well_formed():
    for seen in ("shape", "stripes", "flat"):
        assert parse_reply(call_reply(seen + "?", RESIZE_CALL), RESIZE_ALONE) == ToolCall(
            name="resize_image", arguments={"action": "resize"}
        )
        assert [parse_reply(answer_reply(seen, answer), None) for answer in ANSWERS] == [
            Answer(text=a) for a in ANSWERS
        ]


def test_the_thought_says_what_the_view_shows():
    (fine,), (coarse,) = rows(1), rows(1, stripe_width=COARSE)
    assert [thought(fine, sees_full=full) for full in (False, True)] == ["flat", "stripes"]
    assert [thought(coarse, sees_full=full) for full in (False, True)] == ["stripes", "stripes"]
    assert thought(rows(1, kind="colour")[0], sees_full=False) == "shape"


@pytest.mark.parametrize("form", FORMS)
def test_a_transcript_is_what_an_episode_would_hold(book, tokenizer, form):
    (row,) = rows(1)
    (lesson,) = lessons_of(row, (form,))
    script = book.transcript(lesson)
    renderer = ChatRenderer(tokenizer, STYLE)
    prompt = renderer.first_turn(
        row.question, 64 if form == "plain_full" else 16, RESIZE_ALONE if form in ("direct", "ask") else None
    )
    if form == "ask":
        request = tuple(tokenizer.encode(call_reply("flat?", RESIZE_CALL) + "<|im_end|>", add_special_tokens=False))
        prompt = renderer.next_turn(prompt, request, 64, RESIZE_ALONE, "resize_image")
    assert script.token_ids[: len(prompt)] == prompt
    assert parse_reply(renderer.reply_text(script.token_ids[len(prompt) :]), None) == Answer(text=row.answer)
    assert tokenizer.decode([script.token_ids[script.answer_at]]) == row.answer
    taught = {*script.targets, script.answer_at, *([script.decision_at] if script.decision_at else [])}
    spoken = set(range(len(prompt), len(script.token_ids)))
    assert spoken <= taught
    assert all(script.token_ids[index] != renderer.image_pad_id for index in taught)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_loss_does_not_depend_on_the_company_a_lesson_keeps(book, tokenizer, family):
    model = build_model(tokenizer, family, seed=0).eval()
    architecture_of(model).install()
    lessons = [lesson for row, form in zip(rows(4), FORMS, strict=True) for lesson in lessons_of(row, (form,))]
    weights, losses = [], []
    with torch.no_grad():
        together = lesson_loss(model, book.batch(lessons), 5.0).item()
        for lesson in lessons:
            batch = book.batch([lesson])
            weights.append(len(batch.certain_from_N) + len(batch.decision_from_K) + 5.0)
            losses.append(lesson_loss(model, batch, 5.0).item())
    assert together == pytest.approx(np.average(losses, weights=weights), abs=1e-5)


def test_a_decision_is_taught_as_an_even_chance_whatever_form_it_is_drawn_in(book, tokenizer):
    """Both forms of a row ask for the same two probabilities at the same place."""
    (row,) = rows(1)
    direct, ask = (book.transcript(lesson) for lesson in lessons_of(row, ("direct", "ask")))
    assert direct.choices == ask.choices
    assert direct.decision_at == ask.decision_at
    assert direct.token_ids[direct.decision_at] == direct.choices[0]
    assert ask.token_ids[ask.decision_at] == ask.choices[1]
    assert direct.decision_at not in direct.targets


def test_stages_follow_each_other_and_play_every_row_in_all_their_forms():
    curriculum = SHAPES_TASK.stages
    stages = [stage_at(curriculum, step, 1000) for step in range(1000)]
    assert [stages.index(stage) for stage in curriculum] == [0, 80, 160]
    assert stage_at(curriculum, 0, 1) is curriculum[0]
    lessons = draw_lessons(np.random.default_rng(0), curriculum[-1], 6)
    assert [lesson.form for lesson in lessons] == list(FORMS) * 6
    assert all(stage.num_forms == len(stage.draw(np.random.default_rng(0), "train")) for stage in curriculum)


def test_a_warm_start_sees_rows_of_the_training_split_alone(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "learner.tiny.shapes.draw_scene", lambda *args, **kwargs: drawn.append(draw_scene(*args, **kwargs)) or drawn[-1]
    )
    draw_lessons(np.random.default_rng(0), SHAPES_TASK.stages[-1], 6)
    assert [scene.split for scene in drawn] == ["train"] * 6


def test_the_learning_rate_rises_stays_and_falls():
    rates = [learning_rate_at(SHAPES_TASK.stages, step, 1000, 1.0) for step in range(1000)]
    assert rates[0] == pytest.approx(0.05)
    assert set(rates[19:161]) == {1.0}
    assert rates[-1] == pytest.approx(0.02, abs=1e-4)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[160:]))


@pytest.mark.parametrize(
    ("family", "most"), [("qwen2_5_vl", 1_250_000), pytest.param("qwen3_vl", 1_700_000, marks=pytest.mark.slow)]
)
def test_a_few_steps_lower_the_loss_and_leave_a_folder_that_loads(tmp_path, family, most):
    losses: list[float] = []
    warm_start(tmp_path / "model", SMALL, family=family, steps=12, progress=lambda step, loss: losses.append(loss))
    assert losses[-1] < 0.8 * losses[0]
    model = load_policy(tmp_path / "model")
    assert 1_000_000 < sum(parameter.numel() for parameter in model.parameters()) < most
    assert {"tokenizer.json", "chat_template.jinja", "preprocessor_config.json", "generation_config.json"} <= {
        file.name for file in (tmp_path / "model").iterdir()
    }


def test_the_same_seed_makes_the_same_model(tmp_path):
    for name in ("a", "b"):
        warm_start(tmp_path / name, SMALL, steps=2, seed=3)
    first, second = (load_policy(tmp_path / name).state_dict() for name in ("a", "b"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_shipped_model_reads_both_views_and_has_no_opinion_on_asking():
    figures = probe(SHIPPED, SHAPES_TASK, probe_lessons(SHAPES_TASK, 64, seed=11))
    for kind in ("colour", "shape", "coarse"):
        for form in FORMS:
            assert figures[f"right/{form}/{kind}"] >= 0.95, (form, kind)
    for form in ("ask", "plain_full"):
        assert figures[f"right/{form}/fine"] >= 0.95
    for form in ("direct", "plain_quarter"):
        assert figures[f"right/{form}/fine"] <= 0.25 + 4 * math.sqrt(0.25 * 0.75 / 16)
    assert 0.35 <= figures["ask/least"] <= figures["ask/most"] <= 0.65
    assert min(figures[f"well_formed/{form}"] for form in FORMS) >= 0.98
