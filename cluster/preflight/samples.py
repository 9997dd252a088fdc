"""Placeholders against features on real rows: what the prompt holds, what the views have, what the processor makes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from actors.data.dataset import Dataset
from actors.episode import SampleRef
from actors.errors import DataError, ImageError, RunError
from actors.images import ViewSpec, check_and_decode, full_view
from actors.play import ShownImage, Views, make_views
from actors.prompts import ChatRenderer, load_prompt_style, load_tokenizer
from actors.tools.registry import toolbox_of
from configs.schema import Config

NUM_ROWS = 8


def sample_problems(config: Config) -> Iterator[Exception]:
    """Mismatches in `NUM_ROWS` rows of data.train; a UserWarning for a row that no episode can be played from."""
    dataset = Dataset.open(config.data.train, config.data.columns)
    model, data = config.model, config.data
    renderer = ChatRenderer(load_tokenizer(model.path), load_prompt_style(model.prompt))
    spec = ViewSpec.from_model(model.path, min_pixels=model.min_pixels, max_pixels=model.max_pixels)
    processor = _processor(model.path, model.max_pixels)
    num_rows = min(NUM_ROWS, len(dataset))
    for place in range(num_rows):
        row = place * len(dataset) // num_rows
        try:
            sample = dataset.read(SampleRef(dataset=data.train, row=row, uid=f"doctor-{row}"))
            image = check_and_decode(
                sample.image, max_pixels=data.max_source_pixels, max_side_ratio=data.max_side_ratio
            )
            views = make_views(full_view(image, spec), spec, "")
        except (DataError, ImageError) as error:
            yield UserWarning(f"row {row} of {data.train} will be skipped: {error}")
            continue
        yield from view_problems(row, sample.question, views, renderer, processor, config)


def view_problems(
    row: int, question: str, views: Views, renderer: ChatRenderer, processor: Any, config: Config
) -> Iterator[Exception]:
    """The first turn of a row, and a second one with the full view. `processor`: the model library's, for images."""
    tools = toolbox_of(config.rollout.tools)
    first = renderer.first_turn(question, (views.quarter or views.full).num_visual_tokens, tools)
    second = renderer.next_turn(
        first, (renderer.end_id,), views.full.num_visual_tokens, tools, config.rollout.tools.names[0]
    )
    for turn, prompt, shown in (
        ("first", first, [views.quarter or views.full]),
        ("second", second, [views.quarter or views.full, views.full]),
    ):
        placeholders, features = prompt.count(renderer.image_pad_id), sum(_features(processor, each) for each in shown)
        if placeholders != features:
            yield RunError(
                f"row {row}: the {turn} prompt has {placeholders} image placeholders, the model's processor makes "
                f"{features} features: model.path and its preprocessor_config.json do not belong together"
            )
        most = config.rollout.max_prompt_tokens
        if turn == "second" and len(prompt) + config.rollout.max_turn_tokens > most and len(prompt) > most:
            yield UserWarning(
                f"row {row}: a second prompt of {len(prompt)} tokens exceeds rollout.max_prompt_tokens={most}, so that "
                f"its episodes end as truncated: raise it, or lower model.max_pixels"
            )


def _features(processor: Any, shown: ShownImage) -> int:
    grid = processor(images=[shown.picture], return_tensors="np")["image_grid_thw"]
    return int(grid.prod() // processor.merge_size**2)


def _processor(path: str, max_pixels: int) -> Any:
    """As the engine has it: it never resizes, because views are cut before."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(path, local_files_only=True, min_pixels=1, max_pixels=max_pixels)
