"""What an LLM judge is asked: our wording around three texts that are data, and the form its reply must take.

The wording lives in `configs/prompts/judge.yaml` and can be replaced by a file. Question, reference and prediction are
cleaned and fenced (`judge.fence`) and go in all at once: what one of them holds is never read as a place for another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml

from configs.judges import LLMJudgeConfig
from judge.llm.fence import clean_text, draw_nonce, fence

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "prompts"
TEMPERATURE = 0.0
"""Also on further tries: a verdict is a property of the texts, not of how often one asks."""
SEED = 0
FIELDS = ("question", "reference", "prediction")

ReplyMode: TypeAlias = Literal["json", "choice", "text"]

_PLACE = re.compile(r"\{([A-Za-z_]+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """The words around the data."""

    system: str
    """The criteria. May be empty."""
    user: str
    """Has the places `{question}`, `{reference}`, `{prediction}`, `{reply}` once each, and `{nonce}`."""
    json_reply: str
    """Goes to `{reply}` with `judge.llm.reply=json`."""
    digit_reply: str
    """Goes to `{reply}` with `choice` and `text`."""

    def __post_init__(self) -> None:
        places = {field.name: _PLACE.findall(getattr(self, field.name)) for field in fields(self)}
        for name in ("system", "json_reply", "digit_reply"):
            if places[name]:
                raise ValueError(f"{name} has {{{places[name][0]}}}: only the user text is filled in")
        known = (*FIELDS, "reply", "nonce")
        if unknown := [place for place in places["user"] if place not in known]:
            raise ValueError(f"user has {{{unknown[0]}}}: known are {', '.join(f'{{{place}}}' for place in known)}")
        for place in (*FIELDS, "reply"):
            if (found := places["user"].count(place)) != 1:
                raise ValueError(f"user has {{{place}}} {found} times: write it once")
        if "nonce" not in places["user"]:
            raise ValueError("user never tells the code of the marks: add {nonce}")
        for name in ("json_reply", "digit_reply"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} is empty: say what a reply looks like")


def load_wording(name: str) -> Wording:
    """A wording by its name in `configs/prompts`, or by the path of a YAML file with the same keys.

    Raises:
        ValueError: no such file, not YAML, other keys, or places missing; names the setting, its value and the remedy.
    """
    where = f"judge.llm.prompt={name!r} cannot work"
    file = FOLDER / f"{name}.yaml"
    try:
        texts = yaml.safe_load((file if file.is_file() else Path(name)).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{where}: {error.strerror}; write `judge`, or the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
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
    prediction: str


def clean_material(
    question: str, reference: str, prediction: str, *, max_field_chars: int, max_answer_chars: int
) -> Material:
    return Material(
        question=clean_text(question, max_field_chars),
        reference=clean_text(reference, max_field_chars),
        prediction=clean_text(prediction, max_answer_chars),
    )


def build_messages(
    wording: Wording, material: Material, mode: ReplyMode, *, nonce: Callable[..., str] = draw_nonce
) -> list[dict[str, str]]:
    """System and user message of one call. Every call has its own code."""
    texts = {name: getattr(material, name) for name in FIELDS}
    code = nonce(tuple(texts.values()))
    filling = {name: fence(name, text, code) for name, text in texts.items()}
    filling["reply"] = wording.json_reply if mode == "json" else wording.digit_reply
    filling["nonce"] = code
    user = _PLACE.sub(lambda place: filling[place[1]], wording.user)
    system = [{"role": "system", "content": wording.system}] if wording.system.strip() else []
    return [*system, {"role": "user", "content": user}]


_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"verdict": {"type": "integer", "enum": [0, 1]}},
    "required": ["verdict"],
    "additionalProperties": False,
}


def call_options(config: LLMJudgeConfig) -> dict[str, Any]:
    """What a chat completion is asked for besides the messages."""
    options: dict[str, Any] = {"model": config.model, "n": 1}
    if config.thinks:
        options["max_completion_tokens"] = config.max_reply_tokens
    else:
        options |= {"temperature": TEMPERATURE, "seed": SEED, "max_tokens": config.max_reply_tokens}
    match config.reply:
        case "json":
            schema = {"name": "verdict", "strict": True, "schema": dict(_SCHEMA)}
            options["response_format"] = {"type": "json_schema", "json_schema": schema}
        case "choice":
            # vLLM's own extension of the protocol, so the client does not know it.
            options["extra_body"] = {"structured_outputs": {"choice": ["0", "1"]}}
        case "text":
            pass
    return options
