"""From YAML and `section.key=value` overrides to a checked `Config`. The only file that knows OmegaConf.

Everything after `load_config` sees frozen dataclasses only.
"""

from __future__ import annotations

import ast
import inspect
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.require import require
from configs.schema import Config
from configs.suggest import did_you_mean

FOLDER = Path(__file__).resolve().parent
"""Folder of the shipped configs."""
DEFAULT = "tiny"
LLM_SECTION = "judge.llm"
HELP = "`visionthink config --fields` lists every setting"


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldDescription:
    """Description of one setting for `visionthink config --fields`."""

    key: str
    """section.name, as in an override."""
    type: str
    default: str
    doc: str
    """The docstring under the field."""


def load_config(path: str | None, overrides: Sequence[str] = ()) -> Config:
    """The config of a run: the schema's defaults, then a YAML file, then overrides.

    Args:
        path: the name of a file in `configs/` without its ending (`tiny`), or the path of a YAML file; None is `tiny`.
        overrides: `section.key=value`, the value in YAML; for a text setting it is used verbatim.

    Raises:
        ValueError: no such file, not YAML, an unknown key, a value of the wrong type, or an invalid combination.
            The message names the key, the value and the remedy.
    """
    file = find_config(path or DEFAULT)
    return _finished(_merge(OmegaConf.structured(Config), _read(file), str(file)), overrides, file)


def _finished(merged: DictConfig, overrides: Sequence[str], file: Path) -> Config:
    for override in overrides:
        merged = _merge(merged, _parse_override(override), _shown(override))
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ValueError(f"{file.name}: {_explain(error, {})}; {HELP}") from error
    assert isinstance(config, Config)
    _require_finite(config)
    return config


def _require_finite(section: Any, path: str = "") -> None:
    for field in fields(section):
        value, name = getattr(section, field.name), f"{path}{field.name}"
        if is_dataclass(value):
            _require_finite(value, f"{name}.")
        elif isinstance(value, float):
            require(math.isfinite(value), name, value, "must be a finite number; for no limit give a large one")


def load_saved(file: Path, overrides: Sequence[str] = ()) -> tuple[Config, list[str]]:
    """The config that a run wrote, by this version or an earlier one, with overrides on top.

    Returns it with the keys of the file that this version does not have: their settings are left out.

    Raises:
        ValueError: as `load_config`.
    """
    content = OmegaConf.to_container(_read(file))
    assert isinstance(content, dict)
    kept, removed = _split_known({str(key): value for key, value in content.items()}, Config)
    merged = _merge(OmegaConf.structured(Config), OmegaConf.create(kept), str(file))
    return _finished(merged, overrides, file), removed


