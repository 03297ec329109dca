"""The command `mine`: hard negatives for the training queries of a retrieval data set."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from bert_jax.errors import InputError

if TYPE_CHECKING:
    from bert_jax.tasks.mining import Teacher


def mine(
    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")],
    data: str,
    out: str,
    negatives: int = 7,
    skip_top: int = 10,
    margin: float | None = None,
    absolute_margin: float | None = None,
    teacher: str | None = None,
    candidates: int = 100,
    max_seq_length: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
) -> None:
    """Write a table of queries, documents and hard negatives, for finetune --task retrieval.

    For each query of qrels/train.tsv, the model ranks the whole corpus, exactly. Known documents of a query are no negatives.

    Args:
        model: Model that ranks: a retriever, or any model that embeds texts.
        data: Folder in BEIR's layout.
        out: File to write (.jsonl): query, positive, negative_1, ..., and with --teacher scores, as of `bert_jax score`.
        negatives: Number of hard negatives for each pair. Pairs with fewer have empty ones, and are counted.
        skip_top: Number of documents at the top of the ranking that are no negatives, because they may answer the query.
        margin: Score of a negative at most, as a share of that of the positive. Default: 0.95, without --absolute-margin. A
            positive below 0, as cosines and logits may be, has its negatives as far below it: -0.42 at most for -0.4.
        absolute_margin: Score of a negative at most, as its distance below that of the positive. With --margin, both hold.
        teacher: Cross-encoder, such as finetune --task reranking trains. Margins are then of its scores, from 0 to 1 unless its
            files say otherwise, and its logits are written.
        candidates: Number of documents of each query that the teacher scores.
        max_seq_length: Maximum tokens per text; the rest is cut. Default: the length of the model.
        on_error: On a line that cannot be read, or has an unknown id: stop, or skip and count it.
    """
    for name, value, least in (("negatives", negatives, 1), ("skip_top", skip_top, 0), ("candidates", candidates, 1)):
        if value < least:
            raise InputError(f"--{name.replace('_', '-')} {value} is below {least}")
    if absolute_margin is not None and absolute_margin < 0:
        raise InputError(f"--absolute-margin {absolute_margin} is below 0: negatives would score above the document")
    if margin is not None and not 0 <= margin <= 1:
        raise InputError(f"--margin {margin} is not in [0, 1]: a share of the score of the document")
    if not out.endswith(".jsonl"):
        raise InputError(f"--out {out}: give a name that ends in .jsonl")
    from bert_jax import compilation_cache, pretrained
    from bert_jax.disk import write_text
    from bert_jax.finetuning import stages
    from bert_jax.finetuning.config import FinetuneConfig
    from bert_jax.tasks import mining
    from bert_jax.tasks.beir import judged_queries
    from bert_jax.tasks.labels import few
    from bert_jax.tasks.ranking import DEPTH, Ranking
    from bert_jax.tasks.split import Predictions
    from bert_jax.tasks.splits import Splits
    from bert_jax.tasks.table import task_of
    from bert_jax.tasks.task import TaskData

    what, count = ("--negatives", negatives) if teacher is None else ("--candidates", candidates)
    if skip_top + count > DEPTH:
        raise InputError(f"--skip-top {skip_top} and {what} {count}: rankings have {DEPTH} documents: give fewer")
    compilation_cache.keep()
    described = pretrained.describe(model)
    task, length = task_of("retrieval", described), max_seq_length or described.max_length
    task_data = TaskData(data=data, on_error=on_error)
    records, _, notes = judged_queries(task_data, "train")
    if wrong := mining.unusable(records):
        said = f"warning: {len(wrong)} queries have a relevant document that is empty or the query itself, which is left out"
        notes.append(f"{said}: {few(wrong)}")
    judge = None if teacher is None else _teacher(teacher, candidates)
    cfg = FinetuneConfig(model=model, task=task.name, task_data=task_data, num_epochs=0, max_seq_length=length).resolved(task)
    splits = Splits([], {}, {"train": records}, (), notes, "")
    for note in notes:
        print(note, file=sys.stderr)
    trainer, (split,) = stages.prepare(cfg, task, splits, lambda line: print(line, file=sys.stderr))
    rankings: Predictions[Ranking] = trainer.evaluator.predict(split, trainer.start.model.params)
    rule = mining.Margin(0.95 if margin is None and absolute_margin is None else margin, absolute_margin)
    pairs = fewer = without = 0

    def lines() -> Iterator[str]:
        nonlocal pairs, fewer, without
        for row in mining.mine(records, rankings, negatives, skip_top, rule, judge):
            pairs, fewer, without = pairs + 1, fewer + (not row[f"negative_{negatives}"]), without + (not row["negative_1"])
            yield json.dumps(row, ensure_ascii=False) + "\n"

    write_text(Path(out), lines())
    said = f"{out}: {pairs} pairs, of which {fewer} have fewer than {negatives} negatives and {without} none"
    causes = "--margin, --absolute-margin, --skip-top" + ", --candidates" * (teacher is not None)
    print(said + (f" ({causes})" if fewer else ""))
    if pairs == without:
        raise InputError(f"{out}: no pair has a negative: change {causes}")


def _teacher(path: str, candidates: int) -> Teacher:
    """Reads a cross-encoder."""
    from dataclasses import replace

    import jax.numpy as jnp
    import numpy as np

    import bert_jax
    from bert_jax.inference.classifier import meaning
    from bert_jax.model.heads import TORCH_ACTIVATIONS
    from bert_jax.pooling import ACTIVATIONS
    from bert_jax.tasks.mining import Teacher

    model = bert_jax.load(path)
    reranker = bert_jax.Reranker(replace(model, activation=ACTIVATIONS["Identity"]))
    activation = TORCH_ACTIVATIONS[meaning(model, 1)[1]]
    return Teacher(reranker, lambda logits: np.asarray(activation(jnp.asarray(logits))), candidates)
