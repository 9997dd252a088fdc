"""What an LLM judge is asked, our wording around three texts that are data, and how its reply is read.

The wording lives in `configs/prompts/judge.yaml` and can be replaced by a file. Question, reference and prediction are
cleaned and fenced (`judge.llm.fence`) and filled in all at once: what one of them holds is never read as a place for
another. The prediction comes last, so that the calls of a group share the prompt before it.

A reply is read whole and strictly: anything but one verdict is no verdict, never a zero.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from configs.judges import JudgeConfig, LLMJudgeConfig
from judge.llm.fence import clean_text, fence, group_code
from judge.llm.tasks import GRADES, MIN_EXTRACT_TOKENS, parse_task_reply, reply_schema, task_prompt
from judge.verdict import Failure, NoVerdict, Outcome, Task, Usage, Verdict

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "prompts"
SAMPLING = {"temperature": 0.0, "seed": 0}
"""Also on further tries: a verdict is a property of the texts, not of how often one asks."""
FIELDS = ("question", "reference", "prediction")
PLACES = (*FIELDS, "criterion", "reply", "nonce")
_PLACE = re.compile(r"\{([A-Za-z_]+)\}")
_JSON = re.compile(r'_\{_"verdict"_:_([01])_\}_'.replace("_", r"[ \t\r\n]{0,40}"))
_DIGIT = re.compile(r"_([01])_".replace("_", r"[ \t\r\n]{0,40}"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """The texts of a wording file."""

    system: str
    """May be empty."""
    user: str
    """Has `{nonce}`, and once each `{question}`, `{reference}`, `{prediction}` (the last of them) and `{reply}`."""
    strict: str
    """What counts as right under this judge.metric; goes to `{criterion}`, which stands once in `system` or `user`."""
    relaxed: str
    anls: str
    json_reply: str
    """What a reply looks like with judge.llm.reply=json; goes to `{reply}`."""
    digit_reply: str
    """The same with `choice` and `text`."""

    def __post_init__(self) -> None:
        counts = Counter(_PLACE.findall("".join(asdict(self).values())))
        for place in sorted({*counts, *PLACES} - {"nonce"}):
            if counts[place] != (place in PLACES):
                raise ValueError(f"it has {{{place}}} {counts[place]} times: {', '.join(PLACES)} must be there once")
        before = self.user.partition("{prediction}")[0]
        if missing := [place for place in ("nonce", "question", "reference") if f"{{{place}}}" not in before]:
            raise ValueError(f"user has no {{{missing[0]}}} before {{prediction}}: calls of a group share that prefix")
        if empty := [name for name, text in asdict(self).items() if name != "system" and not text.strip()]:
            raise ValueError(f"{empty[0]} is empty")

    def filled(self, config: JudgeConfig) -> tuple[str, str]:
        """System and user text for a judge's metric and form of reply, without the data."""
        reply = self.json_reply if config.llm.reply == "json" else self.digit_reply
        words = {"criterion": getattr(self, config.metric), "reply": reply}
        return _fill(self.system, words), _fill(self.user, words)


def _fill(text: str, words: Mapping[str, str]) -> str:
    """The text with the places of these words filled; others stay."""
    return _PLACE.sub(lambda place: words.get(place[1], place[0]), text)


def load_wording(name: str) -> Wording:
    """A wording by its name in `configs/prompts`, or by the path of a YAML file with the same keys.

    Raises:
        ValueError: no such file, not YAML, other keys, or places missing; names the setting, its value and the remedy.
    """
    shipped, keys = FOLDER / f"{name}.yaml", [field.name for field in fields(Wording)]
    try:
        file = shipped if shipped.is_file() else Path(name).expanduser()
        texts = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(texts, dict) or set(texts) != {*keys} or not all(isinstance(t, str) for t in texts.values()):
            raise ValueError(f"it must map exactly {', '.join(keys)} to texts")
        return Wording(**texts)
    except (OSError, RuntimeError, ValueError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"judge.llm.prompt={name!r} is invalid: {why}; give `judge`, or a YAML file") from error


def prompt_of(config: JudgeConfig, task: Task) -> tuple[str, str]:
    """System and user text of a task, without the data.

    Raises:
        ValueError: the wording of verdicts cannot be used.
    """
    return load_wording(config.llm.prompt).filled(config) if task == "verdict" else task_prompt(task, config.llm.reply)


