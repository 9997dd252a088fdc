"""A Qwen2.5-VL or Qwen3-VL small enough to be trained from scratch on a CPU, and its tokenizer; the former is shipped.

The folder is laid out as the published checkpoints are (configuration, chat template, image processor), so that vLLM
and transformers load it with no code of ours.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

from learner.families.family import ModelFamily

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>", "<tool_call>", "</tool_call>")
"""One token each, and part of the text: decoding keeps them."""
VOCABULARY_SIZE = 640
"""At most; 256 bytes, 13 special tokens and tags, and as many merges as the corpus supports."""

WIDTH, LAYERS = 128, 4
VISION_WIDTH, VISION_LAYERS, PATCH_SIZE = 96, 4, 14
INITIALIZER_RANGE = 0.08
"""With the library's 0.02 a model this narrow does not learn stripes in 2,000 steps; with 0.08, in 60."""
CONTEXT_LENGTH = 2048

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif 'text' in part -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def build_tokenizer(corpus: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the corpus. Every byte is in the vocabulary, so that any text can be encoded.

    Text is cut before spaces alone, not at punctuation: the JSON of a request becomes a handful of tokens, which is
    most of what an episode costs.
    """
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[^\s]+|\s+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in (*SPECIAL_TOKENS, *TAGS)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(list(corpus), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=_with_tags_as_text(raw),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in ("<|im_end|>", "<|endoftext|>")],
        model_max_length=CONTEXT_LENGTH,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _with_tags_as_text(raw: Tokenizer) -> Tokenizer:
    """The trainer makes all reserved tokens special; tags are part of the reply, so decoding must not drop them."""
    written = json.loads(raw.to_str())
    for token in written["added_tokens"]:
        token["special"] = token["content"] not in TAGS
    return Tokenizer.from_str(json.dumps(written))


def build_model(tokenizer: PreTrainedTokenizerFast, family: ModelFamily, *, seed: int) -> Any:
    """1.2 to 1.7 million float32 parameters, drawn from the seed. Heads are 32 wide: vLLM's CPU build takes no less.

    Patches are 14 pixels wide in either family: then the views of the shapes task have 8 x 8 and 4 x 4 visual tokens.
    """
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 192,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT_LENGTH,
        "tie_word_embeddings": True,
        "initializer_range": INITIALIZER_RANGE,
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        **family.tiny.text,
    }
    vision = {
        "depth": VISION_LAYERS,
        "hidden_size": VISION_WIDTH,
        "intermediate_size": 160,
        "num_heads": 3,
        "out_hidden_size": WIDTH,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "initializer_range": INITIALIZER_RANGE,
        **family.tiny.vision,
    }
    config = AutoConfig.for_model(
        family.model_type,
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    config.dtype = torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    return model


def save_tiny(folder: Path, model: Any, tokenizer: PreTrainedTokenizerFast, family: ModelFamily) -> None:
    """Write everything that vLLM and transformers read, weights as safetensors of the model's type."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    settings = processor_settings(family, patch_size=PATCH_SIZE)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def processor_settings(family: ModelFamily, *, patch_size: int) -> dict[str, Any]:
    """preprocessor_config.json of a model of the family."""
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": family.processor,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": list(family.image_mean),
        "image_std": list(family.image_std),
        "min_pixels": (2 * patch_size) ** 2,
        "max_pixels": (32 * patch_size) ** 2,
        "patch_size": patch_size,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }
