"""The command `score`: a cross-encoder scores the documents of a table, for distillation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import tyro

from bert_jax.errors import InputError

_ROWS = 1024  # that are scored at a time


def score(
    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")],
    data: str,
    out: str,
    text_column: tuple[str, ...] = (),
    max_seq_length: int | None = None,
) -> None:
    """Score the documents of a table with a cross-encoder, for finetune --task retrieval --score-column scores.

    The output has all columns of the table and `scores`: the logits of the document and of each negative, null for an empty one.

    Args:
        model: Model with one value for a pair, such as finetune --task reranking trains.
        data: Table of queries, documents and negatives, such as `bert_jax mine` writes.
        out: File to write (.jsonl).
        text_column: Columns of the query, the document and the negatives. Default: query, positive, negative_1, ...
        max_seq_length: Maximum tokens of a query with a document; the rest is cut. Default: the length of fine-tuning.
    """
    if not out.endswith(".jsonl"):
        raise InputError(f"--out {out}: give a name that ends in .jsonl")
    from dataclasses import replace

    import bert_jax
    from bert_jax import compilation_cache
    from bert_jax.data import files
    from bert_jax.disk import write_text
    from bert_jax.pooling import ACTIVATIONS
    from bert_jax.tasks.columns import find_columns
    from bert_jax.tasks.parsing import text_in
    from bert_jax.tasks.table import find_task
    from bert_jax.tasks.task import TaskData

    compilation_cache.keep()
    table = files.read_table(data)
    columns = find_columns("train", data, table.columns, find_task("retrieval"), TaskData(text_column=text_column)).texts
    teacher = replace(bert_jax.load(model), activation=ACTIVATIONS["Identity"])
    reranker = bert_jax.Reranker(teacher, max_length=max_seq_length)
    count = 0

    def lines() -> Iterator[str]:
        nonlocal count
        rows = iter(table.rows)
        while some := list(islice(rows, _ROWS)):
            texts = [[text_in(row, column) for column in columns] for row in some]
            scores = iter(reranker([(own[0], text) for own in texts for text in own[1:] if text.strip()]).tolist())
            for row, own in zip(some, texts, strict=True):
                found = [next(scores) if text.strip() else None for text in own[1:]]
                yield json.dumps({**row.values, "scores": found}, ensure_ascii=False, default=str) + "\n"
            count += len(some)

    write_text(Path(out), lines())
    print(f"{out}: {count} rows with the scores of {len(columns) - 1} documents")
