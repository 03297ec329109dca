"""Configuration: frozen dataclasses, built once and passed whole. No jax in here.

A config file is a Python file with `get_config() -> TrainConfig`; every field can be overridden from the command line.
Names are those of a Hugging Face config.json where it has one.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import re
import sys
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self


class InputError(ValueError):
    """The user's input is at fault: the message names the thing, the place and the fix. Entry points print it alone."""


def did_you_mean(name: str, known: typing.Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known name, else the empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _accepts(value: Any, kind: Any) -> bool:
    """Whether `value` is of the annotated type `kind` (the few forms that configs use)."""
    origin = typing.get_origin(kind)
    if origin is Literal:
        return value in typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_accepts(value, k) for k in typing.get_args(kind))
    if origin is tuple:
        return isinstance(value, tuple) and all(_accepts(v, typing.get_args(kind)[0]) for v in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


class _Checked:
    """Base of the config classes: field types are checked when one is built."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if not _accepts(value, hints[f.name]):
                expected = getattr(hints[f.name], "__name__", None) if isinstance(hints[f.name], type) else hints[f.name]
                raise InputError(
                    f"{type(self).__name__}.{f.name}={value!r} is a {type(value).__name__}; expected {expected}"
                )

    def _require(self, condition: bool, message: str) -> None:
        if not condition:
            raise InputError(f"{type(self).__name__}: {message}")

    def replace(self, **changes: Any) -> Self:
        """A copy with `changes`; an unknown name raises InputError."""
        return dataclasses.replace(self, **changes)
