"""Plain YAML data into frozen dataclasses, strictly: what is wrong with a file is one line that says where."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from cwd.errors import UserError, nearest

T = TypeVar("T")
WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def read_yaml(path: Path, cls: type[T], **given: Any) -> T:
    """The file's content as a `cls`; `given` adds fields that the file does not hold.

    Raises:
        UserError: the file is not YAML, or not what `cls` takes.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path.name}: cannot be read ({' '.join(str(error).split())})") from error
    return build(cls, {**data, **given} if isinstance(data, dict) else data, path.name)


def build(cls: type[T], data: Any, where: str) -> T:
    """A `cls` from plain data. Lists become tuples, nested data nested dataclasses.

    Field metadata may hold ``of``, the allowed values. `where` names the data in errors.

    Raises:
        UserError: a key that `cls` does not have, one that is missing, or a value of another kind.
    """
    assert is_dataclass(cls)
    if not isinstance(data, Mapping):
        raise UserError(f"{where}: must be keys with values, not {_shown(data)}")
    known = {item.name: item for item in fields(cls)}
    for name in data:
        if name not in known:
            raise UserError(f"{where}: {name}: no such key{nearest(name, known)}; allowed are {', '.join(known)}")
    hints = get_type_hints(cls)
    values = {}
    for name, item in known.items():
        if name in data:
            values[name] = _value(hints[name], data[name], f"{where}: {name}", item)
        elif item.default is MISSING and item.default_factory is MISSING:
            raise UserError(f"{where}: {name}: a value is needed")
    return cls(**values)


def _value(kind: Any, value: Any, where: str, item: Field[Any]) -> Any:
    found = _convert(kind, value, where)
    allowed = item.metadata.get("of")
    for one in found if isinstance(found, tuple) else (found,):
        if allowed is not None and one not in allowed:
            raise UserError(f"{where}={one}: not allowed{nearest(one, allowed)}; allowed are {', '.join(allowed)}")
    return found


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None else _convert(next(one for one in inner if one is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise UserError(f"{where}: must be a list, not {_shown(value)}")
        return tuple(_convert(inner[0], one, f"{where}[{i}]") for i, one in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: must be keys with values, not {_shown(value)}")
        return {str(name): _convert(inner[1], one, f"{where}.{name}") for name, one in value.items()}
    if is_dataclass(kind):
        return build(kind, value, where)  # type: ignore[arg-type]
    return _scalar(kind, value, where)


def _scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-3 as text
        except ValueError:
            pass
    elif kind is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    elif type(value) is kind:
        return value
    raise UserError(f"{where}: must be {WORDS[kind]}, not {_shown(value)}")


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
