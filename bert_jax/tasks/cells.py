"""Reads the cells of a row."""

from __future__ import annotations

import math
import re
import reprlib

from bert_jax.data.files import Row
from bert_jax.errors import InputError


def value_in(row: Row, column: str) -> object:
    """Returns the value of a column, None for NaN (pandas' null). Raises InputError where the row has no such column."""
    if column not in row.values:
        raise InputError(f"{row.place}: no {column!r}, it has {', '.join(row.values) or 'nothing'}")
    value = row.values[column]
    return None if isinstance(value, float) and math.isnan(value) else value


def text_in(row: Row, column: str) -> str:
    """Returns the text of a column, "" for a null."""
    value = value_in(row, column)
    return checked_text(row, column, "" if value is None else value)


def checked_text(row: Row, column: str, value: object) -> str:
    """Returns `value`. Raises InputError where it is not a text."""
    if not isinstance(value, str):
        raise InputError(f"{row.place}: {column!r} is {reprlib.repr(value)}, not a text")
    if not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise InputError(f"{row.place}: {column!r} has half a surrogate pair in it, which is no character; remove it")
    return value
