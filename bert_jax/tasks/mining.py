"""Hard negatives: documents that a model ranks high for a query, and that are not known to answer it. No jax in here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np

from bert_jax.data.records import Record
from bert_jax.errors import InputError
from bert_jax.tasks.beir import Judged
from bert_jax.tasks.ranking import Ranking

_TOGETHER = 64  # queries whose candidates a teacher scores at a time


class Margin(NamedTuple):
    """The distance of a negative's score from that of the positive, as others may answer the query without being known to.

    Attributes:
      share: a negative scores at most this share of the positive (Moreira et al., 2024, section 3.2), or, where the positive
        scores below 0, as far below it as it would above 0.
      absolute: a negative scores at least this much less than the positive.
    """

    share: float | None = None
    absolute: float | None = None

    def most(self, positive: float) -> float:
        """Returns the highest score of a negative; both rules hold.

        >>> Margin(0.5).most(0.5), Margin(0.5).most(-0.5), Margin(0.5, 0.5).most(0.5)
        (0.25, -0.75, 0.0)
        """
        share = positive if self.share is None else positive * (self.share if positive >= 0 else 2 - self.share)
        return min(share, positive if self.absolute is None else positive - self.absolute)


@dataclass(frozen=True)
class Teacher:
    """A cross-encoder that scores candidates instead of the model that found them.

    Attributes:
      logits: pairs of a query and a document -> logits, float32 [N].
      activation: logits -> the scores that margins are of.
      candidates: documents of each query that are scored.
    """

    logits: Callable[[Sequence[tuple[str, str]]], np.ndarray]
    activation: Callable[[np.ndarray], np.ndarray]
    candidates: int


@dataclass(frozen=True)
class _Query:
    text: str
    judged: Judged
    ranking: Ranking
    known: Collection[int]  # documents that answer the query, also where it has another id
    skip_top: int

    def text_of(self, document: int) -> str:
        return self.judged.collection.records[document].texts[0]

    @property
    def relevant(self) -> list[int]:
        """The relevant documents that one can learn from: not those of `unusable`."""
        return [number for number in _relevant(self.judged) if self.text_of(number) not in ("", self.text)]

    @property
    def positives(self) -> list[str]:
        return [self.text_of(number) for number in self.relevant]

    def scores(self) -> dict[str, float]:
        """Returns the score of each positive; one that the ranking lacks scores below all of it."""
        found = dict(zip(self.ranking.documents.tolist(), self.ranking.scores.tolist(), strict=True))
        return {self.text_of(number): found.get(number, float("-inf")) for number in self.relevant}

    def others(self) -> Iterator[tuple[str, float]]:
        """Yields the texts after the first `skip_top` that may be negatives, and their scores, each once, the best first."""
        texts, seen = self.judged.collection.records, {"", self.text, *map(self.text_of, self.known)}
        for document, score in zip(*(part[self.skip_top :].tolist() for part in self.ranking), strict=True):
            text = texts[document].texts[0]
            if text not in seen:
                seen.add(text)
                yield text, score


def mine(
    records: Sequence[Record],
    rankings: Sequence[Ranking],
    negatives: int,
    skip_top: int,
    margin: Margin,
    teacher: Teacher | None = None,
) -> Iterator[dict[str, object]]:
    """Yields `query`, `positive` and `negative_1`, ... for each query and relevant document; missing negatives are empty.

    The negatives are the first documents of the ranking after the first `skip_top` whose score is below that of the positive by
    `margin`. The scores are those of the ranking, where a positive that it lacks gets no negative, or of the `teacher`, whose
    logits of the document and its negatives are then `scores`, null for a missing one. All documents that are known to answer the
    text of a query, by whichever of its records, are no negatives. The documents of `unusable` are left out.
    """
    known: dict[str, set[int]] = {}
    for record in records:
        known.setdefault(record.texts[0], set()).update(_relevant(_judged(record)))
    both = zip(records, rankings, strict=True)
    queries = (_Query(r.texts[0], _judged(r), own, known[r.texts[0]], skip_top) for r, own in both)
    while some := list(islice(queries, _TOGETHER)):
        taught = None if teacher is None else iter(_logits(some, teacher))
        for query in some:
            if teacher is None or taught is None:
                own = query.scores()
                for positive in query.positives:
                    most = margin.most(own[positive])
                    yield _row(query, positive, (text for text, score in query.others() if score <= most), negatives)
                continue
            logits = next(taught)
            values = dict(zip(logits, teacher.activation(np.array([*logits.values()], np.float32)).tolist(), strict=True))
            others = [text for text, _ in islice(query.others(), teacher.candidates)]
            for positive in query.positives:
                most = margin.most(values[positive])
                row = _row(query, positive, (text for text in others if values[text] <= most), negatives)
                named = [row["positive"], *(row[f"negative_{i}"] for i in range(1, negatives + 1))]
                yield row | {"scores": [logits.get(str(text)) for text in named]}


def unusable(records: Sequence[Record]) -> list[str]:
    """Returns the places of the queries that have a relevant document which is empty, or is the query itself."""
    found = []
    for record in records:
        texts = _judged(record).collection.records
        if any(texts[number].texts[0] in ("", record.texts[0]) for number in _relevant(_judged(record))):
            found.append(record.place)
    return found


def _relevant(judged: Judged) -> list[int]:
    return [number for number, relevance in judged.relevances.items() if relevance > 0]


def _judged(record: Record) -> Judged:
    if not isinstance(record.label, Judged):
        raise InputError(f"{record.place}: a query without judgements")
    return record.label


def _logits(queries: Sequence[_Query], teacher: Teacher) -> list[Mapping[str, float]]:
    """Returns the logits of the positives and the candidates of each query."""
    texts = [[*query.positives, *(text for text, _ in islice(query.others(), teacher.candidates))] for query in queries]
    found = iter(teacher.logits([(query.text, text) for query, own in zip(queries, texts, strict=True) for text in own]).tolist())
    return [dict(zip(own, islice(found, len(own)), strict=True)) for own in texts]


def _row(query: _Query, positive: str, others: Iterator[str], negatives: int) -> dict[str, object]:
    found = list(islice(others, negatives))
    named = {f"negative_{i}": text for i, text in enumerate([*found, *[""] * (negatives - len(found))], 1)}
    return {"query": query.text, "positive": positive, **named}
