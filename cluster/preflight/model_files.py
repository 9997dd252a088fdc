"""Checks that an engine can load a model folder, before a process is started for it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from actors.config_json import text_settings
from actors.data.files import is_lfs_pointer
from actors.hub import looks_like_hub_id

LENGTH_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
"""Keys of config.json for the maximum sequence length; vLLM uses the smallest that is present."""
UNSCALED_ROPE = ("default", "mrope", "su", "longrope", "llama3", "deepseek_llama_scaling")
"""RoPE types whose maximum length already includes the scaling, so that vLLM does not multiply it by their factor."""
INDEX = "model.safetensors.index.json"


def find_lfs_pointers(path: Path) -> list[Path]:
    """Git LFS pointers at a path (a file, or a folder, searched recursively)."""
    below = (file for file in path.rglob("*") if not any(part.startswith(".") for part in file.relative_to(path).parts))
    files = [path] if path.is_file() else sorted(file for file in below if file.is_file())
    return [file for file in files if file.stat().st_size < 1024 and is_lfs_pointer(file)]


def model_folder_problems(key: str, path: str, *, needs_weights: bool = True) -> Iterator[str]:
    """One line for each reason why no engine can load the folder.

    Args:
        key: setting that holds the path.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        yield f"{key}={path!r} {_why_no_model(folder, path)}"
        return
    if pointers := find_lfs_pointers(folder):
        names = ", ".join(file.name for file in pointers[:3]) + (" ..." if len(pointers) > 3 else "")
        yield f"{key}={path!r} has Git LFS pointers instead of {names}: run `git lfs pull` in it"
        return
    if not isinstance(read_json(folder / "config.json"), dict):
        yield f"{key}={path!r}: its config.json is not a JSON object: copy the model again"
    if needs_weights:
        yield from (f"{key}={path!r} {flaw}: copy the model again" for flaw in _weight_flaws(folder))


def chat_problem(key: str, path: str) -> str | None:
    """Why no chat can be held with the model of a folder that an engine can load; None where one can."""
    settings, templates = Path(path) / "tokenizer_config.json", Path(path).glob("chat_template.*")
    if not settings.is_file():
        return f"{key}={path!r} has no {settings.name}: give a folder in Hugging Face's format"
    has_template = any(templates) or '"chat_template"' in settings.read_text(errors="replace")
    return None if has_template else f"{key}={path!r} has no chat template: give a model that is made for chats"


def _why_no_model(folder: Path, path: str) -> str:
    if folder.exists():
        return "holds no config.json: give a Hugging Face model folder"
    if looks_like_hub_id(path):
        target = f"models/{path.split('/')[1]}"
        return f"is not a local folder: `hf download {path} --local-dir {target}`, then give {target}"
    return (
        f"does not exist: give a Hugging Face model folder, or a name of the hub (org/name); "
        f"`hf download OWNER/{folder.name} --local-dir {path}` fetches one"
    )


def _weight_flaws(folder: Path) -> Iterator[str]:
    """Missing or truncated safetensors files of a folder."""
    names: set[str] = set()
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        files = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
            yield f"holds a damaged {INDEX} (no weight_map of tensors to files)"
            return
        names = set(files.values())
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        yield f"lacks {missing[0]}" + (f" and {len(missing) - 1} more files" if len(missing) > 1 else "")
    files = sorted(folder.glob("*.safetensors"))
    if not files and not missing:
        yield "holds no weights (*.safetensors)"
    for file in files:
        if (flaw := safetensors_flaw(file)) is not None:
            yield f"holds a damaged {file.name} ({flaw})"


def safetensors_flaw(file: Path) -> str | None:
    """Why a safetensors file cannot be loaded, judged by header and size as its library does; None if it is fine."""
    try:
        with safe_open(file, framework="numpy"):
            return None
    except (SafetensorError, OSError) as error:  # an empty file cannot be mapped
        return f"{file.stat().st_size} bytes, its header cannot be read, or is of another file: {error}"


def weight_bytes(folder: Path) -> int:
    """Size of a model's weights on disk; 0 if there are none."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def longest_sequence(model: Mapping[str, Any]) -> int | None:
    """Maximum sequence length in tokens, from config.json; None if it is not given."""
    settings = text_settings(model)
    lengths = [settings[key] for key in LENGTH_KEYS if isinstance(settings.get(key), int | float)]
    if not lengths:
        return None
    rope = settings.get("rope_scaling") or settings.get("rope_parameters")
    return int(min(lengths) * _rope_factor(rope if isinstance(rope, dict) else {}))


def _rope_factor(rope: Mapping[str, Any]) -> float:
    """Factor by which RoPE scaling extends the length. vLLM versions differ on YaRN; the larger value is used here."""
    kind, factor = rope.get("rope_type", rope.get("type", "default")), rope.get("factor")
    return float(factor) if kind not in UNSCALED_ROPE and isinstance(factor, int | float) else 1.0


def length_problem(wanted: int, settings: str, folder: Path, key: str) -> str | None:
    """Message for lengths that exceed the model's maximum.

    Args:
        wanted: tokens of the longest sequence.
        settings: the settings they come from.
        key: setting that holds the model's folder.
    """
    model = read_json(folder / "config.json")
    longest = longest_sequence(model) if isinstance(model, dict) else None
    if longest is None or wanted <= longest:
        return None
    return (
        f"{settings} is invalid: must be at most {longest}, the longest sequence of the model in {key}={str(folder)!r}"
    )


def read_json(file: Path) -> Any:
    """The content of a JSON file; None if it is missing or not JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
