import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.data.crop import CORNERS, draw_row, region_of
from actors.needs import NEEDS
from actors.prompts import load_prompt_style, load_tokenizer
from actors.views import Crop
from learner.families.architectures import architecture_of
from learner.families.lookup import FAMILIES
from learner.model import load_policy
from learner.tiny.crop import CROP_TASK, MARKS, lessons_of
from learner.tiny.lessons import LessonBook
from learner.tiny.model import build_model, build_tokenizer
from learner.tiny.probe import probe, probe_lessons
from learner.tiny.task import tokenizer_corpus
from learner.tiny.warmstart import copy_weights, lesson_states

SHIPPED = Path(__file__).resolve().parents[3] / "configs" / "tiny_crop"
STYLE = load_prompt_style(CROP_TASK.prompt)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(tokenizer_corpus(CROP_TASK, STYLE))


@pytest.fixture(scope="module")
def book(tokenizer):
    return LessonBook(tokenizer, STYLE, CROP_TASK.answers)


def lessons(need: str, count: int = 1):
    rng = np.random.default_rng(1)
    return [lesson for _ in range(count) for lesson in lessons_of(draw_row(rng, "train", need=need), rng)]


def test_a_box_is_named_in_four_tokens(tokenizer):
    crop = next(lesson for lesson in lessons("region") if lesson.form == "crop")
    with_box = tokenizer.encode(crop.reply, add_special_tokens=False)
    resize = next(lesson for lesson in lessons("region") if lesson.form == "resize")
    assert len(with_box) == len(tokenizer.encode(resize.reply, add_special_tokens=False)) + 3


@pytest.mark.parametrize("need", NEEDS)
def test_the_crop_that_follows_is_what_the_call_asks_for(need):
    """The box is in pixels of the quarter view, the crop in those of the full view."""
    for lesson in lessons(need, 8):
        for turn in lesson.later:
            if isinstance(turn.view, Crop):
                call = json.loads(lesson.reply.partition("<tool_call>")[2].removesuffix("</tool_call>"))
                left, top, right, bottom = (2 * side for side in call["arguments"]["bbox_2d"])
                assert turn.view == Crop(left=left, top=top, right=right, bottom=bottom)


def test_a_region_that_is_needed_is_the_one_that_is_shown():
    rng = np.random.default_rng(2)
    for _ in range(8):
        row = draw_row(rng, "train", need="region")
        (crop,) = lessons_of(row, rng, ("crop",))
        assert [turn.view for turn in crop.later] == [region_of(row.scene.corner)]


def test_of_scattered_squares_each_is_looked_at_as_often_and_three_of_four_are_flat():
    crops = [lesson for lesson in lessons("full", 400) if lesson.form == "crop"]
    shown = Counter(lesson.later[0].view for lesson in crops)
    assert set(shown) == {region_of(corner) for corner in CORNERS}
    assert min(shown.values()) > 65
    flat = sum("<think>flat<" in lesson.later[0].reply for lesson in crops)
    assert 260 < flat < 340


def test_what_a_view_shows_is_said_and_every_choice_is_taught_as_equally_likely(book):
    thoughts = defaultdict(set)
    for need in NEEDS:
        for lesson in lessons(need, 30):
            if lesson.choices:
                thoughts[need].add(lesson.choices[0])
                assert lesson.choices == tuple(lesson.choices[0] + mark for mark in MARKS)
                script = book.transcript(lesson)
                chosen = script.token_ids[script.decision_at]
                assert chosen == script.choices[("direct", "resize", "crop").index(lesson.form)]
    flat = {"flat-ul", "flat-ur", "flat-ll", "flat-lr"}
    assert thoughts == {"quarter": {"shape", "stripes"}, "region": flat, "full": {"many"}}


def test_a_picture_that_several_lessons_show_is_encoded_once(book):
    batch = book.batch(lessons("region", 3))
    assert [tuple(views.shape) for views in batch.views] == [(3, 56, 56, 3), (3, 112, 112, 3), (3, 224, 224, 3)]
    assert len(batch.placeholder_at_M) == len(batch.feature_of_M) == 3 * (4 * 16 + 2 * 64 + 4)


def test_the_states_of_a_lesson_do_not_depend_on_the_company_it_keeps(book, tokenizer):
    model = build_model(tokenizer, FAMILIES["qwen2_5_vl"], seed=0).eval()
    architecture_of(model).install()
    mixed = lessons("full") + lessons("region")
    batch = book.batch(mixed)
    with torch.no_grad():
        together = lesson_states(model, batch).reshape(len(mixed), batch.token_ids_BT.shape[1], -1)
        for index, lesson in enumerate(mixed):
            alone = book.batch([lesson])
            length = alone.token_ids_BT.shape[1]
            torch.testing.assert_close(lesson_states(model, alone), together[index, :length], atol=1e-4, rtol=1e-4)


def test_the_start_is_the_model_of_the_shapes_task_token_by_token(tokenizer):
    model = build_model(tokenizer, FAMILIES["qwen2_5_vl"], seed=0)
    fresh = build_model(tokenizer, FAMILIES["qwen2_5_vl"], seed=0).state_dict()
    source = Path(CROP_TASK.start)
    copy_weights(source, model, tokenizer)
    theirs, their_ids = load_policy(source), load_tokenizer(str(source)).get_vocab()
    rows, their_rows = (each.model.language_model.embed_tokens.weight for each in (model, theirs))
    for token, index in tokenizer.get_vocab().items():
        if token in their_ids:
            assert torch.equal(rows[index], their_rows[their_ids[token]])
        else:
            assert torch.equal(rows[index], fresh["model.language_model.embed_tokens.weight"][index])
    their_vision = dict(theirs.model.visual.named_parameters())
    assert all(torch.equal(ours, their_vision[name]) for name, ours in model.model.visual.named_parameters())


def test_the_shipped_tokenizer_is_the_one_that_the_prompts_call_for(tokenizer):
    assert load_tokenizer(str(SHIPPED)).get_vocab() == tokenizer.get_vocab()


def test_the_shipped_folder_is_small():
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) <= 2_500_000


def test_the_shipped_model_reads_all_views_and_has_no_opinion_on_when_to_look_where():
    figures = probe(SHIPPED, CROP_TASK, probe_lessons(CROP_TASK, 36, seed=11))
    for form, kind in (("direct", "coarse"), ("direct", "colour"), ("crop", "region"), ("resize", "full")):
        assert figures[f"right/{form}/{kind}"] >= 0.95, (form, kind)
    for kind in ("colour", "shape", "coarse", "region", "full"):
        assert figures[f"right/plain_full/{kind}"] >= 0.95, kind
    for form, kind in (("direct", "region"), ("direct", "full"), ("crop", "full")):
        assert figures[f"right/{form}/{kind}"] <= 0.85, "what cannot be seen is guessed"
    for kind in ("colour", "shape", "coarse", "region", "full"):
        for number in (0, 1):
            assert figures[f"choice/{number}/{kind}"] == pytest.approx(1 / 3, abs=0.05), (number, kind)
    assert figures["well_formed/direct"] >= 0.95