def clean_texts(
    question: str, reference: str, prediction: str, *, max_field_chars: int, max_answer_chars: int
) -> dict[str, str]:
    """The three texts of a call, cleaned and cut, by name.

    The reference is empty only if it is blank: one of invisible characters alone is shown by its code points.
    """
    code_points = reference.strip()[:max_field_chars].encode("unicode_escape").decode()
    return {
        "question": clean_text(question, max_field_chars),
        "reference": clean_text(reference, max_field_chars) or code_points[:max_field_chars],
        "prediction": clean_text(prediction, max_answer_chars),
    }


def build_messages(prompt: tuple[str, str], texts: Mapping[str, str], secret: bytes) -> list[dict[str, str]]:
    """System and user message of one call: a filled wording and cleaned texts, in marks from the secret of the run."""
    code = group_code(secret, *(texts[name] for name in FIELDS))
    words = {name: fence(name, texts[name], code) for name in FIELDS} | {"nonce": code}
    system = [{"role": "system", "content": prompt[0]}] if prompt[0].strip() else []
    return [*system, {"role": "user", "content": _fill(prompt[1], words)}]


def call_options(config: LLMJudgeConfig, task: Task = "verdict", run: int = 0) -> dict[str, Any]:
    """What a chat completion is asked for besides the messages."""
    options: dict[str, Any] = {"model": config.model, "n": 1}
    most = max(config.max_reply_tokens, MIN_EXTRACT_TOKENS if task == "extract" else 0)
    if config.thinks:  # such models take no temperature
        options |= {"max_completion_tokens": most}
    else:
        options |= {"max_tokens": most, **SAMPLING, "seed": run}
    if config.reply == "json":
        name, value = reply_schema(task)
        form = {"type": "object", "properties": {name: value}, "required": [name], "additionalProperties": False}
        schema = {"name": name, "strict": True, "schema": form}
        options["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif config.reply == "choice" and task != "extract":
        # vLLM's own extension of the protocol, so the client does not know it.
        choices = list(GRADES) if task == "grade" else ["0", "1"]
        options["extra_body"] = {"structured_outputs": {"choice": choices}}
    return options


def parse_verdict(text: str, form: str) -> bool | None:
    """True for right, False for wrong; None where the text is not exactly one verdict, white space around it aside.

    With `judge.llm.reply=json` that is one object `{"verdict": 1}` or `{"verdict": 0}`, with the others `1` or `0`.
    """
    found = (_JSON if form == "json" else _DIGIT).fullmatch(text)
    return found[1] == "1" if found else None


def read_completion(body: str, form: str, *, judge: str, judge_version: str, task: Task = "verdict") -> Outcome:
    """Outcome of a call that the endpoint answered with success and a body meant to be a chat completion in JSON.

    `form` is that of `judge.llm.reply`; `judge` and `judge_version` are for the verdict.
    """
    usage, is_correct, reply = Usage(num_calls=1), None, ""
    try:
        completion = json.loads(body)
        tokens = completion.get("usage") or {}
        counted = (tokens.get("prompt_tokens"), tokens.get("completion_tokens"))  # 0 where the endpoint does not say
        sent, received = (count if type(count) is int and count >= 0 else 0 for count in counted)
        usage = Usage(num_calls=1, prompt_tokens=sent, reply_tokens=received)
        (choice,) = completion["choices"]
        end, message = choice["finish_reason"], choice["message"]
        if end == "content_filter":
            return NoVerdict(reason="the endpoint filtered the reply", failure=Failure.REJECTED, usage=usage)
        if extras := [name for name in ("refusal", "tool_calls", "function_call") if message.get(name)]:
            reason = f"the message has a {extras[0]}"
        elif end != "stop":
            reason = f"the reply ended by {shown(str(end))}, not by stop"
        else:
            text = message["content"]
            if task == "verdict":
                is_correct = parse_verdict(text, form)
            elif (found := parse_task_reply(task, text, form)) is not None:
                is_correct, reply = found
            wanted = "an answer" if task == "extract" else f"a {task}"
            reason = f"not {wanted}: {shown(text)}" if is_correct is None else f"replied {shown(text)}"
        model = str(completion.get("model") or "")
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError):
        reason = f"no chat completion with one choice: {shown(body)}"
    if is_correct is None:
        return NoVerdict(reason=f"unusable reply: {reason}", failure=Failure.UNUSABLE, usage=usage)
    who = {"judge": judge, "judge_version": judge_version, "model": model}
    return Verdict(is_correct=is_correct, reason=reason, usage=usage, reply=reply, **who)


def shown(text: str) -> str:
    """A short, printable form of a text that came from outside."""
    short = text[:60]
    return repr(short) if short.isprintable() else ascii(short)