def to_yaml(config: Config) -> str:
    """All settings as YAML, defaults included: `load_config` reads it back as the same config."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def find_config(name: str) -> Path:
    """The file for a name or path; ValueError with the shipped names when there is none."""
    candidates = (Path(name), FOLDER / f"{name}.yaml")
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    shipped = sorted(file.stem for file in FOLDER.glob("*.yaml"))
    near = did_you_mean(name, shipped)
    raise ValueError(f"config={name!r} is invalid: no such file; give a path, or one of {', '.join(shipped)}{near}")


def describe_fields() -> list[FieldDescription]:
    """Every setting in the order of the schema, with its type, default and docstring."""
    return [description for section, path in _sections() for description in _describe(section, path)]


def _describe(section: type[Any], path: str) -> Iterator[FieldDescription]:
    docs = _field_docs(inspect.getsource(sys.modules[section.__module__]))
    hints = get_type_hints(section)
    for field in fields(section):
        if not is_dataclass(hints[field.name]):
            made = "required" if field.default_factory is MISSING else str(field.default_factory())
            default = made if field.default is MISSING else str(field.default)
            doc = docs.get((section.__name__, field.name), "")
            shown = _spelled_out(str(field.type), vars(sys.modules[section.__module__]))
            yield FieldDescription(key=f"{path}.{field.name}", type=shown, default=default, doc=doc)


def _spelled_out(annotation: str, names: Mapping[str, object]) -> str:
    """An annotation with choices in place of the names that a module has for them."""

    def choices(word: re.Match[str]) -> str:
        named = names.get(word[0])
        return f"Literal{list(get_args(named))}" if get_origin(named) is Literal else word[0]

    return re.sub(r"\w+", choices, annotation)


def _sections(owner: type[Any] = Config, path: str = "") -> Iterator[tuple[type[Any], str]]:
    """Each section with its dotted path, a section before those inside it."""
    for name, hint in get_type_hints(owner).items():
        if is_dataclass(hint):
            inner = f"{path}.{name}".lstrip(".")
            yield cast(type[Any], hint), inner
            yield from _sections(cast(type[Any], hint), inner)


def _split_known(content: Mapping[str, Any], section: type[Any], path: str = "") -> tuple[dict[str, Any], list[str]]:
    """The settings that the schema has, and the keys of the others."""
    hints, kept, removed = get_type_hints(section), {}, []
    for name, value in content.items():
        if name not in hints:
            removed.append(f"{path}{name}")
        elif is_dataclass(hints[name]) and isinstance(value, dict):
            kept[name], inner = _split_known(value, cast(type[Any], hints[name]), f"{path}{name}.")
            removed += inner
        else:
            kept[name] = value
    return kept, removed


def _read(file: Path) -> DictConfig:
    try:
        content = OmegaConf.create(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML: {_one_line(error)}") from error
    if not isinstance(content, DictConfig):
        raise ValueError(f"{file} must map sections to settings, as configs/{DEFAULT}.yaml does")
    return content


def _parse_override(override: str) -> DictConfig:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ValueError(f"override {_shown(override)!r} is invalid: must be section.key=value; {HELP}")
    hint = _hint(key.strip(), _shown(override))
    if hint is str:
        # YAML would read run.name=007 as a number and lose its zeros.
        value: object = text.strip().strip("'\"")
    else:
        if get_origin(hint) is tuple and text.strip() and text.strip()[0] not in "[!&*":
            text = f"[{text}]"  # brackets are special to shells
        try:
            value = yaml.safe_load(text) if text.strip() else None
        except yaml.YAMLError as error:
            why = _one_line(error) if _shown(override) == override else "its value is not YAML"
            raise ValueError(f"override {_shown(override)!r} is invalid: {why}") from error
        # YAML 1.1 reads 1e-4 as a string; the schema's type converts it to a number.
    parsed = OmegaConf.create({})
    OmegaConf.update(parsed, key.strip(), value)
    return parsed


def _shown(override: str) -> str:
    """An override as shown in an error. Near settings where a key may have been pasted, the value is hidden."""
    key, separator, _ = override.partition("=")
    is_about_llm = key.strip().startswith(LLM_SECTION) or re.match(r"\s*judge\s*[=:{]", override) is not None
    is_open = not is_about_llm and "key" not in override.lower()
    return override if is_open else f"{key.split()[0]}{separator and '=(hidden)'}"


def _hint(key: str, shown: str) -> object:
    """The schema's type of a setting or a section.

    Raises:
        ValueError: there is no such key; with what it may have meant.
    """
    hints: dict[str, object] = {}
    for section, path in _sections():
        hints[path] = section
        hints |= {f"{path}.{name}": hint for name, hint in get_type_hints(section).items()}
    if key not in hints:
        settings = [known for known, hint in hints.items() if not is_dataclass(hint)]
        raise ValueError(f"{shown}: there is no setting {key}{did_you_mean(key, settings)}; {HELP}")
    return hints[key]


def _merge(base: DictConfig, added: DictConfig, source: str) -> DictConfig:
    container = OmegaConf.to_container(added)
    assert isinstance(container, dict)
    plain = {str(key): value for key, value in container.items()}
    for section, settings in plain.items():
        if section in base and not isinstance(settings, dict):
            raise ValueError(f"{source}: {section} is a section: set a field of it, as in {section}.NAME=VALUE; {HELP}")
    for path, entries in _lists(plain):
        if any(isinstance(entry, list | dict) for entry in entries):
            raise ValueError(f"{source}: {path} is invalid: its entries must be single values; {HELP}")
    try:
        merged = OmegaConf.merge(base, added)
    except OmegaConfBaseException as error:
        raise ValueError(f"{source}: {_explain(error, plain)}; {HELP}") from error
    assert isinstance(merged, DictConfig)
    return merged


def _explain(error: OmegaConfBaseException, added: Mapping[str, Any]) -> str:
    """OmegaConf's first line says what is wrong (and suggests a key); the full key says where.

    For list entries it does not say which one is meant, and it repeats a section that was given in place of a value.
    """
    where = f"{error.full_key}: " if error.full_key else ""
    message = next(iter(str(error).splitlines()), "")
    if str(error.full_key).startswith(LLM_SECTION):
        message = re.sub(r"^Value '.*' |: '.*", lambda told: "Value (hidden) " if told.start() == 0 else "", message)
    lists = ", ".join(f"{path}={value}" for path, value in _lists(added) if not path.startswith(LLM_SECTION))
    return where + re.split(r" value: |: '\{", message.replace("'$VALUE'", f"in {lists}"))[0]


def _lists(settings: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, list[Any]]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _lists(value, f"{path}{name}.")
        elif isinstance(value, list):
            yield f"{path}{name}", value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _field_docs(source: str) -> dict[tuple[str, str], str]:
    """(class, field) -> the docstring under the field."""
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    return {(owner.name, name): doc for owner in classes for name, doc in _docs_of(owner)}


def _docs_of(owner: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, after in zip(owner.body, owner.body[1:], strict=False):
        match field, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                yield name, " ".join(doc.split())
