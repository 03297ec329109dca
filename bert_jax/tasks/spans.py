"""Entities given by characters, as doccano, spaCy, Prodigy and Label Studio (JSON-MIN) write them."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import reprlib
from collections.abc import Sequence

from bert_jax.data.files import Row
from bert_jax.errors import InputError

Span = tuple[int, int, str, str | None]  # start, end, type, and the text that the file says is there
_KEYS = (("start", "start_offset"), ("end", "end_offset"), ("label", "labels", "type", "entity", "entity_group"))


class Spans(tuple[Span, ...]):
    """The entities in a text."""


def read_spans(value: object, place: str) -> Spans | None:
    """Returns the entities in a list of [start, end, type] or objects, or in the text of such a list; None for another list."""
    if isinstance(value, str) and re.match(r"\s*\[\s*([\[({]|\])", value):
        text = value
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                value = ast.literal_eval(text.strip())
    if not isinstance(value, list) or (value and not isinstance(value[0], list | tuple | dict)):
        return None
    return Spans(_span(item, place) for item in value)


def _span(item: object, place: str) -> Span:
    """Returns one entity: [start, end, type], or an object with keys for these."""
    found, said = list[object](), None
    if isinstance(item, dict):
        item = item["value"] if isinstance(item.get("value"), dict) else item
        said = item.get("text") if isinstance(item.get("text"), str) else None
        found = [next((item[key] for key in keys if key in item), None) for keys in _KEYS]
    elif isinstance(item, list | tuple):
        found = list(item)
    start, end, entity = found if len(found) == 3 else (None, None, None)
    entity = entity[0] if isinstance(entity, list) and len(entity) == 1 else entity
    if type(start) is int and type(end) is int and isinstance(entity, str) and entity.strip():
        return start, end, entity.strip(), said
    raise InputError(f"{place} has {reprlib.repr(item)}, not [start, end, type] or {{'start', 'end', 'label'}} of an entity")


def checked_spans(row: Row, text: str, spans: Sequence[Span]) -> list[tuple[int, int, str]]:
    """Returns (start, end, type) of each entity. Raises InputError for one outside of the text, or with another text there."""
    for start, end, entity, said in spans:
        there = text[start:end].strip() if 0 <= start < end <= len(text) else ""
        if not there:
            raise InputError(f"{row.place}: no text at {start} to {end} ({entity}); the text has {len(text)} characters")
        if said is not None and said.strip() != there:
            hint = "start and end count characters (Unicode code points) from 0"
            raise InputError(f"{row.place}: {entity} at {start} to {end} is {said!r}, but the text there is {there!r}; {hint}")
    return [span[:3] for span in spans]
