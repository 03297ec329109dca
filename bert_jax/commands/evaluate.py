"""The command `evaluate`: scores a fine-tuned model on a file, as fine-tuning scores its test set."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from bert_jax.errors import InputError
from bert_jax.tasks.task import TaskData


@dataclass(frozen=True)
class Data(TaskData):
    """The examples, and the columns of their files."""

    data: str = ""
    """File to evaluate on, or folder with test.*; for retrieval also a folder in BEIR's layout."""
    split: Literal["train", "dev", "test"] = "test"
    """retrieval, folders: judgements to score on, of qrels/SPLIT.tsv."""
    dev: tyro.conf.Suppress[str | None] = None
    test: tyro.conf.Suppress[str | None] = None
    dev_size: tyro.conf.Suppress[float] = 0.1
    group_column: tyro.conf.Suppress[str | None] = None
    max_train_rows: tyro.conf.Suppress[int | None] = None


def evaluate(
    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")],
    task_data: Data,
    task: str | None = None,
    out: str = "evaluation",
    max_seq_length: int | None = None,
    null_threshold: float | None = None,
    label_threshold: float | None = None,
    special_tokens: Literal["read", "text"] | None = None,
    precision: Literal["float32", "bfloat16", "int8", "binary"] = "float32",
    rescore: int | None = None,
) -> None:
    """Score a fine-tuned model on a file with labels; write results.json, report.html and predictions/ as finetune does.

    Args:
        model: Fine-tuned directory, or any pretrained directory with the head of the task; for retrieval also a table of
            `bert_jax static`.
        task_data: The examples.
        task: Task, as for finetune. Default: the task that the model was fine-tuned on.
        out: Folder to write; it replaces the results of an earlier evaluation.
        max_seq_length: Maximum tokens per example; the rest is cut. Default: the length of fine-tuning.
        null_threshold: question_answering: give no answer if its logit exceeds that of the best answer by more than this.
            Default: that of the model.
        label_threshold: multi_label: minimum probability of the labels that a text gets. Default: those of the model.
        special_tokens: Read special tokens in a text, such as `[SEP]`, as these tokens, or as text. Default: as the files of the
            model say.
        precision: retrieval with a vector for each text: search the documents as `nearest` does in a file of `quantize`.
        rescore: Number of candidates of each query that the float vectors order again, with another --precision; rankings end
            with them. Default: none.
    """
    if not task_data.data:
        raise InputError("--data is missing: bert_jax evaluate MODEL --data FILE; see --help")
    from bert_jax import compilation_cache, pretrained
    from bert_jax.finetuning import stages, static_scores
    from bert_jax.finetuning.config import FinetuneConfig
    from bert_jax.finetuning.finetune import finish
    from bert_jax.hub import find
    from bert_jax.static import is_static, refuse_for_tables
    from bert_jax.tasks.splits import load_splits
    from bert_jax.tasks.table import in_precision, task_of

    if rescore is not None and task_data.chunk_documents is not None:
        raise InputError("--rescore and --chunk-documents exclude each other: passages are not scored again")
    compilation_cache.keep()
    command = shlex.join(["bert_jax", *sys.argv[1:]])
    if is_static(home := find(model)):
        given = {"max_seq_length": max_seq_length, "null_threshold": null_threshold, "label_threshold": label_threshold}
        refuse_for_tables(model, given | {"special_tokens": special_tokens, "chunk_documents": task_data.chunk_documents})
        static_scores.evaluate(model, home, task_data, task_data.split, task, out, command, precision, rescore)
        return
    described = pretrained.describe(model)
    name = task or described.tuned.task
    if name is None:
        raise InputError(f"{model} does not name the task that it was fine-tuned on: give --task")
    row = dataclasses.replace(in_precision(task_of(name, described), precision, rescore), test_only=True, split=task_data.split)
    if row.kind.has_classes:
        row = dataclasses.replace(row, labels=described.labels)
    length = described.window if row.kind.reads_windows else described.max_length
    cfg = FinetuneConfig(
        model=model, task=row.name, task_data=task_data, workdir=out, num_epochs=0, max_seq_length=max_seq_length or length,
        null_threshold=null_threshold, label_threshold=label_threshold, special_tokens=special_tokens,
    ).resolved(row)  # fmt: skip
    splits = load_splits(row, task_data)
    for note in splits.notes:
        print(note, file=sys.stderr)
    labelled = any(record.label is not None for records in splits.test.values() for record in records)
    if not labelled and not row.kind.scores_unlabelled:
        raise InputError(f"{task_data.data}: no row has a label, so there is nothing to score: give --label-column")
    trainer, test = stages.prepare(cfg, row, splits, lambda line: print(line, file=sys.stderr))
    finish(trainer, splits, test, [], command)
