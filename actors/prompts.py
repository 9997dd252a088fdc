"""Renders questions to token ids.

The tags, the tools' names and their JSON format are an interface (VisionThink, section 3, for `resize_image`); the
wording is in `configs/prompts/*.yaml` and can be replaced by a file. There are two kinds of first prompt: with tools
(quarter view), and without (one turn: general mode, the always-full and always-quarter baselines, and images too
small to quarter). A model must know both, so a warm start teaches both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import yaml

from actors.tools.registry import TOOLS, Toolbox

IMAGE_PAD = "<|image_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
VISION_TOKENS = (IMAGE_PAD, "<|video_pad|>", VISION_START, VISION_END, "<|vision_pad|>")
"""Placeholder tokens for images. The policy must never emit them: see `vision_token_ids`."""

NUM_CACHED_TEXTS, CACHED_CHARS = 1024, 4096
"""Texts whose tokens a renderer keeps, and how long one may be: prompts repeat all but the question."""
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
class ToolTexts:
    """Texts of a prompt template for other tools than `resize_image` alone. Braces are doubled, as in `str.format`."""

    system: str
    """System prompt; `{tools}` is where the declarations go, one JSON object a line. Empty for none."""
    user: str
    followups: dict[str, str] = field(default_factory=dict)
    """By tool, the text next to the view that it shows; others have the text of their own file."""
    wrong_call: str
    """What a refused call is answered with, where `rollout.tools.on_wrong_call=reply`; `{error}` is the reason."""

    def __post_init__(self) -> None:
        _check_text("tools.system", self.system, optional=("tools",))
        _check_text("tools.user", self.user, required=("question",))
        _check_text("tools.wrong_call", self.wrong_call, required=("error",))
        for name, text in self.followups.items():
            if name not in TOOLS:
                raise ValueError(f"prompt style: tools.followups has {name!r}: must be one of {', '.join(TOOLS)}")
            _check_text(f"tools.followups.{name}", text)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptStyle:
    """Prompt template; `{question}` is filled into the user texts. Braces are doubled, as in `str.format`."""

    system: str
    """System prompt that declares `resize_image`; empty for none."""
    system_without_tool: str
    user: str
    user_without_tool: str
    followup: str
    """Text next to the full view in turn 2, where `resize_image` is the only tool."""
    tools: ToolTexts | None = None
    """For other tools; without it, the template is for `resize_image` alone."""

    def __post_init__(self) -> None:
        for name in ("user", "user_without_tool"):
            _check_text(name, getattr(self, name), required=("question",))
        for name in ("system", "system_without_tool", "followup"):
            _check_text(name, getattr(self, name))

    def check(self, toolbox: Toolbox) -> None:
        """Raise ValueError where the template has no texts for these tools."""
        if self.tools is None and not (toolbox.is_resize_alone and toolbox.config.on_wrong_call == "malformed"):
            raise ValueError(
                f"rollout.tools.names={[tool.name for tool in toolbox.tools]} is invalid for this model.prompt: its "
                "template has no `tools` texts for other tools than resize_image alone, nor for the reply to a refused "
                "call; add them (docs/tools.md), or choose another template"
            )

    def texts(self, toolbox: Toolbox | None = None) -> dict[str, Any]:
        """The template as its file has it; with a toolbox, what episodes with these tools show, which identifies a
        run."""
        texts = asdict(self)
        is_plain = toolbox is not None and toolbox.is_resize_alone and toolbox.config.on_wrong_call == "malformed"
        if self.tools is None or is_plain:
            del texts["tools"]
        elif toolbox is not None:
            texts["declarations"] = toolbox.declarations()
            texts["tools"]["followups"] = {tool.name: self.followup_text(toolbox, tool.name) for tool in toolbox.tools}
        return texts

    def system_text(self, toolbox: Toolbox | None) -> str:
        """System prompt of an episode with these tools; None: without any."""
        if toolbox is None:
            return self.system_without_tool.format()
        if toolbox.is_resize_alone:
            return self.system.format()
        return self._tools(toolbox).system.format(tools=toolbox.declarations())

    def user_text(self, toolbox: Toolbox | None, question: str) -> str:
        """Text next to the first picture."""
        if toolbox is None:
            return self.user_without_tool.format(question=question)
        return (self.user if toolbox.is_resize_alone else self._tools(toolbox).user).format(question=question)

    def followup_text(self, toolbox: Toolbox, tool: str) -> str:
        """Text next to the view that a tool shows."""
        if toolbox.is_resize_alone:
            return self.followup.format()
        return self._tools(toolbox).followups.get(tool, TOOLS[tool].followup).format()

    def wrong_call_text(self, toolbox: Toolbox, reason: str) -> str:
        return self._tools(toolbox).wrong_call.format(error=strip_special_tokens(reason))

    def _tools(self, toolbox: Toolbox) -> ToolTexts:
        self.check(toolbox)
        assert self.tools is not None
        return self.tools


def _check_text(name: str, text: str, *, required: Sequence[str] = (), optional: Sequence[str] = ()) -> None:
    """ValueError unless the text has its places and can be filled in."""
    for place in required:
        if f"{{{place}}}" not in text:
            raise ValueError(f"prompt style: {name}={text!r} has no {{{place}}}: add it where the {place} goes")
    try:
        text.format(**dict.fromkeys((*required, *optional), ""))
    except (LookupError, ValueError, AttributeError) as error:
        allowed = ", ".join(f"{{{place}}}" for place in (*required, *optional)) or "no places"
        raise ValueError(
            f"prompt style: {name} cannot be filled in ({type(error).__name__}: {error}): write {{{{ and }}}} for "
            f"braces; it may have {allowed}"
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
    wanted = {each.name for each in fields(PromptStyle)} - {"tools"}
    of_tools = texts.pop("tools", None) if isinstance(texts, dict) else None
    if not isinstance(texts, dict) or set(texts) != wanted or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(
            f"model.prompt={name!r}: {path} must map exactly {sorted(wanted)} to texts, and may have tools"
        )
    try:
        return PromptStyle(**texts, tools=None if of_tools is None else _tool_texts(of_tools))
    except ValueError as error:
        raise ValueError(f"model.prompt={name!r}: {error}") from error


def _tool_texts(texts: object) -> ToolTexts:
    wanted = {each.name for each in fields(ToolTexts)} - {"followups"}
    plain = dict(texts) if isinstance(texts, dict) else {}
    followups = plain.pop("followups", {})
    values = [*plain.values(), *followups.values()] if isinstance(followups, dict) else [None]
    if set(plain) != wanted or not all(isinstance(text, str) for text in values):
        raise ValueError(f"tools must map exactly {sorted(wanted)} to texts, and may map followups to texts by tool")
    return ToolTexts(**plain, followups=followups)


class ChatRenderer:
    """Renders turns as ChatML token ids, with one placeholder id per visual token."""

    def __init__(self, tokenizer: Tokenizer, style: PromptStyle) -> None:
        self._tokenizer = tokenizer
        self._style = style
        self._tokens = lru_cache(NUM_CACHED_TEXTS)(self._tokenize)
        vocabulary = tokenizer.get_vocab()
        self.image_pad_id = vocabulary[IMAGE_PAD]
        self.end_id = vocabulary[TURN_END]

    def first_turn(self, question: str, num_visual_tokens: int, toolbox: Toolbox | None) -> tuple[int, ...]:
        """Prompt ids up to and including the assistant's header. Without a toolbox, no tool is declared."""
        system = self._style.system_text(toolbox)
        user = self._style.user_text(toolbox, strip_special_tokens(question))
        head = f"{TURN_START}system\n{system}{TURN_END}\n" if system else ""
        return self._encode(head) + self._user_turn(user, num_visual_tokens)

    def next_turn(
        self,
        prompt_ids: tuple[int, ...],
        completion_ids: tuple[int, ...],
        num_visual_tokens: int,
        toolbox: Toolbox,
        tool: str,
    ) -> tuple[int, ...]:
        """The prompt after a call: the turn's prompt and completion ids unchanged, then the view that it shows."""
        user = self._user_turn(self._style.followup_text(toolbox, tool), num_visual_tokens)
        return (*prompt_ids, *completion_ids, *self._encode("\n"), *user)

    def refused_turn(
        self, prompt_ids: tuple[int, ...], completion_ids: tuple[int, ...], toolbox: Toolbox, reason: str
    ) -> tuple[int, ...]:
        """The prompt after a refused call: the turn's prompt and completion ids unchanged, then why, without a view."""
        user = self._user_turn(self._style.wrong_call_text(toolbox, reason), 0)
        return (*prompt_ids, *completion_ids, *self._encode("\n"), *user)

    def reply_text(self, completion_ids: Sequence[int]) -> str:
        """The reply as text, tags kept, without the end token."""
        ids = completion_ids[:-1] if completion_ids and completion_ids[-1] == self.end_id else completion_ids
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def _user_turn(self, text: str, num_visual_tokens: int) -> tuple[int, ...]:
        """A turn with one picture, or without one for 0 visual tokens."""
        if not num_visual_tokens:
            return self._encode(f"{TURN_START}user\n{text}{TURN_END}\n{TURN_START}assistant\n")
        before = self._encode(f"{TURN_START}user\n{VISION_START}")
        after = self._encode(f"{VISION_END}{text}{TURN_END}\n{TURN_START}assistant\n")
        return (*before, *([self.image_pad_id] * num_visual_tokens), *after)

    def _encode(self, text: str) -> tuple[int, ...]:
        return self._tokens(text) if len(text) <= CACHED_CHARS else self._tokenize(text)

    def _tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False)) if text else ()


SPECIAL_TOKEN = re.compile(r"<\|[^|<>]{1,40}\|>")
IMAGE_MARK = "<image>"
"""Image position in published questions. It is removed, since the prompt template places the image."""
_MARK_AT_END = re.compile(rf"(?:{SPECIAL_TOKEN.pattern}|{IMAGE_MARK})\Z")
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
