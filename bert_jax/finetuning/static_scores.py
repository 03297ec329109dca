"""Scores a table of token vectors as `bert_jax evaluate` scores a retriever."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from bert_jax.data.finetuning import Encoded
from bert_jax.errors import InputError
from bert_jax.finetuning.finetune import publish
from bert_jax.inference import Precision
from bert_jax.static import StaticEmbedder
from bert_jax.tasks.retrieval import Retrieval
from bert_jax.tasks.split import Predicted, Split
from bert_jax.tasks.splits import load_splits
from bert_jax.tasks.table import find_task, in_precision
from bert_jax.tasks.task import TaskData
from bert_jax.tuned import Tuned


def evaluate(
    model: str, home: Path, data: TaskData, split: str, name: str | None, out: str, command: str,
    precision: Precision = "float32", rescore: int | None = None,
) -> None:  # fmt: skip
    """Searches the documents of a data set for its queries; writes results.json, report.html and predictions/.

    Args:
      model: the table, as it is called in the results.
      home: its directory.
      data: the data set.
      split: the split of it.
      name: the task that is asked for: retrieval, or None.
      out: folder to write.
      command: the command line, for the results.
      precision: the precision in which documents are searched.
      rescore: candidates that float vectors order again.

    Raises:
      InputError: another task is asked for, or the table or the data cannot be read.
    """
    task = dataclasses.replace(find_task(name or "retrieval"), test_only=True, split=split)
    if not isinstance(task.kind, Retrieval):
        raise InputError(f"{model} is a table of token vectors, for --task retrieval; {task.name} needs an encoder")
    task = in_precision(task, precision, rescore)
    kind = task.kind
    assert isinstance(kind, Retrieval)
    embedder, splits, workdir = StaticEmbedder.load(home), load_splits(task, data), Path(out)
    for note in splits.notes:
        print(note, file=sys.stderr)
    predicted = dict[str, Predicted]()
    for each, records in splits.test.items():
        part = Split(each, records, Encoded(()))
        predicted[each] = Predicted(part, kind.rank_by(embedder, part), (), Tuned(task.name))
    scores = {each: kind.scores(own.labelled(), task.metrics) for each, own in predicted.items()}
    for own in predicted.values():
        kind.write(workdir / "predictions", own)
    publish(workdir, task, model, splits, scores, predicted, command)
