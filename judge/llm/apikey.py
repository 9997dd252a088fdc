"""The key of an endpoint: read where the judge runs, and kept out of everything that is shown."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from actors.errors import JudgeError
from configs.judges import LLMJudgeConfig

MAX_KEY_CHARS = 16_384
HIDDEN = "[key]"
MIN_HIDDEN_CHARS = 8
"""The start of a key is hidden as well when at least so much of it stands there."""


def read_key(config: LLMJudgeConfig) -> str:
    """The key from its file or environment variable; empty where the config names neither.

    Raises:
        JudgeError: nothing there, or nothing that can be a key. Names the setting and its value, never the key.
    """
    if config.api_key_file:
        where = f"judge.llm.api_key_file={config.api_key_file!r}"
        try:
            with Path(config.api_key_file).expanduser().open(encoding="utf-8") as file:
                key = file.read(MAX_KEY_CHARS + 1).strip()
        except OSError as error:
            raise JudgeError(
                f"{where} cannot be read: {error.strerror}; give a file that holds the key and that judges may read"
            ) from error
        except UnicodeDecodeError:
            raise JudgeError(f"{where} holds no key: it is no text; write the key alone into it") from None
    elif config.api_key_env:
        where = f"judge.llm.api_key_env={config.api_key_env!r}"
        if config.api_key_env not in os.environ:
            raise JudgeError(f"{where} is not set where the judge runs; set it there, or use judge.llm.api_key_file")
        key = os.environ[config.api_key_env].strip()
    else:
        return ""
    if not key:
        raise JudgeError(f"{where} is empty; write the key alone there")
    # The HTTP library would quote a malformed key in its error.
    if len(key) > MAX_KEY_CHARS or not (key.isascii() and key.isprintable()) or " " in key:
        raise JudgeError(f"{where} holds more than a key (spaces, lines or other signs); write the key alone there")
    return key


def hide_keys(text: str, keys: Iterable[str]) -> str:
    """The text with each key, or as much of it as a cut text may show, taken out."""
    for key in sorted(filter(None, keys), key=len, reverse=True):
        for size in (len(key), *range(len(key) - 1, MIN_HIDDEN_CHARS - 1, -1)):
            text = text.replace(key[:size], HIDDEN)
    return text
