"""What an LLM judge is asked: our wording around three texts that are data, and the form its reply must take.

The wording lives in `configs/prompts/judge.yaml` and can be replaced by a file. Question, reference and prediction are
cleaned and fenced (`judge.llm.fence`) and filled in all at once: what one of them holds is never read as a place for
another. The prediction comes last, so that the calls of a group share the prompt before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from configs.judges import JudgeConfig, LLMJudgeConfig
from judge.llm.fence import clean_text, escape_text, fence, group_code

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "prompts"
PROMPT_FORMAT = 1
"""Raise it when the same wording and texts give another prompt: verdicts kept under the old one no longer count."""
TEMPERATURE = 0.0
"""Also on further tries: a verdict is a property of the texts, not of how often one asks."""
SEED = 0
FIELDS = ("question", "reference", "prediction")

Messages: TypeAlias = list[dict[str, str]]

_PLACE = re.compile(r"\{([A-Za-z_]+)\}")
_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"verdict": {"type": "integer", "enum": [0, 1]}},
    "required": ["verdict"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """The words around the data, for one metric and one form of reply."""

    system: str
    """May be empty."""
    user: str
    """Has the places `{question}`, `{reference}` and `{prediction}` once each, and `{nonce}`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """The texts of a wording file."""

    system: str
    """May be empty."""
    user: str
    """Has `{nonce}`, and once each `{question}`, `{reference}`, `{prediction}` (the last of them) and `{reply}`."""
    strict: str
    """What counts as right with judge.metric=strict; goes to `{criterion}`, which stands in `system` or `user`."""
    relaxed: str
    anls: str
    json_reply: str
    """What a reply looks like with judge.llm.reply=json; goes to `{reply}`."""
    digit_reply: str
    """The same with `choice` and `text`."""

    def __post_init__(self) -> None:
        places = {name: _PLACE.findall(text) for name, text in asdict(self).items()}
        allowed = {"system": ("criterion",), "user": (*FIELDS, "reply", "nonce", "criterion")}
        for name, found in places.items():
            if unknown := [place for place in found if place not in allowed.get(name, ())]:
                known = ", ".join(f"{{{place}}}" for place in allowed.get(name, ())) or "none"
                raise ValueError(f"{name} has {{{unknown[0]}}}: known there are {known}")
            if name not in allowed and not getattr(self, name).strip():
                raise ValueError(f"{name} is empty")
        for place in (*FIELDS, "reply"):
            if (count := places["user"].count(place)) != 1:
                raise ValueError(f"user has {{{place}}} {count} times: write it once")
        if (count := [*places["system"], *places["user"]].count("criterion")) != 1:
            raise ValueError(f"system and user have {{criterion}} {count} times: write it once")
        before = places["user"][: places["user"].index("prediction")]
        if missing := [place for place in ("nonce", "question", "reference") if place not in before]:
            raise ValueError(f"user has no {{{missing[0]}}} before {{prediction}}: calls of a group share what is there")

    def filled(self, config: JudgeConfig) -> Prompt:
        """The texts for a judge's metric and form of reply."""
        reply = self.json_reply if config.llm.reply == "json" else self.digit_reply
        words = {"criterion": getattr(self, config.metric), "reply": reply}
        return Prompt(system=_fill(self.system, words), user=_fill(self.user, words))


def _fill(text: str, words: Mapping[str, str]) -> str:
    """The text with the places of these words filled; others stay."""
    return _PLACE.sub(lambda place: words.get(place[1], place[0]), text)


def load_wording(name: str) -> Wording:
    """A wording by its name in `configs/prompts`, or by the path of a YAML file with the same keys.

    Raises:
        ValueError: no such file, not YAML, other keys, or places missing; names the setting, its value and the remedy.
    """
    where = f"judge.llm.prompt={name!r} is invalid"
    shipped = FOLDER / f"{name}.yaml"
    try:
        file = shipped if shipped.is_file() else Path(name).expanduser()
        texts = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{where}: {error.strerror}; write `judge`, or the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError, RuntimeError) as error:
        raise ValueError(f"{where}: not YAML: {' '.join(str(error).split())}") from error
    wanted = [field.name for field in fields(Wording)]
    if not isinstance(texts, dict) or set(texts) != set(wanted):
        raise ValueError(f"{where}: the file must map exactly {', '.join(wanted)} to texts")
    if wrong := [key for key in wanted if not isinstance(texts[key], str)]:
        raise ValueError(f"{where}: {wrong[0]} is {type(texts[wrong[0]]).__name__}, not a text")
    try:
        return Wording(**texts)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """The three texts of a call, cleaned and cut."""

    question: str
    reference: str
    """Empty only where nothing but white space was there."""
    prediction: str


def clean_material(
    question: str, reference: str, prediction: str, *, max_field_chars: int, max_answer_chars: int
) -> Material:
    return Material(
        question=clean_text(question, max_field_chars),
        reference=clean_text(reference, max_field_chars) or escape_text(reference, max_field_chars),
        prediction=clean_text(prediction, max_answer_chars),
    )


def build_messages(prompt: Prompt, material: Material, secret: bytes) -> Messages:
    """System and user message of one call.

    Args:
        secret: of the run, for the code of the marks.
    """
    code = group_code(secret, material.question, material.reference, material.prediction)
    words = {name: fence(name, getattr(material, name), code) for name in FIELDS}
    system = [{"role": "system", "content": prompt.system}] if prompt.system.strip() else []
    return [*system, {"role": "user", "content": _fill(prompt.user, {**words, "nonce": code})}]


def call_options(config: LLMJudgeConfig) -> dict[str, Any]:
    """What a chat completion is asked for besides the messages."""
    options: dict[str, Any] = {"model": config.model, "n": 1}
    if config.thinks:
        options["max_completion_tokens"] = config.max_reply_tokens
    else:
        options |= {"temperature": TEMPERATURE, "seed": SEED, "max_tokens": config.max_reply_tokens}
    if config.reply == "json":
        schema = {"name": "verdict", "strict": True, "schema": dict(_SCHEMA)}
        options["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif config.reply == "choice":
        # vLLM's own extension of the protocol, so the client does not know it.
        options["extra_body"] = {"structured_outputs": {"choice": ["0", "1"]}}
    return options
