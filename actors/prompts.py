"""Renders questions to token ids, and parses replies.

The tags, the tool's name and its JSON format are defined by the method (VisionThink, section 3); the wording is in
`configs/prompts/*.yaml` and can be replaced by a file. There are two kinds of first prompt: with the tool (quarter
view), and without it (one turn: general mode, the always-full and always-quarter baselines, and images too
small to quarter). A model must know both, so a warm start teaches both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import yaml

IMAGE_PAD = "<|image_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
VISION_TOKENS = (IMAGE_PAD, "<|video_pad|>", VISION_START, VISION_END, "<|vision_pad|>")
"""Placeholder tokens for images. The policy must never emit them: see `vision_token_ids`."""

TOOL_NAME = "resize_image"
TOOL_ARGUMENTS = {"action": "resize"}
TOOL_CALL = json.dumps({"name": TOOL_NAME, "arguments": TOOL_ARGUMENTS})
"""The one valid call, as `json.dumps` writes it."""

STYLES = Path(__file__).resolve().parent.parent / "configs" / "prompts"


class Tokenizer(Protocol):
    """The methods of a Hugging Face tokenizer that we use."""

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...
    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = ...) -> str: ...
    def get_vocab(self) -> dict[str, int]: ...


def load_tokenizer(path: str) -> Any:
    """The tokenizer in a local model folder. Nothing is downloaded and no code from the folder is executed."""
    from transformers import AutoTokenizer  # seconds to import: only where a tokenizer is really needed

    return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)


def vision_token_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of the vision tokens in this vocabulary: forbidden in sampling, masked in the learner."""
    vocabulary = tokenizer.get_vocab()
    return tuple(sorted(vocabulary[token] for token in VISION_TOKENS if token in vocabulary))


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptStyle:
    """Prompt template; `{question}` is filled into the user texts. Braces are doubled, as in `str.format`."""

    system: str
    """System prompt that declares the tool; empty for none."""
    system_without_tool: str
    user: str
    user_without_tool: str
    followup: str
    """Text next to the full view in turn 2."""

    def __post_init__(self) -> None:
        for name in ("user", "user_without_tool"):
            if "{question}" not in getattr(self, name):
                raise ValueError(
                    f"prompt style: {name}={getattr(self, name)!r} has no {{question}}: add it where the question goes"
                )
        for field in fields(self):
            places = {"question": ""} if field.name.startswith("user") else {}
            try:
                getattr(self, field.name).format(**places)
            except (LookupError, ValueError, AttributeError) as error:
                raise ValueError(
                    f"prompt style: {field.name} cannot be filled in ({type(error).__name__}: {error}): write {{{{ and "
                    f"}}}} for braces, and {{question}} in user and user_without_tool alone"
                ) from error


def load_prompt_style(name: str) -> PromptStyle:
    """A prompt template by its name in `configs/prompts`, or by the path of a YAML file with the same keys."""
    path = STYLES / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in STYLES.glob("*.yaml")))
        raise ValueError(f"model.prompt={name!r} is invalid: must be a known template ({known}) or the path of a file")
    try:
        texts = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"model.prompt={name!r}: {path} is not YAML: {' '.join(str(error).split())}") from error
    wanted = {field.name for field in fields(PromptStyle)}
    if not isinstance(texts, dict) or set(texts) != wanted or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(f"model.prompt={name!r}: {path} must map exactly {sorted(wanted)} to texts")
    try:
        return PromptStyle(**texts)
    except ValueError as error:
        raise ValueError(f"model.prompt={name!r}: {error}") from error


