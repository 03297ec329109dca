"""The rows of kinds that rank documents for a query: the query, its document, and hard negatives."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

import numpy as np

from bert_jax.data.records import Record, take, texts_of
from bert_jax.tasks.kind import Kind
from bert_jax.tasks.labels import few
from bert_jax.tasks.parsing import PAIRS, File, L, Noted
from bert_jax.tasks.split import P

_NEGATIVE = re.compile(r"negative_(\d+)")
_SAID = {
    "half": "warning: {}: {} rows left out, without a query or a document",
    "itself": "warning: {}: {} rows left out, whose query is the document",
    "wrong": "warning: {}: {} rows have negatives that are the query or known to answer it, and do not count",
    "fewer": "{}: {} rows have fewer negatives than columns",
    "none": "warning: {}: {} rows have no negative",
}


class Candidates(Kind[L, P]):
    """A kind whose records are a query, a document that answers it, and hard negatives, which may be empty."""

    needs_all_rows = True
    scores_unlabelled = True
    num_texts = (2, float("inf"))
    usual_texts = (
        ("query", "positive", "negative"), ("query", "positive"), ("anchor", "positive", "negative"), ("anchor", "positive"),
        *PAIRS,
    )  # fmt: skip
    labels_are_optional = True
    labels_train_alone = True
    unit = "queries"

    def usual_columns(self, columns: Sequence[str]) -> Sequence[tuple[str, ...]]:
        """Returns the usual columns of a query, its document and hard negatives: all that are numbered come first."""
        numbered = sorted((int(match[1]), name) for name in columns if (match := _NEGATIVE.fullmatch(name)))
        negatives = [name for _, name in numbered]
        several: list[tuple[str, ...]] = [(query, "positive", *negatives) for query in ("query", "anchor") if negatives]
        return [*several, *self.usual_texts]

    def whole_texts(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        """Puts the document in the place of negatives that are missing: the loss leaves out copies of it."""
        return texts if len(texts) < 3 else (*texts[:2], *(text if text.strip() else texts[1] for text in texts[2:]))

    def checked(self, split: str, file: File, noted: Noted) -> tuple[Sequence[Record], list[str]]:
        """Leaves out rows without a query and another text as its document; counts these, and negatives that are none."""
        pairs = {hash(texts[:2]) for texts in texts_of(file.records)}
        kept, places = list[int](), {name: list[str]() for name in ("half", "itself", "wrong", "fewer", "none")}
        for i, texts in enumerate(texts_of(file.records)):
            query, document, *negatives = texts
            if query == document or not (query.strip() and document.strip()):
                places["itself" if query.strip() and document.strip() else "half"].append(file.records[i].place)
                continue
            kept.append(i)
            there = [text for text in negatives if text.strip()]
            left = [text for text in there if text != query and hash((query, text)) not in pairs]
            if len(left) < len(negatives):
                places["fewer" if left else "none"].append(file.records[i].place)
            if len(left) < len(there):
                places["wrong"].append(file.records[i].place)
        notes = [f"{_SAID[name].format(split, len(own))}: {few(own)}" for name, own in places.items() if own]
        return take(file.records, kept) if len(kept) < len(file.records) else file.records, notes

    def values(self, label: L) -> tuple[Hashable, ...]:
        """Returns none: labels teach, and no split is scored by them."""
        return ()

    def content(self, texts: tuple[str, ...]) -> str:
        """Returns the query: all its rows are held out together."""
        return texts[0]

    def parts(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        """Returns none: training and evaluation may search the same documents."""
        return ()


def no_target(label: object) -> np.ndarray:
    """Returns a target without meaning."""
    return np.zeros((), np.int32)
