"""InputError, and dataclasses that raise it for a field of the wrong type. No jax in here."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self

# Characters that move a terminal's cursor, turn text around, or cannot be written as UTF-8
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, longest: int = 2000) -> str:
    """Returns `text` with control characters escaped and the middle of lines over `longest` characters left out."""
    lines = _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text).split("\n")
    half = longest // 2 - 2
    return "\n".join(line if len(line) <= longest else f"{line[:half]}...{line[-half:]}" for line in lines)


class InputError(ValueError):
    """An error in the user's input. The message names the thing, the place and the fix; programs print it without a traceback.

    The message is made `printable`, because it may quote a file.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for the nearest known name, or the empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _accepts(value: object, kind: Any) -> bool:
    """Returns True if `value` has the annotated type `kind` (of the few forms that configs use)."""
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


@dataclass(frozen=True)
class Checked:
    """The base of config classes, which checks the types of the fields."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if not _accepts(value, hints[f.name]):
                hint = hints[f.name]
                expected = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
                self._require(False, f"{f.name}={value!r} is a {type(value).__name__}; expected {expected}")

    def _require(self, condition: bool, message: str) -> None:
        if not condition:
            raise InputError(f"{type(self).__name__}: {message}")

    def _require_finite(self) -> None:
        for f in dataclasses.fields(self):
            values = value if isinstance(value := getattr(self, f.name), tuple) else (value,)
            self._require(all(math.isfinite(x) for x in values if isinstance(x, float)), f"{f.name}={value!r} is not finite")

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with `changes`, which is checked too."""
        return dataclasses.replace(self, **changes)
