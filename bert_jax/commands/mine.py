"""The command `mine`: hard negatives for the training queries of a retrieval data set."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import tyro

from bert_jax.errors import InputError


def mine(
    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")],
    data: str,
    out: str,
    negatives: int = 7,
    skip_top: int = 10,
    margin: float = 0.95,
    max_seq_length: int | None = None,
) -> None:
    """Write a table of queries, documents and hard negatives, for finetune --task retrieval.

    For each query of qrels/train.tsv, the model ranks the whole corpus, exactly. Known documents of a query are no negatives.

    Args:
        model: Model that ranks: a retriever, or any model that embeds texts.
        data: Folder in BEIR's layout.
        out: File to write (.jsonl): query, positive, negative_1, ...
        negatives: Number of hard negatives for each pair. Pairs with fewer have empty ones, and are counted.
        skip_top: Number of documents at the top of the ranking that are no negatives, because they may answer the query.
        margin: Score of a negative at most, as a share of that of the positive.
        max_seq_length: Maximum tokens per text; the rest is cut. Default: the length of the model.
    """
    for name, value, least in (("negatives", negatives, 1), ("skip_top", skip_top, 0)):
        if value < least:
            raise InputError(f"--{name.replace('_', '-')} {value} is below {least}")
    if not out.endswith(".jsonl"):
        raise InputError(f"--out {out}: give a name that ends in .jsonl")
    from bert_jax import compilation_cache, pretrained
    from bert_jax.disk import write_text
    from bert_jax.finetuning import stages
    from bert_jax.finetuning.config import FinetuneConfig
    from bert_jax.tasks import mining
    from bert_jax.tasks.beir import judged_queries
    from bert_jax.tasks.ranking import Ranking
    from bert_jax.tasks.split import Predictions
    from bert_jax.tasks.splits import Splits
    from bert_jax.tasks.table import task_of
    from bert_jax.tasks.task import TaskData

    compilation_cache.keep()
    described = pretrained.describe(model)
    task, length = task_of("retrieval", described), max_seq_length or described.max_length
    task_data = TaskData(data=data)
    records, _, notes = judged_queries(task_data, "train")
    cfg = FinetuneConfig(model=model, task=task.name, task_data=task_data, num_epochs=0, max_seq_length=length).resolved(task)
    splits = Splits([], {}, {"train": records}, (), notes, "")
    for note in notes:
        print(note, file=sys.stderr)
    trainer, (split,) = stages.prepare(cfg, task, splits, lambda line: print(line, file=sys.stderr))
    rankings: Predictions[Ranking] = trainer.evaluator.predict(split, trainer.start.model.params)
    pairs = fewer = without = 0

    def lines() -> Iterator[str]:
        nonlocal pairs, fewer, without
        for row in mining.mine(records, rankings, negatives, skip_top, margin):
            pairs, fewer, without = pairs + 1, fewer + (not row[f"negative_{negatives}"]), without + (not row["negative_1"])
            yield json.dumps(row, ensure_ascii=False) + "\n"

    write_text(Path(out), lines())
    said = f"{out}: {pairs} pairs, of which {fewer} have fewer than {negatives} negatives and {without} none"
    print(said + (" (--margin, --skip-top)" if fewer else ""))
    if pairs == without:
        raise InputError(f"{out}: no pair has a negative: give a larger --margin or a smaller --skip-top")
