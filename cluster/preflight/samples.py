"""Placeholders against features on real rows: what the prompt holds, what the views have, what the processor makes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any

from actors.data.dataset import Dataset
from actors.episode import SampleRef
from actors.errors import DataError, ImageError, RunError
from actors.images import ViewSpec, check_and_decode, full_view
from actors.play import ShownImage, Views, make_views
from actors.prompts import ChatRenderer, load_prompt_style, load_tokenizer
from actors.tools.registry import Toolbox, toolbox_of
from actors.tools.tool import Tool
from actors.views import Crop
from configs.schema import Config

NUM_ROWS = 8


def sample_problems(config: Config) -> Iterator[Exception]:
    """Mismatches in `NUM_ROWS` rows of data.train; a UserWarning for a row that no episode can be played from."""
    dataset = Dataset.open(config.data.train, config.data.columns)
    model, data = config.model, config.data
    renderer = ChatRenderer(load_tokenizer(model.path), load_prompt_style(model.prompt))
    spec = ViewSpec.from_model(model)
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
    """The first turn of a row, then as many calls as an episode may have. `processor`: the model library's, for images.

    Every reply is taken to be one token, so that a prompt that is too long here is so in every such episode.
    """
    tools, most = toolbox_of(config.rollout.tools), config.rollout.max_prompt_tokens
    shown = views.quarter or views.full
    prompt = renderer.first_turn(question, shown.num_visual_tokens, tools)
    features = _features(processor, shown)
    yield from _mismatch(row, 1, prompt.count(renderer.image_pad_id), features)
    for number, tool in enumerate(_longest_calls(tools), start=2):
        shown = views.full if tool.shows == "full" else views.show(_upper_left(views))
        prompt = renderer.next_turn(prompt, (renderer.end_id,), shown.num_visual_tokens, tools, tool.name)
        features += _features(processor, shown)
        yield from _mismatch(row, number, prompt.count(renderer.image_pad_id), features)
        if len(prompt) > most:
            calls = "" if tools.is_resize_alone else ", after regions of a quarter of the picture,"
            yield UserWarning(
                f"row {row}: a {_ordinal(number)} prompt of {len(prompt)} tokens{calls} exceeds "
                f"rollout.max_prompt_tokens={most}, so that its episodes end as truncated: raise it, or lower "
                f"model.max_pixels"
            )
            return


def _mismatch(row: int, turn: int, placeholders: int, features: int) -> Iterator[Exception]:
    if placeholders != features:
        yield RunError(
            f"row {row}: the {_ordinal(turn)} prompt has {placeholders} image placeholders, the model's processor "
            f"makes {features} features: model.path and its preprocessor_config.json do not belong together"
        )


def _longest_calls(toolbox: Toolbox) -> Iterator[Tool]:
    """The tools in turn, each as often as it may be called, for as many calls as an episode may have."""
    left = {tool.name: toolbox.max_calls(tool) for tool in toolbox.tools}
    num_left = toolbox.most_calls
    for tool in cycle(toolbox.tools):
        if not num_left:
            return
        limit = left[tool.name]
        if limit != 0:
            left[tool.name], num_left = None if limit is None else limit - 1, num_left - 1
            yield tool


def _upper_left(views: Views) -> Crop:
    """A region of a quarter of the picture, or as little more as makes whole visual tokens."""
    height, width = views.full_size
    side = views.spec.token_side
    return Crop(left=0, top=0, right=-(-width // 2 // side) * side, bottom=-(-height // 2 // side) * side)


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")


def _features(processor: Any, shown: ShownImage) -> int:
    grid = processor(images=[shown.picture], return_tensors="np")["image_grid_thw"]
    return int(grid.prod() // processor.merge_size**2)


def _processor(path: str, max_pixels: int) -> Any:
    """As the engine has it: it never resizes, because views are cut before."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(path, local_files_only=True, min_pixels=1, max_pixels=max_pixels)
