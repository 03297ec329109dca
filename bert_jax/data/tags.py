"""Reads schemes of tags (entities in one of the usual schemes, or a class for each word), and makes tags of entities.

entity_tags(["O", "PER-B", "PER-I"])          {"O": "O", "PER-B": "B-PER", "PER-I": "I-PER"}
entity_tags(["NOUN", "VERB"])                 None: each word has a class
tagged_words("john (x)", [(0, 4, "PER")])     (["john", "(", "x", ")"], ["B-PER", "O", "O", "O"])
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence

# BILOU's last and unit are BIOES's end and single; BMES's middle is BIO's inside, and BMEWO's whole a single
_LETTERS = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S", "M": "I", "W": "S"}
_BEFORE = re.compile(r"([BIESLUMW])(?:[-_](.*))?", re.DOTALL)
_IDEOGRAPHIC = ((0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
_AFTER = re.compile(r"(.+)[-_]([BIESLUMW])", re.DOTALL)


def entity_tags(tags: Collection[str], outside: str = "O") -> dict[str, str] | None:
    """Returns each tag of a set in the form that `metrics.entities` reads (O, B-, I-, E-, S-); None where words have classes.

    Either all tags have a letter before the type (B-PER, B_PER; IO, IOB, BIO, BIOES, BILOU, BMES, with or without a type) or
    after it (PER-B); or, where `outside` is in the set, some or all are types without a letter (PER), whose adjacent words are
    one entity, as with I-. A set without `outside` whose tags are not all of one scheme has no entities.

    >>> entity_tags(["O", "PER"]), entity_tags(["PER", "LOC"])
    ({'O': 'O', 'PER': 'I-PER'}, None)
    """
    inner = [tag for tag in tags if tag != outside]
    for form in (_by_letter_before, _by_letter_after):
        read = {tag: found for tag in inner if (found := form(tag)) is not None}
        if len(read) == len(inner) or (outside in tags and 2 * len(read) >= len(inner)):
            return {outside: "O"} | {tag: read.get(tag, f"I-{tag}") for tag in inner}
    return {outside: "O"} | {tag: f"I-{tag}" for tag in inner} if outside in tags else None


def are_types(tags: Collection[str], outside: str = "O") -> bool:
    """Returns True where the tags are entities, and some of them a type without a letter."""
    read = entity_tags(tags, outside) or {}
    return any(read.get(tag) == f"I-{tag}" for tag in tags)


def _by_letter_before(tag: str) -> str | None:
    match = _BEFORE.fullmatch(tag)
    return match and _LETTERS[match[1]] + ("" if match[2] is None else f"-{match[2]}")


def _by_letter_after(tag: str) -> str | None:
    match = _AFTER.fullmatch(tag)
    return match and f"{_LETTERS[match[2]]}-{match[1]}"


def tagged_words(text: str, spans: Iterable[tuple[int, int, str]]) -> tuple[list[str], list[str]]:
    """Returns the words of a text, and their BIO tags by spans (start, end, type) of characters, which do not overlap.

    Words are cut at blanks, around punctuation and Chinese and Japanese characters, as in BERT's tokenizers, and at the ends of
    spans.
    """
    ordered = sorted(spans)
    edges = {edge for start, end, _ in ordered for edge in (start, end)}
    words, tags = list[str](), list[str]()
    at, before = 0, -1  # the next span, and that of the previous word
    for start, end in _cuts(text, edges):
        while at < len(ordered) and ordered[at][1] <= start:
            at += 1
        inside = at < len(ordered) and ordered[at][0] <= start
        words.append(text[start:end])
        tags.append(f"{'I' if before == at else 'B'}-{ordered[at][2]}" if inside else "O")
        before = at if inside else -1
    return words, tags


def without_overlaps(spans: Sequence[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Returns the spans without those that overlap a longer one, or an earlier one of the same length."""
    kept: list[tuple[int, int, str]] = []
    for start, end, kind in sorted(spans, key=lambda span: (span[0] - span[1], span[0])):
        if all(end <= other[0] or other[1] <= start for other in kept):
            kept.append((start, end, kind))
    return sorted(kept)


def _cuts(text: str, edges: Collection[int]) -> list[tuple[int, int]]:
    """Returns (start, end) of each word."""
    found: list[tuple[int, int]] = []
    start = -1  # where the current word begins
    for i, character in enumerate(text):
        alone = _stands_alone(character)
        if start >= 0 and (alone or character.isspace() or i in edges):
            found.append((start, i))
            start = -1
        if alone:
            found.append((i, i + 1))
        elif start < 0 and not character.isspace():
            start = i
    return [*found, (start, len(text))] if start >= 0 else found


def _stands_alone(character: str) -> bool:
    if character.isascii():
        return not character.isalnum() and character.isprintable() and character != " "
    code = ord(character)
    ideographic = any(low <= code <= high for low, high in _IDEOGRAPHIC)
    return ideographic or unicodedata.category(character)[0] in "PS"
