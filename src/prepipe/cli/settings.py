"""Settings as text: the commented ``prepipe.toml`` and what differs from the defaults.

Both are made from the model itself, so that they cannot fall behind it.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

__all__ = ["Setting", "commented_toml", "compared"]

WIDTH = 96


@dataclass(frozen=True)
class Setting:
    """One setting in force.

    Parameters
    ----------
    name : str
        Dotted, e.g. ``"push.method"``.
    value, default : object
        As TOML would have them; None if not set.
    """

    name: str
    value: object
    default: object

    @property
    def changed(self) -> bool:
        """Whether it differs from the default."""
        return bool(self.value != self.default)


def commented_toml(model: BaseModel, without: Collection[str] = ()) -> str:
    """A TOML file with every setting of `model`, each under its own description.

    Settings that are not set are written as comments. Reading the text back gives an
    equal model.

    Parameters
    ----------
    model : BaseModel
    without : collection of str
        Tables left out, such as ``"engines.photpipe"``; they read back as their defaults.
    """
    return "\n".join(_section_lines(model, "", without)).strip() + "\n"


def _section_lines(model: BaseModel, prefix: str, without: Collection[str]) -> Iterator[str]:
    tables: list[tuple[str, BaseModel]] = []
    for name, value in model:
        if isinstance(value, BaseModel):
            tables.append((f"{prefix}{name}", value))
        elif _holds_models(value):
            tables += [(f"{prefix}{name}.{key}", item) for key, item in value.items()]
        else:
            yield from _setting_lines(name, value, type(model).model_fields[name])
    for path, table in tables:
        if path in without:
            continue
        yield ""
        yield from _comment(_summary(table))
        yield f"[{path}]"
        yield from _section_lines(table, f"{path}.", without)


def _setting_lines(name: str, value: object, field: FieldInfo) -> Iterator[str]:
    yield from _comment(field.description or "")
    if value is None:
        yield f"# {name} = {_placeholder(field)}"
    else:
        yield f"{name} = {toml_value(value)}"


def _holds_models(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(item, BaseModel) for item in value.values())


def _summary(model: BaseModel) -> str:
    return (type(model).__doc__ or "").strip().split("\n\n")[0]


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ")


def _placeholder(field: FieldInfo) -> str:
    if field.examples:
        return toml_value(field.examples[0])
    numeric = any(kind in (int, float) for kind in (field.annotation, *get_args(field.annotation)))
    return "NUMBER" if numeric else '"..."'


def toml_value(value: object) -> str:
    """A value as TOML writes it; a dict inline.

    Raises
    ------
    TypeError
        If TOML has no such value.
    """
    if isinstance(value, Enum):
        return toml_value(value.value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False)
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    if isinstance(value, Mapping):
        items = ", ".join(f"{json.dumps(key)} = {toml_value(item)}" for key, item in value.items())
        return f"{{{items}}}"
    raise TypeError(f"TOML has no way to write a {type(value).__name__}")


def compared(model: BaseModel, default: BaseModel) -> list[Setting]:
    """Every setting of `model` beside that of `default`, in the model's order."""
    defaults = dict(_flat(default.model_dump(mode="json"), ""))
    values = dict(_flat(model.model_dump(mode="json"), ""))
    return [Setting(name, value, defaults.get(name)) for name, value in values.items()]


def _flat(settings: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, object]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