class ChatRenderer:
    """Renders turns as ChatML token ids, with one placeholder id per visual token."""

    def __init__(self, tokenizer: Tokenizer, style: PromptStyle) -> None:
        self._tokenizer = tokenizer
        self._style = style
        vocabulary = tokenizer.get_vocab()
        self.image_pad_id = vocabulary[IMAGE_PAD]
        self.end_id = vocabulary[TURN_END]

    def first_turn(self, question: str, num_visual_tokens: int, *, offers_tool: bool = True) -> tuple[int, ...]:
        """Prompt ids up to and including the assistant's header."""
        style = self._style
        system = (style.system if offers_tool else style.system_without_tool).format()
        user = (style.user if offers_tool else style.user_without_tool).format(question=strip_special_tokens(question))
        head = f"{TURN_START}system\n{system}{TURN_END}\n" if system else ""
        return tuple(self._encode(head)) + self._user_turn(num_visual_tokens, user)

    def second_turn(
        self, prompt_ids: tuple[int, ...], completion_ids: tuple[int, ...], num_visual_tokens: int
    ) -> tuple[int, ...]:
        """Turn 2's prompt: turn 1's prompt and completion ids unchanged, then the full view."""
        follow = self._encode("\n")
        return (
            *prompt_ids,
            *completion_ids,
            *follow,
            *self._user_turn(num_visual_tokens, self._style.followup.format()),
        )

    def reply_text(self, completion_ids: Sequence[int]) -> str:
        """The reply as text, tags kept, without the end token."""
        ids = completion_ids[:-1] if completion_ids and completion_ids[-1] == self.end_id else completion_ids
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def _user_turn(self, num_visual_tokens: int, text: str) -> tuple[int, ...]:
        before = self._encode(f"{TURN_START}user\n{VISION_START}")
        after = self._encode(f"{VISION_END}{text}{TURN_END}\n{TURN_START}assistant\n")
        return (*before, *([self.image_pad_id] * num_visual_tokens), *after)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False) if text else []


_SPECIAL = re.compile(r"<\|[^|<>]{1,40}\|>")
IMAGE_MARK = "<image>"
"""Image position in published questions. It is removed, since the prompt template places the image."""
_MARK_AT_END = re.compile(rf"(?:{_SPECIAL.pattern}|{IMAGE_MARK})\Z")
_LONGEST_MARK = 44


def strip_special_tokens(text: str) -> str:
    """The text without image marks and special tokens, including those that only appear once others are removed.

    A question is untrusted: it must not open turns or insert images. Runs in linear time.
    """
    if ">" not in text:
        return text
    kept: list[str] = []  # characters; never contains a mark, since each is removed with its last character
    *closed, rest = text.split(">")
    for piece in closed:
        kept.extend(piece)
        kept.append(">")
        if mark := _MARK_AT_END.search("".join(kept[-_LONGEST_MARK:])):
            del kept[-len(mark[0]) :]
    return "".join(kept) + rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    text: str
    """Text between the answer tags, stripped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A valid request for the full view."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Malformed:
    reason: str


Reply = Answer | ToolCall | Malformed

_REPLY = re.compile(
    r"\s*<think>(?P<think>.*?)</think>\s*"
    r"(?:<answer>(?P<answer>.*)</answer>|<tool_call>(?P<call>.*)</tool_call>)\s*",
    re.DOTALL,
)
_TAG = re.compile(r"</?(?:think|answer|tool_call)>")


def parse_reply(text: str) -> Reply:
    """One thought, then exactly one answer or one valid call, and nothing else (R_format of Eq. 4)."""
    match = _REPLY.fullmatch(text)
    if match is None:
        return Malformed(reason="not one <think> followed by one <answer> or one <tool_call>")
    if any(_TAG.search(part) for part in match.groupdict().values() if part):
        return Malformed(reason="nested tags")
    if _SPECIAL.search(text):
        return Malformed(reason="a special token in the reply")
    if match["answer"] is not None:
        return Answer(text=match["answer"].strip())
    return _parse_call(match["call"])


def _parse_call(text: str) -> ToolCall | Malformed:
    try:
        call = json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:  # ValueError covers JSONDecodeError and repeated keys
        return Malformed(reason=f"the call is not JSON: {error}")
    if call != {"name": TOOL_NAME, "arguments": TOOL_ARGUMENTS}:
        return Malformed(reason=f"the only valid call is {TOOL_CALL}")
    return ToolCall()


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A hook for `json.loads`; ValueError where an object has a key twice."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError("duplicate key")
    return dict(pairs)
