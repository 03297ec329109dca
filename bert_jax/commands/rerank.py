"""The command `rerank`: a cross-encoder orders the documents that a first stage found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bert_jax.errors import InputError


def rerank(
    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")],
    data: str,
    run: str,
    out: str,
    split: str = "test",
    depth: int = 100,
    max_seq_length: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
) -> None:
    """Rerank the first documents of each query with a cross-encoder; write a run for trec_eval, and print the scores of both.

    Args:
        model: Model with one value for a pair, such as finetune --task reranking trains, or a CrossEncoder of
            sentence-transformers.
        data: Folder in BEIR's layout.
        run: Rankings of the first stage in trec_eval's form, such as predictions/test.trec of `bert_jax evaluate`.
        out: File to write, in the same form.
        split: Name of the judgements in qrels/.
        depth: Number of documents of each query that are reranked; the others are left out.
        max_seq_length: Maximum tokens of a query with a document; the rest is cut. Default: the length of fine-tuning.
        on_error: On a line of the data that cannot be read, or has an unknown id: stop, or skip and count it.
    """
    if depth < 1:
        raise InputError(f"--depth {depth} is below 1")
    import numpy as np

    import bert_jax
    from bert_jax import compilation_cache
    from bert_jax.tasks.beir import BY_SPLIT, judged_queries
    from bert_jax.tasks.ranking import Ranking, in_run, merge, ranking_scores, read_run, write_run
    from bert_jax.tasks.task import TaskData

    compilation_cache.keep()
    records, judged, notes = judged_queries(TaskData(data=data, on_error=on_error), split, fix=BY_SPLIT)
    collection = judged[0].collection
    first = read_run(Path(run), collection.ids)
    missing = sum(in_run(record.id) not in first for record in records)
    notes += [f"warning: {missing} of {len(records)} judged queries are not in {run}: they score 0"] * bool(missing)
    for note in notes:
        print(note, file=sys.stderr)
    reranker = bert_jax.Reranker(bert_jax.load(model), max_length=max_seq_length)
    nothing = Ranking(np.zeros(0, np.int64), np.zeros(0, np.float32))
    before = [one.others(first.get(in_run(record.id), nothing)) for record, one in zip(records, judged, strict=True)]
    after = list[Ranking]()
    for record, ranking in zip(records, before, strict=True):
        documents = ranking.documents[:depth]
        pairs = [(record.texts[0], collection.records[i].texts[0]) for i in documents.tolist()]
        after.append(merge(None, Ranking(documents, reranker(pairs))))
    write_run(Path(out), [record.id for record in records], after, collection.ids, depth)
    for name, rankings in ((run, before), (out, after)):
        both = zip(rankings, judged, strict=True)
        ranked = [[one.relevances.get(i, 0) for i in own.documents.tolist()] for own, one in both]
        scores = ranking_scores(ranked, [list(one.relevances.values()) for one in judged])
        print(f"{name}: " + "  ".join(f"{metric} {value:.4f}" for metric, value in scores.items()))
