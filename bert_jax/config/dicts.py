"""Configs as dictionaries of JSON types, in which work directories and checkpoints keep them."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from bert_jax.errors import Checked, InputError, did_you_mean
from bert_jax.model.config import ComputeConfig

T = TypeVar("T")
Json = dict[str, Any]
Change = tuple[str, Any, Any]  # dotted name of a field, old value, new value
COMPUTE_FIELDS = tuple(field.name for field in dataclasses.fields(ComputeConfig))


def to_dict(cfg: Checked) -> Json:
    """Returns a config as JSON types; tuples become lists."""
    values: Json = json.loads(json.dumps(dataclasses.asdict(cfg)))
    return values


def from_dict(cls: type[T], values: Mapping[str, object], where: str = "config") -> T:
    """Inverts `to_dict`. Raises InputError for an unknown key, naming the nearest known one."""
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: {values!r} is not a JSON object of names and values")
    hints, built = typing.get_type_hints(cls), Json()
    for key, value in values.items():
        if key not in hints:
            raise InputError(f"{where}: unknown key {key!r}{did_you_mean(key, hints)}")
        inner = next(iter(typing.get_args(hints[key])), None)
        if dataclasses.is_dataclass(hints[key]):
            value = from_dict(hints[key], value, f"{where}: {key}")  # type: ignore[arg-type]  # checked there
        elif isinstance(inner, type) and dataclasses.is_dataclass(inner) and isinstance(value, list):
            value = [from_dict(inner, each, f"{where}: {key}[{i}]") for i, each in enumerate(value)]
        built[key] = tuple(value) if isinstance(value, list) else value
    return cls(**built)


def upgrade(values: Mapping[str, Any]) -> Json:
    """Returns a `to_dict` of an older TrainConfig, whose `model` held the fields of `compute`, in the present form."""
    model = values.get("model")
    if "compute" in values or not isinstance(model, Mapping):
        return dict(values)
    moved = {name: model[name] for name in COMPUTE_FIELDS if name in model}
    return {**values, "model": {name: value for name, value in model.items() if name not in moved}, "compute": moved}


def differences(old: Mapping[str, object], new: Mapping[str, object], prefix: str = "") -> list[Change]:
    """Returns (dotted name, old value, new value) of every leaf that differs between two `to_dict`s.

    >>> differences({"phases": [{"until": 3}]}, {"phases": [{"until": 4}, {"until": 9}]})
    [('phases[0].until', 3, 4), ('phases[1]', None, {'until': 9})]
    """
    found: list[Change] = []
    for key in {**old, **new}:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif isinstance(a, list) and isinstance(b, list) and any(isinstance(x, dict) for x in (*a, *b)):
            there, here = ({f"{key}[{i}]": x for i, x in enumerate(values)} for values in (a, b))
            found += differences(there, here, prefix)
        elif a != b:
            found.append((prefix + key, a, b))
    return found
