"""Scores of rankings by trec_eval's rules, and its file of a run. No jax in here.

Documents are ranked by score; of equal scores, the one whose id is larger comes first, as strcmp orders them. Every query that is
judged counts: one without a ranking, or without a relevant document, scores 0 (trec_eval -c).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bert_jax.data import files
from bert_jax.disk import write_text
from bert_jax.errors import InputError
from bert_jax.tasks.metrics import mrr_at_10, ndcg_at_10

DEPTH = 1000  # documents of a ranking that count, as in TREC's runs
_BLANKS = "\t\n\v\f\r "  # they separate the fields of a run, as in C: other blanks of Unicode may be part of an id
_ESCAPED = {ord(blank): f"%{ord(blank):02X}" for blank in _BLANKS}


class Ranking(NamedTuple):
    """The documents of a query by number, int64 [k], the best first, and their scores, float32 [k]."""

    documents: np.ndarray
    scores: np.ndarray


def by_descending_id(ids: Sequence[str]) -> list[int]:
    """Returns the places of ids in the order in which trec_eval ranks documents of equal scores."""
    return sorted(range(len(ids)), key=lambda i: ids[i].encode(), reverse=True)


def merge(best: Ranking | None, others: Ranking, depth: int = DEPTH) -> Ranking:
    """Returns the best `depth` documents of two rankings without a common document; of equal scores, the smaller number first."""
    documents, scores = others if best is None else map(np.concatenate, zip(best, others, strict=True))
    order = np.lexsort((documents, -scores))[:depth]
    return Ranking(documents[order], scores[order])


def ranking_scores(ranked: Sequence[Sequence[float]], judged: Sequence[Sequence[float]]) -> dict[str, float]:
    """Returns ndcg_at_10, mrr_at_10, map and recall_at_1, _10 and _100 over queries.

    Args:
      ranked: the relevances of the documents of each query, in the order of the ranking, 0 for those that are not judged. Of
        map, a relevant document that is not among them adds 0.
      judged: the relevances of all judged documents of each query; above 0 is relevant.
    """
    hits = [np.asarray(relevances, np.float64) > 0 for relevances in ranked]
    relevant = [int(np.sum(np.asarray(relevances, np.float64) > 0)) for relevances in judged]
    recalls = {
        f"recall_at_{k}": _mean(own[:k].sum() / max(1, n) for own, n in zip(hits, relevant, strict=True)) for k in (1, 10, 100)
    }
    precisions = (np.cumsum(own)[own] / (np.flatnonzero(own) + 1) for own in hits)
    average = _mean(each.sum() / max(1, n) for each, n in zip(precisions, relevant, strict=True))
    return {"ndcg_at_10": ndcg_at_10(ranked, judged), "mrr_at_10": mrr_at_10(ranked, judged), "map": average, **recalls}


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def in_run(id: str) -> str:
    """Returns an id as it stands in a run, whose fields have no blanks: these are written as in a URL.

    >>> in_run("annual report.pdf")
    'annual%20report.pdf'
    """
    return id.translate(_ESCAPED)


def read_run(path: Path, documents: Sequence[str]) -> dict[str, Ranking]:
    """Reads a run in trec_eval's form: the ranking of each query by `in_run` of its id, documents by their place in `documents`.

    Raises:
      InputError: a line has not six fields, no number as its score, an unknown document, or a document for the second time.
    """
    numbers, found = {in_run(id): number for number, id in enumerate(documents)}, dict[str, dict[int, float]]()
    for place, line in files.text_lines(str(path)):
        fields = [field for field in re.split(f"[{_BLANKS}]+", line) if field]
        if not fields:
            continue
        if len(fields) != 6:
            raise InputError(f"{place}: {len(fields)} fields; a run has six: query Q0 document rank score name")
        query, document = fields[0], fields[2]
        if document not in numbers:
            raise InputError(f"{place}: the document {document!r} is not in corpus.jsonl: give a run of this corpus")
        own = found.setdefault(query, {})
        if numbers[document] in own:
            raise InputError(f"{place}: query {query!r} has the document {document!r} twice")
        own[numbers[document]] = score = _number(fields[4])
        if math.isnan(score):
            raise InputError(f"{place}: the score {fields[4]!r} is not a number")
    if not found:
        raise InputError(f"{path}: holds no rankings")
    each = {query: Ranking(np.array([*own], np.int64), np.array([*own.values()], np.float32)) for query, own in found.items()}
    return {query: merge(None, ranking) for query, ranking in each.items()}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def write_run(
    path: Path, queries: Iterable[str], rankings: Iterable[Ranking], documents: Sequence[str], depth: int = 100
) -> Path:
    """Writes the first `depth` documents of each query as trec_eval reads them: `query Q0 document rank score bert_jax`.

    The ids are those of `in_run`.
    """

    def lines() -> Iterator[str]:
        for query, (numbers, scores) in zip(queries, rankings, strict=True):
            for rank, (number, score) in enumerate(zip(numbers[:depth].tolist(), scores[:depth].tolist(), strict=True), 1):
                yield f"{in_run(query)} Q0 {in_run(documents[number])} {rank} {score:.9g} bert_jax\n"

    return write_text(path, lines())
