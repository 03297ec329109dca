"""The rows of kinds that rank documents for a query: the query, its document, and hard negatives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bert_jax.data.records import Record, take, texts_of
from bert_jax.tasks.kind import Kind
from bert_jax.tasks.labels import few
from bert_jax.tasks.parsing import PAIRS, File, L, Noted
from bert_jax.tasks.split import P

_MOST_NEGATIVES = 64  # columns that are found by their names


def _columns(query: str) -> list[tuple[str, ...]]:
    """Returns the usual columns of a query, its document and hard negatives, the most columns first."""
    numbered_ones = [f"negative_{i}" for i in range(1, _MOST_NEGATIVES + 1)]
    several = [(query, "positive", *numbered_ones[:count]) for count in range(_MOST_NEGATIVES, 0, -1)]
    return [*several, (query, "positive", "negative"), (query, "positive")]


class Candidates(Kind[L, P]):
    """A kind whose records are a query, a document that answers it, and hard negatives, which may be empty."""

    needs_all_rows = True
    scores_unlabelled = True
    num_texts = (2, float("inf"))
    usual_texts = (*_columns("query"), *_columns("anchor"), *PAIRS)
    labels_are_optional = True
    unit = "queries"

    def whole_texts(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        """Puts the document in the place of negatives that are missing: the loss leaves out copies of it."""
        return texts if len(texts) < 3 else (*texts[:2], *(text if text.strip() else texts[1] for text in texts[2:]))

    def checked(self, split: str, file: File, noted: Noted) -> tuple[Sequence[Record], list[str]]:
        """Leaves out rows whose query is the document; counts these and missing negatives."""
        kept, itself, fewer, none = list[int](), list[str](), list[str](), list[str]()
        for i, texts in enumerate(texts_of(file.records)):
            missing = sum(not text.strip() for text in texts[2:])
            if texts[0] == texts[1]:
                itself.append(file.records[i].place)
                continue
            kept.append(i)
            if missing:
                (none if missing == len(texts) - 2 else fewer).append(file.records[i].place)
        notes = [f"warning: {split}: {len(itself)} rows left out, whose query is the document: {few(itself)}"] * bool(itself)
        notes += [f"{split}: {len(fewer)} rows have fewer negatives than columns: {few(fewer)}"] * bool(fewer)
        notes += [f"warning: {split}: {len(none)} rows have no negative: {few(none)}"] * bool(none)
        return take(file.records, kept) if itself else file.records, notes

    def content(self, texts: tuple[str, ...]) -> str:
        """Returns the query: all its rows are held out together."""
        return texts[0]

    def parts(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        """Returns none: training and evaluation may search the same documents."""
        return ()


def no_target(label: object) -> np.ndarray:
    """Returns a target without meaning."""
    return np.zeros((), np.int32)
